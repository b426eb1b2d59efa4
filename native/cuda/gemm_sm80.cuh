#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/epilogue.cuh"

// C [m, n] = A B with fp32 sums, on the tensor cores of everything since Ampere (mma.sync): the
// product that all of linear and its backward are made of.
//
//   y = x W^T         A = x [m, k]           B = W, stored [n, k]
//   dX = dY W         A = dY [m, k]          B = W, stored [k, n]
//   dWeight = dY^T x  A = dY, stored [k, m]  B = x, stored [k, n]
//
// So each operand comes with lines along k (`AlongK`) or across it. A block of threads computes a
// tile of C. It goes along k in steps of kKBytes bytes (64: 32 numbers in bf16, 16 in TF32), which
// it copies to shared memory kStages - 1 steps ahead (cp.async), 16 bytes a piece. There lines lie
// as in memory, their pieces permuted by an exclusive or with the line's number, so that neither
// the copies nor the reads of eight lines at once (ldmatrix; plain reads for TF32 across k, which
// ldmatrix cannot transpose) meet in a bank. A warp computes a part of the tile, in tiles of
// 16 x 8 of mma.
//
// A sum goes along k from the first to the last number of its split, in pieces of 16 (8 in TF32) of
// one mma each, whatever the tile. So which tile computes a number does not show in its bits, and
// the choice may look at the number of rows. A split of k does show.
//
// What lies beyond m, n and k is read as 0. Lines begin at multiples of 16 bytes; beyond their
// length, up to the next such multiple, are zeros or, across k, anything.

namespace dit::cuda {

// The element types are Bf16 and, for TF32, float.
template <typename T>
constexpr int kPerPiece = 16 / sizeof(T);

enum class Lines : uint8_t { AlongK, AcrossK };

template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kKBytes_, int kStages_, int kBlocks_>
struct Tile {
  static constexpr int kM = kM_, kN = kN_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kTilesM = kM / kWarpsM / 16, kTilesN = kN / kWarpsN / 8;  // of a warp
  static constexpr int kKBytes = kKBytes_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;  // on a multiprocessor
  static constexpr size_t kShared = size_t{kStages} * (kM + kN) * kKBytes;
};

struct Operand {
  const void* data;
  int64_t stride;  // of lines, in elements
};

struct Product {
  Operand a, b;
  int64_t m, n, k;
  int64_t kSplit;  // of each block in grid.y: a multiple of the step, or k
};

// One operand's part of a step in shared memory: kExtent rows of A (columns of B).
template <typename T, Lines kLines, int kExtent, int kKBytes, int kThreads>
class Side {
 public:
  static constexpr int kK = kKBytes / static_cast<int>(sizeof(T));
  static constexpr int kBytes = kExtent * kKBytes;

  // Where piece `piece` of a line lies.
  static __device__ __forceinline__ int offset(int line, int piece) {
    if constexpr (kLines == Lines::AcrossK) {
      piece ^= sizeof(T) == 2 ? line % 8 : line % 4 * 2;
    } else if constexpr (kPieces == 8) {
      piece ^= line % 8;
    } else {
      piece ^= line / 2 % 4;
    }
    return (line * kPieces + piece) * 16;
  }

  // first: of the rows (columns) of this block; extent: how many there are in all.
  __device__ __forceinline__ Side(const Operand& operand, int64_t first, int64_t extent,
                                  int64_t kBegin)
      : line_(static_cast<int>(threadIdx.x) / kPieces),
        piece_(static_cast<int>(threadIdx.x) % kPieces),
        bytesOfLine_(operand.stride * static_cast<int64_t>(sizeof(T))) {
    const int64_t inLine = piece_ * kPerPiece<T>;
    const int64_t line = (kLines == Lines::AlongK ? first : kBegin) + line_;
    const int64_t at = (kLines == Lines::AlongK ? kBegin : first) + inLine;
    from_ = static_cast<const char*>(operand.data) + line * bytesOfLine_ +
            at * static_cast<int64_t>(sizeof(T));
    left_ = kLines == Lines::AlongK ? static_cast<int>(min(extent - first, int64_t{kExtent}))
                                    : static_cast<int>(min(extent - first, int64_t{kExtent})) -
                                          static_cast<int>(inLine);
  }

