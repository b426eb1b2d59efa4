#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/ptx_hopper.cuh"
#include "cuda/tensor_map.h"

// c = a b on Hopper, for operands of bf16 and sums in fp32: a [M, K], b [K, N], each stored with
// either of its dimensions contiguous.
//
// One block per multiprocessor, three warpgroups. The first only starts copies: it fills a ring of
// stages with boxes of a and b, tile after tile. The other two compute the upper and the lower half
// of a tile of 128 x kTileN. Nothing but the ring ties them to one another, so one may be up to a
// ring ahead, and its epilogue runs while the other's products keep the tensor cores busy: with K =
// 1152 the products of a tile take only 18 steps.
//
//   bytes of a step   (128 + kTileN) 128, operations 2 * 128 * kTileN * 64: with kTileN = 192 a
//                     multiprocessor computes for 768 clocks on what it loads, 53 bytes a clock,
//                     which is more than the L2 cache gives to all of them (about 31). So two
//                     blocks, a cluster, take tiles one below the other: each loads half of b for
//                     both, 36 bytes a clock
//   registers         kTileN / 2 sums a thread, of 232
//
// The sums of an element run over K in one order, 16 at a time, whatever the shape of the tile and
// however many rows there are.

namespace dit::cuda::hopper {

constexpr int kTileM = 128;
constexpr int kTileK = 64;  // 128 bytes, the width of the swizzle
constexpr int kStepK = 16;  // of one instruction
constexpr int kWarpgroup = 128;
constexpr int kBlockM = 64;                   // of one warpgroup
constexpr int kConsumers = kTileM / kBlockM;  // warpgroups
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kConsumerRegisters = 232;
constexpr int kBoxBytes = kTileK * kBoxColumns * 2;  // of 64 x 64 numbers

constexpr int stageBytes(int tileN) { return (kTileM + tileN) * kTileK * 2; }
// As many as fit into 227 KB beside the barriers.
constexpr int stagesFor(int tileN) {
  const int most = (226 << 10) / stageBytes(tileN);
  return most < 8 ? most : 8;
}
constexpr size_t sharedBytesFor(int tileN) {
  const int stages = stagesFor(tileN);
  return static_cast<size_t>(stages) * stageBytes(tileN) + 2 * sizeof(uint64_t) * stages;
}

// How K is divided among `splits` parts, each computed by itself: the epilogue is told which.
struct Problem {
  int64_t m, n, k;
  int splits = 1;

  // `high`: so many tiles one below the other count as one.
  __host__ __device__ int64_t rowsOfTiles(int high) const {
    return (m + kTileM * high - 1) / (kTileM * high);
  }
  template <int kTileN>
  __host__ __device__ int64_t tilesN() const {
    return (n + kTileN - 1) / kTileN;
  }
  template <int kTileN>
  __host__ __device__ int64_t pieces(int high) const {
    return rowsOfTiles(high) * tilesN<kTileN>() * splits;
  }
  __host__ __device__ int steps() const { return static_cast<int>((k + kTileK - 1) / kTileK); }
  // Part i has the steps [begin(i), begin(i + 1)).
  __host__ __device__ int begin(int i) const {
    return static_cast<int>(static_cast<int64_t>(steps()) * i / splits);
  }
};

// One piece of work: a tile of c, and a part of K.
struct Work {
  int64_t row, column;
  int split, begin, end;  // steps
};

// Piece i of the blocks of a cluster; the rank says which of kCluster tiles one below the other it
// is. In an order in which neighbours share rows of a, so that these stay in L2.
template <int kTileN, int kCluster>
__device__ __forceinline__ Work workAt(const Problem& problem, int64_t i, int rank) {
  const int64_t tilesN = problem.tilesN<kTileN>(), tiles = problem.rowsOfTiles(kCluster) * tilesN;
  const int split = static_cast<int>(i / tiles);
  i -= split * tiles;
  return {(i / tilesN * kCluster + rank) * kTileM, i % tilesN * kTileN, split, problem.begin(split),
          problem.begin(split + 1)};
}

template <int kTileN>
struct Stage {
  alignas(1024) char a[kTileM * kTileK * 2];
  alignas(1024) char b[kTileN * kTileK * 2];
};

// kTransposed: M (or N) is the contiguous dimension, not K. Such an operand comes in boxes of 64 of
// it and 64 of K.
template <int kTileN, int kCluster, bool kTransposedA, bool kTransposedB>
struct Pipeline {
  static constexpr int kStages = stagesFor(kTileN);

