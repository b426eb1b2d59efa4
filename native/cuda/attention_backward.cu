// attentionBackward: the derivative of attention.cu, dQkv [R, T, 3C] from qkv, y, logSumExp and dY.
// (On Hopper attention_backward_sm90.cu has DiT's heads in bf16.)
//
//   P = exp(q k^T / sqrt(d) - logSumExp)    dP = dY v^T    D = rowsum(dY y)    dS = P (dP - D)
//   dV = P^T dY    dK = dS^T q / sqrt(d)    dQ = dS k / sqrt(d)      (Dao et al. 2022, appendix B)
//
// dQ sums over keys, dK and dV over queries. One kernel for all three would add to dQ from blocks
// that run in any order; here each sum is one warp's, in a fixed order, at the price of computing P
// and dP twice (7 products of T x T x d instead of 5). Both kernels are one template. A block has
// kOwn tokens of one head, a warp 16 of them, and takes the others a tile at a time, as the
// forward:
//
//   kernel   own tokens        the others         s         dP        sums
//   dQ       queries: q, dY    keys: k, v         q k^T     dY v^T    dQ += dS k
//   dK, dV   keys: k, v        queries: q, dY     k q^T     v dY^T    dK += dS q, dV += P dY
//
// In the second, s, P and dS are transposed, so that its sums, too, take P and dS from registers as
// they are. In the first logSumExp and D belong to rows, in the second to columns. The first makes
// D of its own rows and leaves it in memory for the second. bf16: P and dS are rounded to bf16
// where they are factors; the rest is fp32.
//
// A query beyond the last has P = 0; a key beyond the last has its own row, which is not stored, in
// the second kernel, and k = 0 and P = 0 in the first. Compute-bound for T >= 256: 14 T^2 d FLOP a
// head (10 are needed) for 7 T d numbers read and 3 T d written at least.
#include <cmath>

#include "cuda/attention_sm90.h"
#include "cuda/attention_tiles.cuh"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

struct BackwardParameters {
  const void *qkv, *y, *dY;
  const float* logSumExp;
  float* delta;  // [R, heads, T]: D
  void* dQkv;
  int c, heads, tokens, d;
  int blocks;    // of own tokens, of a head
  double scale;  // 1 / sqrt(d)
  bool vectors;
};

// Shared memory stays below 99 KB, what all devices have: two tensors of own rows, two a tile.
template <typename Product, int kChunk, int kSplit>
constexpr auto backwardShape() {
  constexpr bool kBf16 = sizeof(typename Product::Element) == 2, kWide = kChunk > 72;
  if constexpr (kSplit > 1) {
    constexpr int kTile = kBf16 ? 16 : 8;
    return AttentionShape<Product, kChunk, kSplit, 1, kTile, 1>{};
  } else {
    constexpr int kTile = kBf16 && !kWide ? 32 : 16, kStages = !kBf16 && kWide ? 1 : 2;
    return AttentionShape<Product, kChunk, kSplit, 4, kTile, kStages>{};
  }
}
template <typename Product, int kChunk, int kSplit>
using BackwardShape = decltype(backwardShape<Product, kChunk, kSplit>());

// A stage: a tile of each of the other tokens' two tensors, and two numbers of each token.
template <typename Shape>
constexpr int kStageBytes = 2 * Shape::kTileBytes + 2 * Shape::kTile * 4;

template <typename Shape>
constexpr size_t kBackwardBytes =
    2 * Shape::kOwnBytes + Shape::kStages* kStageBytes<Shape> + Shape::kExchangeBytes;

// D of the warp's 16 queries: lane 2 i and 2 i + 1 have that of row i. dY lies in shared memory.
template <typename Shape>
__device__ __forceinline__ float rowDelta(const char* dY,
                                          const HeadRows<const typename Shape::Element>& y,
                                          int first) {
  using T = typename Shape::Element;
  constexpr int kPiece = 16 / sizeof(T);
  const int lane = Lane{}.lane, row = lane / 2;
  float sum = 0;
  if (first + row < y.tokens) {
    const T* const from = y.at + y.offset(first + row);
    const T* const with = reinterpret_cast<const T*>(dY + row * Shape::kPitch);
    for (int column = lane % 2 * kPiece; column < y.d; column += 2 * kPiece) {
      if (y.vectors) {
#pragma unroll
        for (int j = 0; j < kPiece; j += 4) {
          const float4 a = load4(from + column + j), b = load4(with + column + j);
          sum = dot(sum, a, b);
        }
      } else {
        for (int j = 0; j < kPiece && column + j < y.d; j++) {
          sum = fmaf(toFloat(from[column + j]), toFloat(with[column + j]), sum);
        }
      }
    }
  }
  return sum + __shfl_xor_sync(0xffffffffu, sum, 1);
}

