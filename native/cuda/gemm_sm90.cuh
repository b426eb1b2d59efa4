#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/ptx_hopper.cuh"
#include "cuda/tensor_map.h"

// c = a b on Hopper, for operands of bf16 and sums in fp32: a [M, K], b [K, N], each stored with
// either of its dimensions contiguous. Or in TF32, with K contiguous: numbers twice as long, so a
// step has half as many; b is rounded in memory, a on its way through registers. A source says
// where a comes from: a matrix here, the pixels under a convolution's taps in conv_sm90.cu.
//
// One block per multiprocessor, three warpgroups. The last only starts copies: it fills a ring of
// stages with boxes of a and b, tile after tile. The other two compute the upper and the lower half
// of a tile. Nothing but the ring ties them to one another, so one may be up to a ring ahead, and
// its epilogue runs while the other's products keep the tensor cores busy: with K = 1152 the
// products of a tile take only 18 steps. GemmShape has what may be tuned: with tiles of 128 x 192,
//
//   bytes of a step   (128 + 192) 128, operations 2 * 128 * 192 * 64: a multiprocessor computes for
//                     768 clocks on what it loads, 53 bytes a clock, which is more than the L2
//                     cache gives to all of them (about 31). So two blocks, a cluster, take tiles
//                     one below the other: each loads half of b for both, 36 bytes a clock
//   registers         96 sums a thread, of 232
//
// The sums of an element run over K in one order, 16 (TF32: 8) at a time, whatever the shape of the
// tile and however many rows there are.

namespace dit::cuda::hopper {

constexpr int kRowBytes = 128;  // of a stage: the width of the swizzle
constexpr int kStepBytes = 32;  // of one instruction
constexpr int kWarpgroup = 128;
constexpr int kBlockM = 64;                     // rows of one instruction
constexpr int kBoxBytes = kBlockM * kRowBytes;  // of 64 rows
constexpr int kSteps = kRowBytes / kStepBytes;  // instructions of a stage
static_assert(kBoxColumns * sizeof(Bf16) == kRowBytes);

// What may be tuned without a change of the bits. Tiles of kM x kN, in clusters of kBlocks; a ring
// of at most kMostStages, fewer where they do not fit. kGroup rows of tiles make a group, within
// which tiles are taken column by column: 1 keeps neighbours at the same rows of a, a large one at
// the same columns of b. kTurns: each consumer computes whole tiles, in turn with the others
// ("ping-pong"), so that an epilogue always has another's products beside it; b is then read from
// shared memory for fewer rows, and more of it is copied for the same sums.
//
// T: of the operands, Bf16, or float for TF32.
template <int kM, int kN, int kBlocks = 1, int kMostStages = 8, int kRowsOfGroup = 1,
          bool kInTurns = false, typename T = Bf16>
struct GemmShape {
  using Element = T;
  static constexpr bool kTf32 = sizeof(T) == 4;
  static constexpr int kTileK = kRowBytes / sizeof(T);

  static constexpr int kTileM = kM, kTileN = kN, kCluster = kBlocks, kGroup = kRowsOfGroup;
  static constexpr bool kTurns = kInTurns;

  static constexpr int kConsumers = 2;                                 // warpgroups
  static constexpr int kRows = kTurns ? kTileM : kTileM / kConsumers;  // of a consumer
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kConsumerRegisters = 232, kProducerRegisters = 40;

  static constexpr int kStageBytes = (kTileM + kTileN) * kRowBytes;
  // As many as fit into 227 KB beside the barriers.
  static constexpr int kStages = std::min(kMostStages, (226 << 10) / kStageBytes);
  static constexpr size_t kSharedBytes =
      static_cast<size_t>(kStages) * (kStageBytes + 2 * sizeof(uint64_t)) +
      (kTurns ? kConsumers * sizeof(uint64_t) : 0);
  static_assert(kRows % kBlockM == 0 && kTileN % kBoxColumns == 0 && kStages >= 2);
};

// How K is divided among `splits` parts, each computed by itself: the epilogue is told which.
struct Problem {
  int64_t m, n, k;
  int splits = 1;

