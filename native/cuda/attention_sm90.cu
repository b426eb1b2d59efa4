// Attention in bf16 on Hopper for head dimensions of 64 and 72 (attention.cu has the mathematics
// and all other cases): products of warpgroups on what TMA brings.
//
// A piece of work is 128 queries of one head, 64 to each of two warpgroups; a third one copies. The
// blocks stay for all their pieces, so that the queries, keys and values of the next are on their
// way while the last are worked on: at T = 256 a piece has but two tiles of 128 keys. While one
// warpgroup is at its exponentials, the other's products may use the tensor cores.
//
//   shared memory, d = 72   20 KB a tile: 2 of queries, 3 of keys, 3 of values
//   registers a thread      64 scores, 32 pairs of weights, 40 sums
//
// A query's bits follow from its own row and head: keys come in tiles of 128, from the first.
#include <cmath>

#include "cuda/attention_sm90.cuh"
#include "cuda/attention_sm90.h"
#include "cuda/kernels.h"
#include "cuda/tensor_map.h"

namespace dit::cuda::hopper {

namespace {

constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kTile = 128;                // queries of a piece, keys of a tile
constexpr int kOwn = kTile / kConsumers;  // queries of a warpgroup
constexpr int kQuerySlots = 2, kKeySlots = 3;

template <int kD>
struct Shared {
  TileMemory<kD, kTile> queries[kQuerySlots], keys[kKeySlots], values[kKeySlots];
  uint64_t queriesFull[kQuerySlots], queriesEmpty[kQuerySlots];
  uint64_t keysFull[kKeySlots], valuesFull[kKeySlots], empty[kKeySlots];
};

struct Parameters {
  Bf16* y;
  float* logSumExp;  // or null
  int rows, heads, tokens;
  int tiles;    // of a head's tokens
  float scale;  // log2(e) / sqrt(d)
};

struct Piece {
  int row, head, query;
};

// Pieces of one head are neighbours, which read the same keys.
__device__ __forceinline__ Piece pieceAt(const Parameters& p, int64_t i) {
  const int tile = static_cast<int>(i % p.tiles);
  const int64_t head = i / p.tiles;
  return {static_cast<int>(head / p.heads), static_cast<int>(head % p.heads), tile * kTile};
}

template <int kD>
__device__ __forceinline__ void loadTile(TileMemory<kD, kTile>& to, const CUtensorMap* panel,
                                         const CUtensorMap* rest, uint64_t* barrier, int head,
                                         int token, int row) {
  mbarrierArriveExpect(barrier, TileMemory<kD, kTile>::kBytes);
  loadRows(to, 0, panel, rest, barrier, head, token, row);
}

template <int kD>
__device__ void produce(const CUtensorMap* panel, const CUtensorMap* rest, const Parameters& p,
                        Shared<kD>& shared) {
  Ring<kQuerySlots> queries;
  Ring<kKeySlots> keys;
  const int64_t pieces = static_cast<int64_t>(p.rows) * p.heads * p.tiles;
  for (int64_t i = blockIdx.x; i < pieces; i += gridDim.x) {
    const Piece piece = pieceAt(p, i);
    mbarrierWait(&shared.queriesEmpty[queries.slot], queries.phase ^ 1);
    loadTile<kD>(shared.queries[queries.slot], panel, rest, &shared.queriesFull[queries.slot],
                 piece.head, piece.query, piece.row);
    queries.advance();
    for (int tile = 0; tile < p.tiles; tile++) {
      const int slot = keys.slot, token = tile * kTile;
      mbarrierWait(&shared.empty[slot], keys.phase ^ 1);
      loadTile<kD>(shared.keys[slot], panel, rest, &shared.keysFull[slot], p.heads + piece.head,
                   token, piece.row);
      loadTile<kD>(shared.values[slot], panel, rest, &shared.valuesFull[slot],
                   2 * p.heads + piece.head, token, piece.row);
      keys.advance();
    }
  }
}

template <int kD>
__device__ __forceinline__ void scaleSums(Sums<kD>& sums, float upper, float lower) {
#pragma unroll
  for (int i = 0; i < kPanel / 2; i++) sums.panel[i] *= i / 2 % 2 == 0 ? upper : lower;
  if constexpr (Sums<kD>::kHasRest) {
#pragma unroll
    for (int i = 0; i < kRestPanel / 2; i++) sums.rest[i] *= i / 2 % 2 == 0 ? upper : lower;
  }
}

// The larger (the sum) over the four lanes that share a row.
__device__ __forceinline__ float rowMaximum(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float rowSum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Of one of a thread's two rows: the online softmax.
struct RowState {
  float most = -INFINITY;  // score so far
  float sum = 0;           // of the weights so far, this thread's

  // Takes in the largest score of a tile; returns what all before is to be multiplied with.
  __device__ __forceinline__ float raise(float tileMost, float scale) {
    const float before = most;
    most = fmaxf(most, rowMaximum(tileMost));
    const float factor = exp2Approx((before - most) * scale);  // 0 at first
    sum *= factor;
    return factor;
  }
};

// Scores of keys beyond the last weigh nothing.
__device__ __forceinline__ void mask(float (&scores)[kTile / 2], int keysLeft) {
  const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < kTile / 2; i++) {
    if (i / 4 * 8 + 2 * q + i % 2 >= keysLeft) scores[i] = -INFINITY;
  }
}

// Scores become weights, 2^((s - most) scale), as operands of the next product: the two rows of a
// result are those of an operand.
__device__ __forceinline__ void weigh(const float (&scores)[kTile / 2], float scale,
                                      RowState& upper, RowState& lower,
                                      uint32_t (&weights)[kTile / kStep][4]) {
  const float offsetUpper = upper.most * scale, offsetLower = lower.most * scale;
#pragma unroll
  for (int step = 0; step < kTile / kStep; step++) {
#pragma unroll
    for (int part = 0; part < 4; part++) {
      RowState& row = part % 2 == 0 ? upper : lower;
      const float offset = part % 2 == 0 ? offsetUpper : offsetLower;
      const int at = 4 * (2 * step + part / 2) + part % 2 * 2;
      const float a = exp2Approx(fmaf(scores[at], scale, -offset));
      const float b = exp2Approx(fmaf(scores[at + 1], scale, -offset));
      row.sum += a + b;
      weights[step][part] = packBf16(a, b);
    }
  }
}

template <int kD>
__device__ __forceinline__ void finishRow(const Parameters& p, const Piece& piece, int query,
                                          const Sums<kD>& sums, int half, const RowState& row) {
  const float all = rowSum(row.sum);
  if (query >= p.tokens) return;
  const int q = static_cast<int>(threadIdx.x) % 4;
  const float inverse = 1.0f / all;
  const int64_t token = static_cast<int64_t>(piece.row) * p.tokens + query;
  sums.storeRow(p.y + (token * p.heads + piece.head) * kD, half, inverse);
  if (p.logSumExp && q == 0) {
    constexpr float kLn2 = 0.693147180559945f;
    p.logSumExp[(static_cast<int64_t>(piece.row) * p.heads + piece.head) * p.tokens + query] =
        row.most * p.scale * kLn2 + logf(all);
  }
}

template <int kD>
__device__ void consume(const Parameters& p, Shared<kD>& shared, int consumer) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  const auto release = [&](uint64_t* barrier) {
    if (lane == 0) mbarrierArrive(barrier);
  };
  Ring<kQuerySlots> queries;
  Ring<kKeySlots> keys;
  const int64_t pieces = static_cast<int64_t>(p.rows) * p.heads * p.tiles;
  for (int64_t i = blockIdx.x; i < pieces; i += gridDim.x) {
    const Piece piece = pieceAt(p, i);
    mbarrierWait(&shared.queriesFull[queries.slot], queries.phase);
    Sums<kD> sums;
    RowState upper, lower;
    for (int tile = 0; tile < p.tiles; tile++) {
      float scores[kTile / 2];
      mbarrierWait(&shared.keysFull[keys.slot], keys.phase);
      wgmmaFence();
      multiplyRows(scores, shared.queries[queries.slot], consumer * kOwn, shared.keys[keys.slot]);
      wgmmaCommit();
      wgmmaWait<0>();
      wgmmaTouch(scores);
      if (tile == p.tiles - 1) {
        release(&shared.queriesEmpty[queries.slot]);
        mask(scores, p.tokens - tile * kTile);
      }
      float mostUpper = -INFINITY, mostLower = -INFINITY;
#pragma unroll
      for (int j = 0; j < kTile / 2; j++) {
        float& most = j / 2 % 2 == 0 ? mostUpper : mostLower;
        most = fmaxf(most, scores[j]);
      }
      const float factorUpper = upper.raise(mostUpper, p.scale);
      const float factorLower = lower.raise(mostLower, p.scale);
      if (tile > 0) scaleSums(sums, factorUpper, factorLower);
      uint32_t weights[kTile / kStep][4];
      weigh(scores, p.scale, upper, lower, weights);
      mbarrierWait(&shared.valuesFull[keys.slot], keys.phase);
      wgmmaFence();
      sums.add(weights, shared.values[keys.slot], tile > 0);
      wgmmaCommit();
      wgmmaWait<0>();
      sums.touch();
      release(&shared.empty[keys.slot]);
      keys.advance();
    }
    queries.advance();
    const int query = piece.query + consumer * kOwn + warp * 16 + lane / 4;
    finishRow<kD>(p, piece, query, sums, 0, upper);
    finishRow<kD>(p, piece, query + 8, sums, 1, lower);
  }
}

template <int kD>
__global__ void __launch_bounds__(kThreads, 1)
    attentionKernel(const __grid_constant__ CUtensorMap panel,
                    const __grid_constant__ CUtensorMap rest,
                    const __grid_constant__ Parameters parameters) {
  auto& shared = *reinterpret_cast<Shared<kD>*>(sharedMemory());
  const int thread = static_cast<int>(threadIdx.x), warpgroup = thread / kWarpgroup;
  if (thread == 0) {
    constexpr int kWarps = kConsumers * kWarpgroup / 32;  // each gives its slot back
    for (int i = 0; i < kQuerySlots; i++) {
      mbarrierInit(&shared.queriesFull[i], 1);
      mbarrierInit(&shared.queriesEmpty[i], kWarps);
    }
    for (int i = 0; i < kKeySlots; i++) {
      mbarrierInit(&shared.keysFull[i], 1);
      mbarrierInit(&shared.valuesFull[i], 1);
      mbarrierInit(&shared.empty[i], kWarps);
    }
    mbarrierInitFence();
  }
  awaitPrevious();
  __syncthreads();
  if (warpgroup == kConsumers) {
    shrinkRegisters<24>();
    if (thread % kWarpgroup == 0) produce<kD>(&panel, &rest, parameters, shared);
  } else {
    growRegisters<240>();
    consume<kD>(parameters, shared, warpgroup);
  }
}

template <int kD>
void run(Context& context, const AttentionArgs& args) {
  const int64_t rows = args.qkv.shape[0], tokens = args.qkv.shape[1], heads = args.heads;
  const Parameters parameters = {
      .y = args.y.as<Bf16>(),
      .logSumExp = args.logSumExp.as<float>(),
      .rows = static_cast<int>(rows),
      .heads = static_cast<int>(heads),
      .tokens = static_cast<int>(tokens),
      .tiles = static_cast<int>(divideUp(tokens, kTile)),
      .scale = static_cast<float>(M_LOG2E / std::sqrt(static_cast<double>(kD)))};
  const auto map = [&](int columns) {
    return headsMap(args.qkv.data, rows, tokens, 3 * heads, kD, kTile, columns);
  };
  const CUtensorMap panel = map(kPanel);
  const CUtensorMap rest = Sums<kD>::kHasRest ? map(kRestPanel) : panel;
  const int64_t pieces = rows * heads * parameters.tiles;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(pieces, context.multiprocessors));
  launch(context, attentionKernel<kD>, blocks, kThreads, sizeof(Shared<kD>), panel, rest,
         parameters);
}

}  // namespace

bool attentionFits(const AttentionArgs& args) {
  const int64_t d = args.y.shape[2] / args.heads;
  return args.qkv.dtype == DType::BF16 && (d == 64 || d == 72) &&
         reinterpret_cast<uintptr_t>(args.qkv.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(args.y.data) % 4 == 0;
}

void attention(Context& context, const AttentionArgs& args) {
  args.y.shape[2] / args.heads == 64 ? run<64>(context, args) : run<72>(context, args);
}

}  // namespace dit::cuda::hopper