// kOfKeys: the own tokens are keys, and the results dK and dV; otherwise queries, and dQ.
template <typename Shape, bool kOfKeys>
__global__ void __launch_bounds__(Shape::kThreads) attentionBackwardKernel(BackwardParameters p) {
  awaitPrevious();
  using T = typename Shape::Element;
  using Product = typename Shape::Product;
  constexpr double kLog2E = 1.44269504088896340736;
  constexpr float kInfinity = __builtin_huge_valf();

  char* const own = sharedMemory();
  char* const stages = own + 2 * Shape::kOwnBytes;
  float* const exchange = reinterpret_cast<float*>(stages + Shape::kStages * kStageBytes<Shape>);

  const int block = static_cast<int>(blockIdx.x);
  const int head = block / p.blocks, firstOwn = block % p.blocks * Shape::kOwn;  // of all heads
  const int row = head / p.heads, channel = head % p.heads * p.d;
  const int64_t token = static_cast<int64_t>(row) * p.tokens;
  const int64_t headToken = static_cast<int64_t>(head) * p.tokens;
  const T* const qkv = static_cast<const T*>(p.qkv) + token * 3 * p.c + channel;
  const HeadRows<const T> q = {qkv, 3 * p.c, p.tokens, p.d, p.vectors};
  const HeadRows<const T> k = {qkv + p.c, 3 * p.c, p.tokens, p.d, p.vectors};
  const HeadRows<const T> v = {qkv + 2 * p.c, 3 * p.c, p.tokens, p.d, p.vectors};
  const HeadRows<const T> dY = {static_cast<const T*>(p.dY) + token * p.c + channel, p.c, p.tokens,
                                p.d, p.vectors};

  const Lane lane;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = warp / Shape::kSplit, part = warp % Shape::kSplit;
  const int partBytes = part * Shape::kChunk * static_cast<int>(sizeof(T));
  const int first = firstOwn + group * 16;  // of the warp
  char* const own1 = own + group * 16 * Shape::kPitch + partBytes;
  char* const own2 = own1 + Shape::kOwnBytes;
  const OwnRows<Product, Shape::kChunk, Shape::kPitch, false> rows1(own1), rows2(own2);

  const auto loadStage = [&](int step) {
    char* const to = stages + step % Shape::kStages * kStageBytes<Shape>;
    const int from = step * Shape::kTile;
    loadTile<Shape, Shape::kTile>(to, kOfKeys ? q : k, from);
    loadTile<Shape, Shape::kTile>(to + Shape::kTileBytes, kOfKeys ? dY : v, from);
    if constexpr (kOfKeys) {
      float* const numbers = reinterpret_cast<float*>(to + 2 * Shape::kTileBytes);
      loadVector<Shape::kTile>(numbers, p.logSumExp + headToken, from, p.tokens);
      loadVector<Shape::kTile>(numbers + Shape::kTile, p.delta + headToken, from, p.tokens);
    }
    copyAsyncCommit();
  };

  float sum1[Shape::kBlocks][4] = {};                // dQ or dK
  float sum2[kOfKeys ? Shape::kBlocks : 1][4] = {};  // dV
  float shift[2] = {}, delta[2] = {};                // of rows g and g + 8, where they are queries
  const float scale = static_cast<float>(p.scale * kLog2E);
  constexpr float kToLog2 = static_cast<float>(kLog2E);
  const int steps = (p.tokens + Shape::kTile - 1) / Shape::kTile;

  loadTile<Shape, Shape::kOwn>(own, kOfKeys ? k : q, firstOwn);
  loadTile<Shape, Shape::kOwn>(own + Shape::kOwnBytes, kOfKeys ? v : dY, firstOwn);
  loadStage(0);
  if constexpr (!kOfKeys) {
    // Before anything is rounded to TF32.
    copyAsyncWait<0>();
    __syncthreads();
    const HeadRows<const T> y = {static_cast<const T*>(p.y) + token * p.c + channel, p.c, p.tokens,
                                 p.d, p.vectors};
    const float mine = rowDelta<Shape>(own2 - partBytes, y, first);
    const int query = first + lane.lane / 2;
    if (part == 0 && lane.lane % 2 == 0 && query < p.tokens) p.delta[headToken + query] = mine;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at = first + lane.g + 8 * half;
      delta[half] = __shfl_sync(0xffffffffu, mine, 2 * (lane.g + 8 * half));
      shift[half] = at < p.tokens ? p.logSumExp[headToken + at] * kToLog2 : 0.0f;
    }
    __syncthreads();
  }
  for (int step = 0; step < steps; step++) {
    char* const tile1 = stages + step % Shape::kStages * kStageBytes<Shape>;
    char* const tile2 = tile1 + Shape::kTileBytes;
    copyAsyncWait<0>();
    if (step == 0) {
      roundTile<Shape, Shape::kOwn>(own);
      roundTile<Shape, Shape::kOwn>(own + Shape::kOwnBytes);
    }
    roundTile<Shape, Shape::kTile>(tile1);
    roundTile<Shape, Shape::kTile>(tile2);
    __syncthreads();
    // Into the stage that everyone has left behind at the barrier.
    if (Shape::kStages == 2 && step + 1 < steps) loadStage(step + 1);

    float s[Shape::kTiles][4] = {}, dP[Shape::kTiles][4] = {};
    rows1.scores(tile1 + partBytes, s);
    sumParts<Shape>(s, exchange, group, part);
    rows2.scores(tile2 + partBytes, dP);
    sumParts<Shape>(dP, exchange, group, part);

    // s becomes P, dP becomes dS.
    const float* const numbers =
        reinterpret_cast<const float*>(tile2 + Shape::kTileBytes) + lane.q * 2;
    const int left = p.tokens - step * Shape::kTile - lane.q * 2;
#pragma unroll
    for (int j = 0; j < Shape::kTiles; j++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int column = j * 8 + i % 2;
        const float shiftOf = kOfKeys ? numbers[column] * kToLog2 : shift[i / 2];
        const float deltaOf = kOfKeys ? numbers[Shape::kTile + column] : delta[i / 2];
        const float weight =
            exp2Approx(column < left ? fmaf(s[j][i], scale, -shiftOf) : -kInfinity);
        s[j][i] = weight;
        dP[j][i] = weight * (dP[j][i] - deltaOf);
      }
    }

    weigh<Shape::kPitch>(Product{}, dP, tile1 + partBytes, sum1);
    if constexpr (kOfKeys) weigh<Shape::kPitch>(Product{}, s, tile2 + partBytes, sum2);

    if (Shape::kStages == 1 && step + 1 < steps) {
      __syncthreads();
      loadStage(step + 1);
    }
  }

  const float last = static_cast<float>(p.scale);
  HeadRows<T> results = {static_cast<T*>(p.dQkv) + token * 3 * p.c + channel, 3 * p.c, p.tokens,
                         p.d, p.vectors};
  if constexpr (kOfKeys) results.at += p.c;
  storeRows<Shape>(sum1, {last, last}, own1, results, first, part * Shape::kChunk);
  if constexpr (kOfKeys) {
    results.at += p.c;
    storeRows<Shape>(sum2, {1.0f, 1.0f}, own2, results, first, part * Shape::kChunk);
  }
}

}  // namespace