  // Copies the next step, of which `k` numbers exist (any number from 0 on).
  __device__ __forceinline__ void copy(char* shared, int k) {
#pragma unroll
    for (int i = 0; i < kCopies; i++) {
      const int line = line_ + i * kLineStep;
      const bool exists = kLines == Lines::AlongK ? line < left_ && piece_ * kPerPiece<T> < k
                                                  : line < k && left_ > 0;
      copyAsync16(shared + offset(line, piece_), from_ + i * kLineStep * bytesOfLine_, exists);
    }
    from_ += kLines == Lines::AlongK ? int64_t{kKBytes} : kK * bytesOfLine_;
  }

  // The fragments of 32 bytes of k (16 numbers in bf16, 8 in TF32) as mma takes them: `step` counts
  // these. A's of 16 rows from `first` on.
  static __device__ __forceinline__ void loadRows(uint32_t (&a)[4], const char* shared, int first,
                                                  int step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (kLines == Lines::AlongK) {
      loadMatrix4(a, shared + offset(first + lane % 16, 2 * step + lane / 16));
    } else if constexpr (sizeof(T) == 2) {
      loadMatrix4Transposed(
          a, shared + offset(16 * step + lane % 8 + lane / 16 * 8, first / 8 + lane / 8 % 2));
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = number(shared, step, i / 2, first + i % 2 * 8);
    }
    round(a);
  }
  // B's of 16 columns: b[0] and b[1] of the first 8, b[2] and b[3] of the others.
  static __device__ __forceinline__ void loadColumns(uint32_t (&b)[4], const char* shared,
                                                     int first, int step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (kLines == Lines::AlongK) {
      loadMatrix4(b, shared + offset(first + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
    } else if constexpr (sizeof(T) == 2) {
      loadMatrix4Transposed(b, shared + offset(16 * step + lane % 16, first / 8 + lane / 16));
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) b[i] = number(shared, step, i % 2, first + i / 2 * 8);
    }
    round(b);
  }

 private:
  // TF32 across k: this lane's number in the first or second four of k, row (column) `first`, a
  // multiple of 8, plus lane / 4. As `offset` has it; written so that lanes differ in four ways
  // only, whatever the step and the tile: four registers.
  static __device__ __forceinline__ uint32_t number(const char* shared, int step, int four,
                                                    int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32, q = lane % 4;
    const int ofLane = q * kPieces * 16 + (first / 8 % 4 ^ q) * 32 + lane / 4 * 4;
    const int ofTile = (8 * step + 4 * four) * kPieces * 16 + first / 32 * 128;
    return *reinterpret_cast<const uint32_t*>(shared + ofLane + ofTile);
  }
  // Rounding again what is TF32 already changes nothing.
  static __device__ __forceinline__ void round(uint32_t (&fragment)[4]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (uint32_t& bits : fragment) bits = toTf32(__uint_as_float(bits));
    }
  }

  static constexpr int kPieces =
      kLines == Lines::AlongK ? kKBytes / 16 : kExtent * static_cast<int>(sizeof(T)) / 16;
  static constexpr int kLineStep = kThreads / kPieces;
  static constexpr int kCopies = kBytes / 16 / kThreads;
  static_assert(kThreads % kPieces == 0 && kBytes % (16 * kThreads) == 0);
  static_assert(kLines == Lines::AlongK ? kPieces == 4 || kPieces == 8 : kPieces % 8 == 0);

  int line_, piece_;
  int64_t bytesOfLine_;
  const char* from_;
  int left_;  // lines along k; across it, rows (columns) from this thread's piece on
};

template <typename T>
__device__ __forceinline__ void multiplyAdd(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2) {
    mmaBf16(d, a, b);
  } else {
    mmaTf32(d, a, b);
  }
}

// Which tile of C a block computes: down columns of tiles, in bands of kBand rows of tiles, so that
// blocks that run at the same time share lines of A and B in the L2 cache.
struct TilePlace {
  int64_t m, n;
};
__device__ __forceinline__ TilePlace tilePlace(int block, int tilesM, int tilesN) {
  constexpr int kBand = 8;
  const int band = block / (kBand * tilesN), in = block % (kBand * tilesN);
  const int height = min(kBand, tilesM - band * kBand);
  return {band * kBand + in % height, in / height};
}

struct WarpPlace {
  int m, n;
};