  Stage<kTileN>* stages;
  uint64_t *full, *empty;  // [kStages] barriers

  __device__ explicit Pipeline(char* shared)
      : stages(reinterpret_cast<Stage<kTileN>*>(shared)),
        full(reinterpret_cast<uint64_t*>(shared + kStages * sizeof(Stage<kTileN>))),
        empty(full + kStages) {}

  // rank: of this block in its cluster, of whose b it brings a share: rows of it that lie together.
  __device__ __forceinline__ void load(const CUtensorMap* a, const CUtensorMap* b, int slot,
                                       const Work& work, int step, int rank) const {
    Stage<kTileN>& stage = stages[slot];
    uint64_t* const barrier = &full[slot];
    const int row = static_cast<int>(work.row), column = static_cast<int>(work.column);
    const int k = step * kTileK;
    mbarrierArriveExpect(barrier, stageBytes(kTileN));
    if constexpr (kTransposedA) {
      for (int i = 0; i < kTileM / kBoxColumns; i++) {
        loadBox2(stage.a + i * kBoxBytes, a, barrier, row + i * kBoxColumns, k);
      }
    } else {
      loadBox2(stage.a, a, barrier, k, row);
    }
    constexpr uint16_t kAll = (1 << kCluster) - 1;
    if constexpr (kTransposedB) {
      constexpr int kRows = kTileK / kCluster;
      for (int i = 0; i < kTileN / kBoxColumns; i++) {
        loadShare(stage.b + i * kBoxBytes + rank * kRows * 128, b, barrier,
                  column + i * kBoxColumns, k + rank * kRows, kAll);
      }
    } else {
      constexpr int kRows = kTileN / kCluster;
      loadShare(stage.b + rank * kRows * 128, b, barrier, k, column + rank * kRows, kAll);
    }
  }

  static __device__ __forceinline__ void loadShare(char* to, const CUtensorMap* map,
                                                   uint64_t* barrier, int x, int y,
                                                   uint16_t blocks) {
    if constexpr (kCluster > 1) {
      loadBox2(to, map, barrier, x, y, blocks);
    } else {
      loadBox2(to, map, barrier, x, y);
    }
  }

  // A warp has done with a stage: the blocks that write to it hear of it.
  __device__ __forceinline__ void release(int slot) const {
    if (static_cast<int>(threadIdx.x) % 32 != 0) return;
    if constexpr (kCluster > 1) {
#pragma unroll
      for (int rank = 0; rank < kCluster; rank++) mbarrierArriveAt(&empty[slot], rank);
    } else {
      mbarrierArrive(&empty[slot]);
    }
  }