  // Of the tiles of a cluster, one below the other.
  template <typename Shape>
  __host__ __device__ int64_t rowsOfClusters() const {
    return (m + Shape::kTileM * Shape::kCluster - 1) / (Shape::kTileM * Shape::kCluster);
  }
  template <typename Shape>
  __host__ __device__ int64_t columnsOfTiles() const {
    return (n + Shape::kTileN - 1) / Shape::kTileN;
  }
  // For a cluster each.
  template <typename Shape>
  __host__ __device__ int64_t pieces() const {
    return rowsOfClusters<Shape>() * columnsOfTiles<Shape>() * splits;
  }
  template <typename Shape>
  __host__ __device__ int steps() const {
    return static_cast<int>((k + Shape::kTileK - 1) / Shape::kTileK);
  }
  // Part i has the steps [begin(i), begin(i + 1)).
  template <typename Shape>
  __host__ __device__ int begin(int i) const {
    return static_cast<int>(static_cast<int64_t>(steps<Shape>()) * i / splits);
  }
};

// One piece of work: a tile of c, and a part of K.
struct Work {
  int64_t row, column;
  int split, begin, end;  // steps
};

// Piece i of the blocks of a cluster; the rank says which of its tiles, one below the other, it is.
template <typename Shape>
__device__ __forceinline__ Work workAt(const Problem& problem, int64_t i, int rank) {
  const int64_t columns = problem.columnsOfTiles<Shape>(), rows = problem.rowsOfClusters<Shape>();
  const int split = static_cast<int>(i / (rows * columns));
  i -= split * rows * columns;
  const int64_t first = i / (Shape::kGroup * columns) * Shape::kGroup;  // of the group
  // The last group may be lower.
  const int64_t high = Shape::kGroup == 1 ? 1 : min(int64_t{Shape::kGroup}, rows - first);
  i -= first * columns;
  const int64_t row = (first + i % high) * Shape::kCluster + rank;
  return {row * Shape::kTileM, i / high * Shape::kTileN, split, problem.begin<Shape>(split),
          problem.begin<Shape>(split + 1)};
}

template <typename Shape>
struct Stage {
  alignas(1024) char a[Shape::kTileM * kRowBytes];
  alignas(1024) char b[Shape::kTileN * kRowBytes];
};

// Operand a of a tile, brought to shared memory a step of K at a time: [kTileM, kTileK], or with
// kTransposed boxes of 64 of M and 64 of K.
template <bool kTransposedA>
struct MatrixSource {
  static constexpr bool kTransposed = kTransposedA;

  struct Tile {
    int row, column;  // of c; `column` is where b's rows begin
    int k;            // of the next step
  };
  template <typename Shape>
  __device__ __forceinline__ Tile tile(const Work& work) const {
    return {static_cast<int>(work.row), static_cast<int>(work.column), work.begin * Shape::kTileK};
  }
  // Starts the copies of the tile's next step.
  template <typename Shape>
  __device__ __forceinline__ void load(char* to, const CUtensorMap* a, uint64_t* barrier,
                                       Tile& tile) const {
    if constexpr (kTransposed) {
      for (int i = 0; i < Shape::kTileM / kBoxColumns; i++) {
        loadBox2(to + i * kBoxBytes, a, barrier, tile.row + i * kBoxColumns, tile.k);
      }
    } else {
      loadBox2(to, a, barrier, tile.k, tile.row);
    }
    tile.k += Shape::kTileK;
  }
};

// kTransposed: M (or N) is the contiguous dimension, not K. Such an operand comes in boxes of 64 of
// it and 64 of K.
template <typename Shape, typename Source, bool kTransposedB>
struct Pipeline {
  static constexpr bool kTransposedA = Source::kTransposed;
  static constexpr int kTileM = Shape::kTileM, kTileN = Shape::kTileN, kCluster = Shape::kCluster;
  static constexpr int kStages = Shape::kStages, kBlocks = Shape::kRows / kBlockM;
  static_assert(!Shape::kTf32 || (!kTransposedA && !kTransposedB), "wgmma takes TF32 along K only");