void attentionBackward(Context& context, const AttentionBackwardArgs& args) {
  const int64_t rows = args.y.shape[0], tokens = args.y.shape[1], c = args.y.shape[2];
  const int64_t d = c / args.heads;
  if (args.y.count() == 0) return;
  if (context.arch == Arch::Sm90a && hopper::attentionBackwardFits(args)) {
    return hopper::attentionBackward(context, args);
  }
  float* const delta =
      static_cast<float*>(context.scratch(static_cast<size_t>(rows * args.heads * tokens) * 4));
  withAttentionShape<BackwardShape>(args.qkv.dtype, args.tf32, d, [&]<typename Shape>(Shape) {
    const int64_t blocks = divideUp(tokens, Shape::kOwn);
    const BackwardParameters parameters = {
        .qkv = args.qkv.data,
        .y = args.y.data,
        .dY = args.dY.data,
        .logSumExp = args.logSumExp.as<float>(),
        .delta = delta,
        .dQkv = args.dQkv.data,
        .c = static_cast<int>(c),
        .heads = static_cast<int>(args.heads),
        .tokens = static_cast<int>(tokens),
        .d = static_cast<int>(d),
        .blocks = static_cast<int>(blocks),
        .scale = 1 / std::sqrt(static_cast<double>(d)),
        .vectors = inVectors(c, d, dtypeSize(args.y.dtype),
                             {args.qkv.data, args.y.data, args.dY.data, args.dQkv.data})};
    const dim3 grid(static_cast<unsigned>(rows * args.heads * blocks));
    launch(context, attentionBackwardKernel<Shape, false>, grid, dim3(Shape::kThreads),
           kBackwardBytes<Shape>, parameters);
    launch(context, attentionBackwardKernel<Shape, true>, grid, dim3(Shape::kThreads),
           kBackwardBytes<Shape>, parameters);
  });
}

}  // namespace dit::cuda
