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
//                     multiprocessor computes for 768 clocks on what it loads, 53 bytes a clock
//   registers         kTileN / 2 sums a thread, of 240
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

  __host__ __device__ int64_t tilesM() const { return (m + kTileM - 1) / kTileM; }
  template <int kTileN>
  __host__ __device__ int64_t tilesN() const {
    return (n + kTileN - 1) / kTileN;
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

// In an order in which neighbours share rows of a, so that these stay in L2.
template <int kTileN>
__device__ __forceinline__ Work workAt(const Problem& problem, int64_t i) {
  const int64_t tilesN = problem.tilesN<kTileN>(), tiles = problem.tilesM() * tilesN;
  const int split = static_cast<int>(i / tiles);
  i -= split * tiles;
  return {i / tilesN * kTileM, i % tilesN * kTileN, split, problem.begin(split),
          problem.begin(split + 1)};
}

template <int kTileN>
struct Stage {
  alignas(1024) char a[kTileM * kTileK * 2];
  alignas(1024) char b[kTileN * kTileK * 2];
};

// kTransposed: M (or N) is the contiguous dimension, not K. Such an operand comes in boxes of 64 of
// it and 64 of K.
template <int kTileN, bool kTransposedA, bool kTransposedB>
struct Pipeline {
  static constexpr int kStages = stagesFor(kTileN);

  Stage<kTileN>* stages;
  uint64_t *full, *empty;  // [kStages] barriers

  __device__ explicit Pipeline(char* shared)
      : stages(reinterpret_cast<Stage<kTileN>*>(shared)),
        full(reinterpret_cast<uint64_t*>(shared + kStages * sizeof(Stage<kTileN>))),
        empty(full + kStages) {}

  __device__ __forceinline__ void load(const CUtensorMap* a, const CUtensorMap* b, int slot,
                                       const Work& work, int step) const {
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
    if constexpr (kTransposedB) {
      for (int i = 0; i < kTileN / kBoxColumns; i++) {
        loadBox2(stage.b + i * kBoxBytes, b, barrier, column + i * kBoxColumns, k);
      }
    } else {
      loadBox2(stage.b, b, barrier, k, column);
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
template <int kTileN, bool kTransposedA, bool kTransposedB, typename Epilogue>
__global__ void __launch_bounds__(kThreads, 1)
    gemmKernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
               const __grid_constant__ Problem problem, const __grid_constant__ Epilogue epilogue) {
  using Ring = Pipeline<kTileN, kTransposedA, kTransposedB>;
  constexpr int kStages = Ring::kStages;
  const Ring ring(sharedMemory());
  const int thread = static_cast<int>(threadIdx.x), warpgroup = thread / kWarpgroup;
  if (thread == 0) {
    prefetchTensorMap(&a);
    prefetchTensorMap(&b);
    for (int i = 0; i < kStages; i++) {
      mbarrierInit(&ring.full[i], 1);
      mbarrierInit(&ring.empty[i], kConsumers * kWarpgroup / 32);  // a warp each
    }
    mbarrierInitFence();
  }
  __syncthreads();

  const int64_t count =
      problem.tilesM() * problem.tilesN<kTileN>() * static_cast<int64_t>(problem.splits);
  int slot = 0, phase = 0;
  const auto advance = [&] {
    if (++slot == kStages) {
      slot = 0;
      phase ^= 1;
    }
  };

  if (warpgroup == kConsumers) {
    shrinkRegisters<24>();
    if (thread % kWarpgroup != 0) return;
    for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
      const Work work = workAt<kTileN>(problem, i);
      for (int step = work.begin; step < work.end; step++) {
        mbarrierWait(&ring.empty[slot], phase ^ 1);
        ring.load(&a, &b, slot, work, step);
        advance();
      }
    }
    return;
  }

  growRegisters<240>();
  const int lane = thread % 32, warp = thread % kWarpgroup / 32;
  const auto release = [&](int of) {
    if (lane == 0) mbarrierArrive(&ring.empty[of]);
  };
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const Work work = workAt<kTileN>(problem, i);
    float sums[kTileN / 2];
    int previous = slot;
    for (int step = work.begin; step < work.end; step++) {
      mbarrierWait(&ring.full[slot], phase);
      ring.multiply(slot, warpgroup, sums, step > work.begin);
      if (step > work.begin) {
        wgmmaWait<1>();
        release(previous);
      }
      previous = slot;
      advance();
    }
    wgmmaWait<0>();
    release(previous);
    wgmmaTouch(sums);
    finishTiles(reinterpret_cast<const float(&)[1][kTileN / 8][4]>(sums),
                work.row + warpgroup * kBlockM + warp * 16, work.column, problem.m, problem.n,
                epilogue.part(work.split));
  }
}

// An epilogue for products whose K is in one part.
template <typename Epilogue>
struct Whole {
  Epilogue epilogue;
  __device__ __forceinline__ const Epilogue& part(int) const { return epilogue; }
};

template <int kTileN, bool kTransposedA, bool kTransposedB, typename Epilogue>
void launchGemm(const Context& context, const CUtensorMap& a, const CUtensorMap& b,
                const Problem& problem, const Epilogue& epilogue) {
  const int64_t work = problem.tilesM() * problem.tilesN<kTileN>() * problem.splits;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(work, context.multiprocessors));
  launch(context, gemmKernel<kTileN, kTransposedA, kTransposedB, Epilogue>, blocks, kThreads,
         sharedBytesFor(kTileN), a, b, problem, epilogue);
}

}  // namespace dit::cuda::hopper
