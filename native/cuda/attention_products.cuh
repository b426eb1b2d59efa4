#pragma once

// The two products of a warp that attention and its derivative are made of. One operand is the
// warp's own 16 rows, the other a tile in shared memory that all warps of the block read:
//
//   scores:  s[16, n]   += own[16, k] tile[n, k]^T   (q k^T, dY v^T, k q^T, v dY^T)
//   weigh:   sum[16, d] += p[16, n] tile[n, d]       (p v, dS k, p^T dY, dS^T q), p in registers
//
// Sums are in registers, as mma.sync leaves them: with g = lane / 4 and q = lane % 4, x[j][0] and
// x[j][1] are row g, columns 8 j + 2 q and the next, x[j][2] and x[j][3] the same of row g + 8. So
// what the first product leaves is what the second takes, and softmax needs shuffles among the four
// lanes of a row only. All three kinds of arithmetic keep to this layout:
//
//   Bf16Product  mma m16n8k16, and one m16n8k8 where k is an odd multiple of 8 (72 = 4 x 16 + 8)
//   Tf32Product  mma m16n8k8; in `weigh` column q of p stands for token 2 q and column q + 4 for
//                token 2 q + 1 (a sum may be taken in any order), so that p needs no shuffles
//   Fp32Product  fused multiply-adds of every lane for its own four numbers of a tile
//
// Rows in shared memory are an odd number of 16-byte pieces long. Eight rows that follow each other
// then begin in eight different groups of four banks, whatever the odd number is (it is prime to
// 8): ldmatrix, which reads 16 bytes of each of eight rows, and the plain reads of eight rows below
// have no bank conflicts. 72 bf16 numbers are 9 pieces: no padding; 64 are 8 and get one more.

#include "cuda/numbers.cuh"

namespace dit::cuda {

// Bytes from row to row of a tile of `columns` numbers of `size` bytes.
constexpr int rowBytes(int columns, int size) { return (columns * size / 16 | 1) * 16; }

struct Bf16Product {
  using Element = Bf16;
  static constexpr bool kTensorCores = true;
};
struct Tf32Product {
  using Element = float;
  static constexpr bool kTensorCores = true;
};
struct Fp32Product {
  using Element = float;
  static constexpr bool kTensorCores = false;
};

struct Lane {
  int lane = static_cast<int>(threadIdx.x) % 32;
  int g = lane / 4, q = lane % 4;
};

// ---------------------------------------------------------------- scores

__device__ __forceinline__ void multiply(Bf16Product, float (&s)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  mmaBf16(s, a, b);
}
__device__ __forceinline__ void multiply(Tf32Product, float (&s)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  mmaTf32(s, a, b);
}

// 16 rows of shared memory, kColumns numbers wide, kPitch bytes apart. From `load` on, the first
// kHeld steps of k are kept in registers; the others are read again for every tile.
template <typename Product, int kColumns, int kPitch, bool kHold>
class OwnRows {
  static_assert(Product::kTensorCores);
  // 32 bytes a row are one step of k: 16 bf16 numbers or 8 floats.
  static constexpr int kBytes = kColumns * sizeof(typename Product::Element);
  static constexpr int kSteps = kBytes / 32;
  static constexpr bool kHalf = kBytes % 32 != 0;
  static constexpr int kHeldSteps = kHold ? kSteps : 0;

 public:
  __device__ __forceinline__ explicit OwnRows(const char* rows)
      : at_(rows + Lane{}.lane % 16 * kPitch), second_(Lane{}.lane / 16 * 16) {}

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int step = 0; step < kHeldSteps; step++) readStep(held_[step], step);
    if constexpr (kHold && kHalf) loadMatrix2(half_, at_ + kSteps * 32);
  }

  // s += rows tile^T for the 8 kTiles rows of a tile.
  template <int kTiles>
  __device__ __forceinline__ void scores(const char* tile, float (&s)[kTiles][4]) const {
    const int lane = Lane{}.lane;
    // Of two blocks of 8 rows, both halves of a step.
    const char* const pairs = tile + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      uint32_t a[4];
      if (step < kHeldSteps) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = held_[step][i];
      } else {
        readStep(a, step);
      }
#pragma unroll
      for (int j = 0; j + 1 < kTiles; j += 2) {
        uint32_t b[4];
        loadMatrix4(b, pairs + j * 8 * kPitch + step * 32);
        multiply(Product{}, s[j], a, {b[0], b[1]});
        multiply(Product{}, s[j + 1], a, {b[2], b[3]});
      }
      if constexpr (kTiles % 2 != 0) {
        uint32_t b[2];
        loadMatrix2(b,
                    tile + ((kTiles - 1) * 8 + lane % 8) * kPitch + lane / 8 % 2 * 16 + step * 32);
        multiply(Product{}, s[kTiles - 1], a, b);
      }
    }
    if constexpr (kHalf) {
      static_assert(kTiles % 4 == 0);
      uint32_t a[2] = {half_[0], half_[1]};
      if constexpr (!kHold) loadMatrix2(a, at_ + kSteps * 32);
#pragma unroll
      for (int j = 0; j < kTiles; j += 4) {
        uint32_t b[4];
        loadMatrix4(b, tile + (j * 8 + lane) * kPitch + kSteps * 32);
#pragma unroll
        for (int i = 0; i < 4; i++) mmaBf16K8(s[j + i], a, b[i]);
      }
    }
  }

 private:
  __device__ __forceinline__ void readStep(uint32_t (&a)[4], int step) const {
    loadMatrix4(a, at_ + second_ + step * 32);
  }

  const char* at_;
  int second_;
  uint32_t held_[kHeldSteps > 0 ? kHeldSteps : 1][4];
  uint32_t half_[2] = {};
};