  // Starts the products of a stage for the rows of one consumer.
  __device__ __forceinline__ void multiply(int slot, int consumer, float (&sums)[kTileN / 2],
                                           bool accumulate) const {
    const Stage<kTileN>& stage = stages[slot];
    constexpr int kAtom = 8 * 128;  // bytes of 8 rows
    wgmmaFence();
#pragma unroll
    for (int k = 0; k < kTileK / kStepK; k++) {
      // K is contiguous: on within the row. Else: on by 16 rows.
      const int offsetA = k * (kTransposedA ? 2 * kAtom : kStepK * 2);
      const int offsetB = k * (kTransposedB ? 2 * kAtom : kStepK * 2);
      // 64 rows with K contiguous, or a box, are as many bytes.
      const uint64_t a = matrixDescriptor(stage.a + consumer * kBoxBytes + offsetA, kBoxBytes,
                                          kAtom, Swizzle::Bytes128);
      const uint64_t b = matrixDescriptor(stage.b + offsetB, kBoxBytes, kAtom, Swizzle::Bytes128);
      wgmmaAsync<kTransposedA, kTransposedB>(sums, a, b, accumulate || k > 0);
    }
    wgmmaCommit();
  }
};

// Epilogue: see epilogue.cuh; `epilogue.part(split)` gives that of a part of K.
template <int kTileN, int kCluster, bool kTransposedA, bool kTransposedB, typename Epilogue>
__global__ void __launch_bounds__(kThreads, 1)
    gemmKernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
               const __grid_constant__ Problem problem, const __grid_constant__ Epilogue epilogue) {
  using Ring = Pipeline<kTileN, kCluster, kTransposedA, kTransposedB>;
  constexpr int kStages = Ring::kStages;
  const Ring ring(sharedMemory());
  const int thread = static_cast<int>(threadIdx.x), warpgroup = thread / kWarpgroup;
  if (thread == 0) {
    prefetchTensorMap(&a);
    prefetchTensorMap(&b);
    for (int i = 0; i < kStages; i++) {
      mbarrierInit(&ring.full[i], 1);
      mbarrierInit(&ring.empty[i], kCluster * kConsumers * kWarpgroup / 32);  // a warp each
    }
    mbarrierInitFence();
  }
  const auto syncBlocks = [] {
    if constexpr (kCluster > 1) {
      clusterSync();
    } else {
      __syncthreads();
    }
  };
  syncBlocks();

  const int rank = kCluster > 1 ? clusterRank() : 0;
  const int64_t count = problem.pieces<kTileN>(kCluster);
  const int64_t first = blockIdx.x / kCluster, stride = gridDim.x / kCluster;
  int slot = 0, phase = 0;
  const auto advance = [&] {
    if (++slot == kStages) {
      slot = 0;
      phase ^= 1;
    }
  };

  if (warpgroup == kConsumers) {
    shrinkRegisters<40>();
    if (thread % kWarpgroup == 0) {
      for (int64_t i = first; i < count; i += stride) {
        const Work work = workAt<kTileN, kCluster>(problem, i, rank);
        for (int step = work.begin; step < work.end; step++) {
          mbarrierWait(&ring.empty[slot], phase ^ 1);
          ring.load(&a, &b, slot, work, step, rank);
          advance();
        }
      }
    }
  } else {
    growRegisters<kConsumerRegisters>();
    for (int64_t i = first; i < count; i += stride) {
      const Work work = workAt<kTileN, kCluster>(problem, i, rank);
      const int warp = thread % kWarpgroup / 32;
      const auto& last = epilogue.part(work.split);
      TileFinisher<kConsumerRegisters - kTileN / 2 - 56, 1, kTileN / 8,
                   std::decay_t<decltype(last)>>
          finisher(last, static_cast<int>(work.row) + warpgroup * kBlockM + warp * 16,
                   static_cast<int>(work.column), problem.m, problem.n);
      // What it reads is there when the products are.
      finisher.readFirst();
      float sums[kTileN / 2];
      // The first step stands by itself: a step that only perhaps waits for the one before would
      // make the compiler let every product wait for the last (scripts/cuda/rules.mjs looks after
      // it).
      mbarrierWait(&ring.full[slot], phase);
      ring.multiply(slot, warpgroup, sums, false);
      int previous = slot;
      advance();
      for (int step = work.begin + 1; step < work.end; step++) {
        mbarrierWait(&ring.full[slot], phase);
        ring.multiply(slot, warpgroup, sums, true);
        wgmmaWait<1>();
        ring.release(previous);
        previous = slot;
        advance();
      }
      wgmmaWait<0>();
      ring.release(previous);
      wgmmaTouch(sums);
      finisher.finish(reinterpret_cast<const float(&)[1][kTileN / 8][4]>(sums));
    }
  }
  // No block ends while another still writes to its memory.
  if constexpr (kCluster > 1) {
    __syncwarp();
    clusterSync();
  }
}

// An epilogue for products whose K is in one part.
template <typename Epilogue>
struct Whole {
  Epilogue epilogue;
  __device__ __forceinline__ const Epilogue& part(int) const { return epilogue; }
};

// An operand as it lies in memory: rows of bf16, `stride` numbers apart.
struct Matrix {
  const void* data;
  int64_t rows, columns, stride;

  CUtensorMap map(int boxRows) const { return matrixMap(data, rows, columns, stride, boxRows); }
};

template <int kTileN, int kCluster, bool kTransposedA, bool kTransposedB, typename Epilogue>
void launchGemm(const Context& context, const Matrix& a, const Matrix& b, const Problem& problem,
                const Epilogue& epilogue) {
  const int64_t clusters =
      std::min<int64_t>(problem.pieces<kTileN>(kCluster), context.multiprocessors / kCluster);
  launchClusters(context, kCluster,
                 gemmKernel<kTileN, kCluster, kTransposedA, kTransposedB, Epilogue>,
                 static_cast<unsigned>(clusters * kCluster), kThreads, sharedBytesFor(kTileN),
                 a.map(kTransposedA ? kTileK : kTileM),
                 b.map((kTransposedB ? kTileK : kTileN) / kCluster), problem, epilogue);
}

}  // namespace dit::cuda::hopper