  Stage<Shape>* stages;
  uint64_t *full, *empty;  // [kStages] barriers
  uint64_t* turns;         // of each consumer, where they take turns

  __device__ explicit Pipeline(char* shared)
      : stages(reinterpret_cast<Stage<Shape>*>(shared)),
        full(reinterpret_cast<uint64_t*>(shared + kStages * sizeof(Stage<Shape>))),
        empty(full + kStages),
        turns(empty + kStages) {}

  // rank: of this block in its cluster, of whose b it brings a share: rows of it that lie together.
  __device__ __forceinline__ void load(const Source& source, const CUtensorMap* a,
                                       const CUtensorMap* b, int slot, typename Source::Tile& tile,
                                       int step, int rank) const {
    Stage<Shape>& stage = stages[slot];
    uint64_t* const barrier = &full[slot];
    const int column = tile.column, k = step * Shape::kTileK;
    mbarrierArriveExpect(barrier, Shape::kStageBytes);
    source.template load<Shape>(stage.a, a, barrier, tile);
    constexpr uint16_t kAll = (1 << kCluster) - 1;
    if constexpr (kTransposedB) {
      constexpr int kRows = Shape::kTileK / kCluster;
      for (int i = 0; i < kTileN / kBoxColumns; i++) {
        loadShare(stage.b + i * kBoxBytes + rank * kRows * kRowBytes, b, barrier,
                  column + i * kBoxColumns, k + rank * kRows, kAll);
      }
    } else {
      constexpr int kRows = kTileN / kCluster;
      loadShare(stage.b + rank * kRows * kRowBytes, b, barrier, k, column + rank * kRows, kAll);
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

  // What a thread holds of a stage of a while its products run: none of it in bf16.
  struct Fragments {
    uint32_t a[Shape::kTf32 ? kBlocks : 1][kSteps][4];
  };
  // Registers of a thread that products take: sums, and the fragments of two stages.
  static constexpr int kHeld = kBlocks * (kTileN / 2 + (Shape::kTf32 ? 2 * 4 * kSteps : 0));

  // TF32: reads a consumer's rows of the tile, from `row` on, and rounds them. Eight rows of 16
  // bytes, which ldmatrix reads at a time, are numbers as mmaTf32 wants them, and the swizzle has
  // them in different banks.
  __device__ __forceinline__ void read(int slot, int row, Fragments& to) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
    const int first = lane % 16 * kRowBytes + (lane / 16 ^ lane % 8) * 16;
#pragma unroll
    for (int block = 0; block < kBlocks; block++) {
      const char* const rows = stages[slot].a + (row + block * kBlockM + warp * 16) * kRowBytes;
#pragma unroll
      for (int k = 0; k < kSteps; k++) {
        uint32_t(&a)[4] = to.a[block][k];
        loadMatrix4(a, rows + (first ^ k * kStepBytes));
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = toTf32(__uint_as_float(a[i]));
      }
    }
  }

  // Starts the products of a stage for a consumer's rows of the tile, from `row` on.
  __device__ __forceinline__ void multiply(int slot, int row, Fragments& fragments,
                                           float (&sums)[kBlocks][kTileN / 2],
                                           bool accumulate) const {
    const Stage<Shape>& stage = stages[slot];
    constexpr int kAtom = 8 * kRowBytes;
    if constexpr (Shape::kTf32) read(slot, row, fragments);
    wgmmaFence();
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      // K is contiguous: on within the row. Else: on by 16 rows.
      const int offsetA = k * (kTransposedA ? 2 * kAtom : kStepBytes);
      const int offsetB = k * (kTransposedB ? 2 * kAtom : kStepBytes);
      const uint64_t b = matrixDescriptor(stage.b + offsetB, kBoxBytes, kAtom, Swizzle::Bytes128);
#pragma unroll
      for (int block = 0; block < kBlocks; block++) {
        if constexpr (Shape::kTf32) {
          wgmmaTf32Async(sums[block], fragments.a[block][k], b, accumulate || k > 0);
        } else {
          // 64 rows with K contiguous, or a box, are as many bytes.
          const char* const rows = stage.a + (row / kBlockM + block) * kBoxBytes;
          const uint64_t a = matrixDescriptor(rows + offsetA, kBoxBytes, kAtom, Swizzle::Bytes128);
          wgmmaAsync<kTransposedA, kTransposedB>(sums[block], a, b, accumulate || k > 0);
        }
      }
    }
    wgmmaCommit();
  }
};

// Epilogue: see epilogue.cuh; `epilogue.part(split)` gives that of a part of K.
template <typename Shape, typename Source, bool kTransposedB, typename Epilogue>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    gemmKernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
               const __grid_constant__ Problem problem, const __grid_constant__ Source source,
               const __grid_constant__ Epilogue epilogue) {
  using Ring = Pipeline<Shape, Source, kTransposedB>;
  constexpr int kStages = Shape::kStages, kCluster = Shape::kCluster, kTileN = Shape::kTileN;
  const Ring ring(sharedMemory());
  const int thread = static_cast<int>(threadIdx.x), warpgroup = thread / kWarpgroup;
  if (thread == 0) {
    prefetchTensorMap(&a);
    prefetchTensorMap(&b);
    // Each warp that reads a stage gives it back.
    constexpr int kReaders = (Shape::kTurns ? 1 : Shape::kConsumers) * kWarpgroup / 32;
    for (int i = 0; i < kStages; i++) {
      mbarrierInit(&ring.full[i], 1);
      mbarrierInit(&ring.empty[i], kCluster * kReaders);
    }
    if constexpr (Shape::kTurns) {
      for (int i = 0; i < Shape::kConsumers; i++) mbarrierInit(&ring.turns[i], kReaders);
    }
    mbarrierInitFence();
  }
  awaitPrevious();
  const auto syncBlocks = [] {
    if constexpr (kCluster > 1) {
      clusterSync();
    } else {
      __syncthreads();
    }
  };
  syncBlocks();

  const int rank = kCluster > 1 ? clusterRank() : 0;
  const int64_t count = problem.pieces<Shape>();
  const int64_t first = blockIdx.x / kCluster, stride = gridDim.x / kCluster;
  int slot = 0, phase = 0;
  const auto advance = [&] {
    if (++slot == kStages) {
      slot = 0;
      phase ^= 1;
    }
  };

  if (warpgroup == Shape::kConsumers) {
    shrinkRegisters<Shape::kProducerRegisters>();
    if (thread % kWarpgroup == 0) {
      for (int64_t i = first; i < count; i += stride) {
        const Work work = workAt<Shape>(problem, i, rank);
        auto tile = source.template tile<Shape>(work);
        for (int step = work.begin; step < work.end; step++) {
          mbarrierWait(&ring.empty[slot], phase ^ 1);
          ring.load(source, &a, &b, slot, tile, step, rank);
          advance();
        }
      }
    }
  } else {
    growRegisters<Shape::kConsumerRegisters>();
    int turn = 0, turnPhase = warpgroup == 0 ? 1 : 0;
    for (int64_t i = first; i < count; i += stride) {
      const Work work = workAt<Shape>(problem, i, rank);
      if constexpr (Shape::kTurns) {
        const bool mine = turn == warpgroup;
        turn = (turn + 1) % Shape::kConsumers;
        if (!mine) {
          const int after = slot + work.end - work.begin;
          phase ^= after / kStages % 2;
          slot = after % kStages;
          continue;
        }
        // A stage's phases have but two names: the tile before has to be through the ring.
        mbarrierWait(&ring.turns[warpgroup], turnPhase);
        turnPhase ^= 1;
      }
      const int warp = thread % kWarpgroup / 32;
      const int row = Shape::kTurns ? 0 : warpgroup * Shape::kRows;  // within the tile
      const auto& last = epilogue.part(work.split);
      // The derivative of gelu in fp32 takes more registers than what others do.
      using Read = typename std::decay_t<decltype(last)>::Read;
      constexpr int kOwn = Shape::kTf32 && sizeof(Read) <= sizeof(float4) ? 80 : 56;
      // Registers for reads ahead; with two blocks there is no room for them.
      constexpr int kSpare =
          Ring::kBlocks == 1 ? Shape::kConsumerRegisters - Ring::kHeld - kOwn : 0;
      using Finisher = TileFinisher<kSpare, 1, kTileN / 8, std::decay_t<decltype(last)>>;
      const auto finisherAt = [&](int block) {
        return Finisher(last, static_cast<int>(work.row) + row + block * kBlockM + warp * 16,
                        static_cast<int>(work.column), problem.m, problem.n);
      };
      Finisher finisher = finisherAt(0);
      // What it reads is there when the products are.
      finisher.readFirst();
      float sums[Ring::kBlocks][kTileN / 2];
      // The first step stands by itself: a step that only perhaps waits for the one before would
      // make the compiler let every product wait for the last (scripts/cuda/rules.mjs looks after
      // it).
      typename Ring::Fragments even, odd;
      mbarrierWait(&ring.full[slot], phase);
      ring.multiply(slot, row, even, sums, false);
      int previous = slot;
      advance();
      // The products of the step before run until this one's have begun.
      const auto next = [&](typename Ring::Fragments& fragments) {
        mbarrierWait(&ring.full[slot], phase);
        ring.multiply(slot, row, fragments, sums, true);
        wgmmaWait<1>();
        ring.release(previous);
        previous = slot;
        advance();
      };
      int step = work.begin + 1;
      if constexpr (Shape::kTf32) {
        for (; step + 1 < work.end; step += 2) {
          next(odd);
          next(even);
        }
        if (step < work.end) next(odd);
      } else {
        for (; step < work.end; step++) next(even);
      }
      if constexpr (Shape::kTurns) {
        if (thread % 32 == 0) mbarrierArrive(&ring.turns[(warpgroup + 1) % Shape::kConsumers]);
      }
      wgmmaWait<0>();
      ring.release(previous);
#pragma unroll
      for (int block = 0; block < Ring::kBlocks; block++) wgmmaTouch(sums[block]);
      using Tiles = const float(&)[1][kTileN / 8][4];  // as the epilogue sees them
      finisher.finish(reinterpret_cast<Tiles>(sums[0]));
#pragma unroll
      for (int block = 1; block < Ring::kBlocks; block++) {
        Finisher next = finisherAt(block);
        next.readFirst();
        next.finish(reinterpret_cast<Tiles>(sums[block]));
      }
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

// An operand as it lies in memory: rows that are `stride` numbers apart.
struct Matrix {
  const void* data;
  int64_t rows, columns, stride;

  template <typename Element>
  CUtensorMap map(int boxRows) const {
    constexpr DType kType = sizeof(Element) == 2 ? DType::BF16 : DType::F32;
    return matrixMap(data, kType, rows, columns, stride, boxRows);
  }
};

// a: as the source reads it.
template <typename Shape, bool kTransposedB, typename Source, typename Epilogue>
void launchGemm(const Context& context, const CUtensorMap& a, const Matrix& b,
                const Problem& problem, const Source& source, const Epilogue& epilogue) {
  using Element = typename Shape::Element;
  constexpr int kCluster = Shape::kCluster;
  const int64_t clusters =
      std::min<int64_t>(problem.pieces<Shape>(), context.multiprocessors / kCluster);
  launchClusters(context, kCluster, gemmKernel<Shape, Source, kTransposedB, Epilogue>,
                 static_cast<unsigned>(clusters * kCluster), Shape::kThreads, Shape::kSharedBytes,
                 a,
                 b.template map<Element>((kTransposedB ? Shape::kTileK : Shape::kTileN) / kCluster),
                 problem, source, epilogue);
}

template <typename Shape, bool kTransposedA, bool kTransposedB, typename Epilogue>
void launchGemm(const Context& context, const Matrix& a, const Matrix& b, const Problem& problem,
                const Epilogue& epilogue) {
  const CUtensorMap map =
      a.template map<typename Shape::Element>(kTransposedA ? Shape::kTileK : Shape::kTileM);
  launchGemm<Shape, kTransposedB>(context, map, b, problem, MatrixSource<kTransposedA>{}, epilogue);
}

}  // namespace dit::cuda::hopper