// Fused wherever it runs: one rounding a term.
__device__ __forceinline__ float dot(float sum, float4 a, float4 b) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

template <int kColumns, int kPitch, bool kHold>
class OwnRows<Fp32Product, kColumns, kPitch, kHold> {
 public:
  __device__ __forceinline__ explicit OwnRows(const char* rows) : at_(rows + Lane{}.g * kPitch) {}

  __device__ __forceinline__ void load() {}

  template <int kTiles>
  __device__ __forceinline__ void scores(const char* tile, float (&s)[kTiles][4]) const {
    const char* const own = at_;
    const char* const other = tile + Lane{}.q * 2 * kPitch;
#pragma unroll 2
    for (int k = 0; k < kColumns * 4; k += 16) {
      const float4 a0 = load4(reinterpret_cast<const float*>(own + k));
      const float4 a1 = load4(reinterpret_cast<const float*>(own + 8 * kPitch + k));
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        const char* const row = other + j * 8 * kPitch + k;
        const float4 b0 = load4(reinterpret_cast<const float*>(row));
        const float4 b1 = load4(reinterpret_cast<const float*>(row + kPitch));
        s[j][0] = dot(s[j][0], a0, b0);
        s[j][1] = dot(s[j][1], a0, b1);
        s[j][2] = dot(s[j][2], a1, b0);
        s[j][3] = dot(s[j][3], a1, b1);
      }
    }
  }

 private:
  const char* at_;
};

// ---------------------------------------------------------------- weigh

template <int kPitch, int kTiles, int kBlocks>
__device__ __forceinline__ void weigh(Bf16Product, const float (&p)[kTiles][4], const char* tile,
                                      float (&sum)[kBlocks][4]) {
  static_assert(kTiles % 2 == 0);
  const int lane = Lane{}.lane;
  const char* const at = tile + lane % 16 * kPitch + lane / 16 * 16;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    const uint32_t a[4] = {packBf16(p[j][0], p[j][1]), packBf16(p[j][2], p[j][3]),
                           packBf16(p[j + 1][0], p[j + 1][1]), packBf16(p[j + 1][2], p[j + 1][3])};
#pragma unroll
    for (int n = 0; n + 1 < kBlocks; n += 2) {
      uint32_t b[4];
      loadMatrix4Transposed(b, at + j * 8 * kPitch + n * 16);
      mmaBf16(sum[n], a, {b[0], b[1]});
      mmaBf16(sum[n + 1], a, {b[2], b[3]});
    }
    if constexpr (kBlocks % 2 != 0) {
      uint32_t b[2];
      loadMatrix2Transposed(b, tile + (j * 8 + lane % 16) * kPitch + (kBlocks - 1) * 16);
      mmaBf16(sum[kBlocks - 1], a, b);
    }
  }
}

template <int kPitch, int kTiles, int kBlocks>
__device__ __forceinline__ void weigh(Tf32Product, const float (&p)[kTiles][4], const char* tile,
                                      float (&sum)[kBlocks][4]) {
  const Lane lane;
  // Rows 2 q and 2 q + 1, column g: the rows of four lanes are 8 banks apart, by the odd pitch.
  const char* const at = tile + 2 * lane.q * kPitch + lane.g * 4;
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
    const uint32_t a[4] = {toTf32(p[j][0]), toTf32(p[j][2]), toTf32(p[j][1]), toTf32(p[j][3])};
#pragma unroll
    for (int n = 0; n < kBlocks; n++) {
      const char* const v = at + j * 8 * kPitch + n * 32;
      mmaTf32(
          sum[n], a,
          {*reinterpret_cast<const uint32_t*>(v), *reinterpret_cast<const uint32_t*>(v + kPitch)});
    }
  }
}

template <int kPitch, int kTiles, int kBlocks>
__device__ __forceinline__ void weigh(Fp32Product, const float (&p)[kTiles][4], const char* tile,
                                      float (&sum)[kBlocks][4]) {
  const Lane lane;
  const char* const at = tile + lane.q * 8;
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
#pragma unroll
    for (int token = 0; token < 8; token++) {
      // Whoever has this token's weight gives it to the four lanes of the row.
      const int from = lane.lane - lane.q + token / 2;
      const float p0 = __shfl_sync(0xffffffffu, p[j][token % 2], from);
      const float p1 = __shfl_sync(0xffffffffu, p[j][2 + token % 2], from);
#pragma unroll
      for (int n = 0; n < kBlocks; n++) {
        const float2 v = *reinterpret_cast<const float2*>(at + (j * 8 + token) * kPitch + n * 32);
        sum[n][0] = fmaf(p0, v.x, sum[n][0]);
        sum[n][1] = fmaf(p0, v.y, sum[n][1]);
        sum[n][2] = fmaf(p1, v.x, sum[n][2]);
        sum[n][3] = fmaf(p1, v.y, sum[n][3]);
      }
    }
  }
}

}  // namespace dit::cuda