template <typename T, typename Shape, Lines kLinesA, Lines kLinesB, typename Epilogue>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    productKernel(Product p, Epilogue epilogue) {
  awaitPrevious();
  using SideA = Side<T, kLinesA, Shape::kM, Shape::kKBytes, Shape::kThreads>;
  using SideB = Side<T, kLinesB, Shape::kN, Shape::kKBytes, Shape::kThreads>;
  constexpr int kK = SideA::kK, kStages = Shape::kStages;
  constexpr int kStageBytes = SideA::kBytes + SideB::kBytes;
  constexpr int kTilesM = Shape::kTilesM, kTilesN = Shape::kTilesN;
  static_assert(kTilesN % 2 == 0 && kStages >= 2);

  const TilePlace tile =
      tilePlace(static_cast<int>(blockIdx.x), static_cast<int>((p.m + Shape::kM - 1) / Shape::kM),
                static_cast<int>((p.n + Shape::kN - 1) / Shape::kN));
  const int m = static_cast<int>(tile.m) * Shape::kM, n = static_cast<int>(tile.n) * Shape::kN;
  const int64_t kBegin = static_cast<int64_t>(blockIdx.y) * p.kSplit;
  const int k = static_cast<int>(min(p.kSplit, p.k - kBegin));
  const int steps = (k + kK - 1) / kK;
  // Where a warp's part of the tile begins.
  const auto warpPlace = [](int warp) -> WarpPlace {
    return {warp % Shape::kWarpsM * 16 * kTilesM, warp / Shape::kWarpsM * 8 * kTilesN};
  };
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const auto [warpM, warpN] = warpPlace(warp);

  char* const shared = sharedMemory();
  SideA sideA(p.a, m, p.m, kBegin);
  SideB sideB(p.b, n, p.n, kBegin);
  // Ends a group even where there is nothing left to copy: the waits count groups.
  const auto copyStep = [&](int step) {
    if (step < steps) {
      char* const to = shared + step % kStages * kStageBytes;
      sideA.copy(to, k - step * kK);
      sideB.copy(to + SideA::kBytes, k - step * kK);
    }
    copyAsyncCommit();
  };

  float sums[kTilesM][kTilesN][4] = {};
#pragma unroll
  for (int step = 0; step < kStages - 1; step++) copyStep(step);
  for (int step = 0; step < steps; step++) {
    // This step has arrived for all threads, and all have done with the one before, whose place the
    // next copies take.
    copyAsyncWait<kStages - 2>();
    __syncthreads();
    copyStep(step + kStages - 1);
    const char* const a = shared + step % kStages * kStageBytes;
    const char* const b = a + SideA::kBytes;
#pragma unroll
    for (int part = 0; part < Shape::kKBytes / 32; part++) {
      uint32_t columns[kTilesN][2];
#pragma unroll
      for (int j = 0; j < kTilesN; j += 2) {
        uint32_t both[4];
        SideB::loadColumns(both, b, warpN + 8 * j, part);
        columns[j][0] = both[0], columns[j][1] = both[1];
        columns[j + 1][0] = both[2], columns[j + 1][1] = both[3];
      }
#pragma unroll
      for (int i = 0; i < kTilesM; i++) {
        uint32_t rows[4];
        SideA::loadRows(rows, a, warpM + 16 * i, part);
#pragma unroll
        for (int j = 0; j < kTilesN; j++) multiplyAdd<T>(sums[i][j], rows, columns[j]);
      }
    }
  }
  copyAsyncWait<0>();
  constexpr int kRegisters = std::min(255, 65536 / (Shape::kThreads * Shape::kBlocks));
  // From the first lane, so that the compiler keeps no register for it during the products.
  const auto [rowInTile, columnInTile] =
      warpPlace(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0));
  TileFinisher<kRegisters - 4 * kTilesM * kTilesN - 56, kTilesM, kTilesN, Epilogue> finisher(
      epilogue, m + rowInTile, n + columnInTile, p.m, p.n);
  finisher.readFirst();
  finisher.finish(sums);
}

template <typename T, typename Shape, Lines kLinesA, Lines kLinesB, typename Epilogue>
void multiply(const Context& context, const Product& p, int64_t splits, const Epilogue& epilogue) {
  const int64_t tiles = divideUp(p.m, Shape::kM) * divideUp(p.n, Shape::kN);
  launch(context, productKernel<T, Shape, kLinesA, kLinesB, Epilogue>,
         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits)), dim3(Shape::kThreads),
         Shape::kShared, p, epilogue);
}

}  // namespace dit::cuda
