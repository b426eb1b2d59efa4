#pragma once

// What attention's kernels on Hopper share: tiles of a head's tokens in shared memory, the products
// of warpgroups on them, rings of tiles.
//
// 72 is no multiple of the 64 numbers (128 bytes) of the widest swizzle. A token lies in two
// panels, one of 64 numbers and one of 16, of which 8 exist and 8 are read as 0: products over the
// head's dimension take them in a fifth step of 16, products across it beside that of 64, 16 wide.
// So nothing is padded in memory, and of the operations a tenth is for zeros.

#include "cuda/numbers.cuh"
#include "cuda/ptx_hopper.cuh"

namespace dit::cuda::hopper {

constexpr int kWarpgroup = 128;
constexpr int kStep = 16;       // of the products' dimension, of one instruction
constexpr int kPanel = 64;      // numbers of a row in the first panel
constexpr int kRestPanel = 16;  // and in the second

template <int kD, int kRows>
struct TileMemory {
  static constexpr bool kHasRest = kD > kPanel;
  alignas(1024) char panel[kRows * kPanel * 2];
  alignas(1024) char rest[kHasRest ? kRows * kRestPanel * 2 : 1024];

  static constexpr int kBytes = kRows * (kPanel + (kHasRest ? kRestPanel : 0)) * 2;
};

// A place in a ring and how often it was gone round.
template <int kSlots>
struct Ring {
  int slot = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kSlots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// A box of tokens from `token` on, as rows of a tile from `first` on. The barrier hears of it.
template <int kD, int kRows>
__device__ __forceinline__ void loadRows(TileMemory<kD, kRows>& to, int first,
                                         const CUtensorMap* panel, const CUtensorMap* rest,
                                         uint64_t* barrier, int head, int token, int row) {
  loadBox4(to.panel + first * kPanel * 2, panel, barrier, 0, head, token, row);
  if constexpr (TileMemory<kD, kRows>::kHasRest) {
    loadBox4(to.rest + first * kRestPanel * 2, rest, barrier, kPanel, head, token, row);
  }
}

// scores [64, kColumns] = a b^T of 64 rows of a, from `first`, and all of b. Rows are contiguous
// along the products' dimension: an atom of 8 rows has 1024 bytes in the first panel, 256 in the
// second.
template <int kD, int kRows, int kColumns>
__device__ __forceinline__ void multiplyRows(float (&scores)[kColumns / 2],
                                             const TileMemory<kD, kRows>& a, int first,
                                             const TileMemory<kD, kColumns>& b) {
#pragma unroll
  for (int step = 0; step < kPanel / kStep; step++) {
    const char* const rows = a.panel + first * kPanel * 2;
    wgmmaAsync<0, 0>(scores, matrixDescriptor(rows + step * kStep * 2, 0, 1024, Swizzle::Bytes128),
                     matrixDescriptor(b.panel + step * kStep * 2, 0, 1024, Swizzle::Bytes128),
                     step > 0);
  }
  if constexpr (TileMemory<kD, kRows>::kHasRest) {
    const char* const rows = a.rest + first * kRestPanel * 2;
    wgmmaAsync<0, 0>(scores, matrixDescriptor(rows, 0, 256, Swizzle::Bytes32),
                     matrixDescriptor(b.rest, 0, 256, Swizzle::Bytes32), true);
  }
}

// The same 64 rows of a in registers, for many products: a thread's share of the fragments.
template <int kD>
struct RowFragments {
  static constexpr int kSteps = (kD + kStep - 1) / kStep;
  uint32_t of[kSteps][4];

  template <int kRows>
  __device__ __forceinline__ void load(const TileMemory<kD, kRows>& a, int first) {
    // Lane i gives the address of row i % 8 of a quarter of a step, the lower rows' first.
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
    const int row = first + thread / 32 * 16 + lane % 16, piece = lane / 16;
#pragma unroll
    for (int step = 0; step < kPanel / kStep; step++) {
      loadMatrix4(of[step], a.panel + row * kPanel * 2 + (((2 * step + piece) ^ (row % 8)) << 4));
    }
    if constexpr (TileMemory<kD, kRows>::kHasRest) {
      loadMatrix4(of[kSteps - 1], a.rest + row * kRestPanel * 2 + ((piece ^ (row / 4 % 2)) << 4));
    }
  }

  // scores [64, kColumns] = these rows times all of b, transposed.
  template <int kColumns>
  __device__ __forceinline__ void multiply(float (&scores)[kColumns / 2],
                                           const TileMemory<kD, kColumns>& b) const {
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      const uint64_t columns =
          step < kPanel / kStep
              ? matrixDescriptor(b.panel + step * kStep * 2, 0, 1024, Swizzle::Bytes128)
              : matrixDescriptor(b.rest, 0, 256, Swizzle::Bytes32);
      wgmmaAsync<0>(scores, of[step], columns, step > 0);
    }
  }
};

// 64 tokens of a result, as wgmma has them: a thread has two rows, g and g + 8 of a warp's 16.
template <int kD>
struct Sums {
  static constexpr bool kHasRest = kD > kPanel;
  float panel[kPanel / 2];
  float rest[kRestPanel / 2];

  // += factors [64, 16 kSteps] times rows [16 kSteps, d], which are contiguous across the products'
  // dimension: 16 of it are 16 rows.
  template <int kSteps, int kRows>
  __device__ __forceinline__ void add(const uint32_t (&factors)[kSteps][4],
                                      const TileMemory<kD, kRows>& rows, bool accumulate) {
    static_assert(kSteps * kStep == kRows);
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      wgmmaAsync<1>(panel, factors[step], panelStep(rows, step), accumulate || step > 0);
      if constexpr (kHasRest) {
        wgmmaAsync<1>(rest, factors[step], restStep(rows, step), accumulate || step > 0);
      }
    }
  }

  // The same with factors in shared memory: kRows rows of 64, transposed, swizzled by 128 bytes.
  template <int kRows>
  __device__ __forceinline__ void add(const char* factors, const TileMemory<kD, kRows>& rows) {
#pragma unroll
    for (int step = 0; step < kRows / kStep; step++) {
      const uint64_t a = matrixDescriptor(factors + step * kStep * 128, 0, 1024, Swizzle::Bytes128);
      wgmmaAsync<1, 1>(panel, a, panelStep(rows, step), true);
      if constexpr (kHasRest) wgmmaAsync<1, 1>(rest, a, restStep(rows, step), true);
    }
  }

  __device__ __forceinline__ void touch() {
    wgmmaTouch(panel);
    if constexpr (kHasRest) wgmmaTouch(rest);
  }

  // A thread's part of row g (half 0) or g + 8 (half 1), rounded to bf16. to: the row's numbers.
  __device__ __forceinline__ void storeRow(Bf16* to, int half, float factor) const {
    Bf16* const own = to + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
    for (int j = 0; j < kPanel / 8; j++) {
      storePair(own + 8 * j, panel[4 * j + 2 * half] * factor,
                panel[4 * j + 2 * half + 1] * factor);
    }
    if constexpr (kHasRest) {
      storePair(own + kPanel, rest[2 * half] * factor, rest[2 * half + 1] * factor);
    }
  }

 private:
  template <int kRows>
  static __device__ __forceinline__ uint64_t panelStep(const TileMemory<kD, kRows>& rows,
                                                       int step) {
    return matrixDescriptor(rows.panel + step * kStep * kPanel * 2, 0, 1024, Swizzle::Bytes128);
  }
  template <int kRows>
  static __device__ __forceinline__ uint64_t restStep(const TileMemory<kD, kRows>& rows, int step) {
    return matrixDescriptor(rows.rest + step * kStep * kRestPanel * 2, 0, 256, Swizzle::Bytes32);
  }
  static __device__ __forceinline__ void storePair(Bf16* to, float a, float b) {
    *reinterpret_cast<uint32_t*>(to) = packBf16(a, b);
  }
};

}  // namespace dit::cuda::hopper
