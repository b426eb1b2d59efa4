// attention: y = softmax(q k^T / sqrt(d)) v per row of the round and head, qkv [R, T, 3C], y
// [R, T, C]; on tensor cores by mma.sync, or in true fp32.
//
// FlashAttention (Dao et al. 2022; 2023): no T x T matrix leaves the registers. A block has kOwn
// queries of one head, a warp 16 of them, from the first key to the last. K and V come a tile of
// kTile keys at a time; while one is worked on, the next is copied (cp.async). For a tile a warp
// has
//
//   s = q k^T                      products over channels; in bf16 q stays in registers
//   m' = max(m, s over keys)       four lanes share a row: two shuffles
//   p = 2^((s - m') log2(e) / sqrt(d))
//   l = l 2^(..(m - m')..) + sum p,   o = o 2^(..(m - m')..) + p v
//
// and y = o / l last (online softmax, Milakov & Gimelshein 2018). p goes from the layout of a
// result to that of an operand without moving between lanes (attention_products.cuh); in bf16 it is
// rounded for p v, while l sums it unrounded. Keys beyond the last have a score of -infinity and so
// p = 0, and v there is 0: they add nothing.
//
// Memory: at T = 256, d = 72 a head is 128 FLOP a byte, below what the tensor cores could do for a
// byte of memory: the floor is to read qkv and write y once, 50 us for 64 images of DiT-XL/2 on an
// H100. Two blocks of 128 queries read K and V each, at the same time and so the second time from
// the L2 cache. At T = 1024 products and exponentials bind. Blocks of one head are neighbours.
//
// A head's bits depend on its own row only: every sum's order follows from T, d and the precision.
#include <cmath>

#include "cuda/attention_sm90.h"
#include "cuda/attention_tiles.cuh"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

struct ForwardParameters {
  const void* qkv;
  void* y;
  float* logSumExp;  // or null
  int c, heads, tokens, d;
  int blocks;    // of queries, of a head
  double scale;  // 1 / sqrt(d)
  bool vectors;
};

// Shared memory stays below 99 KB, what all devices have. Floats take twice the room of bf16.
template <typename Product, int kChunk, int kSplit>
constexpr auto forwardShape() {
  constexpr bool kBf16 = sizeof(typename Product::Element) == 2, kWide = kChunk > 72;
  if constexpr (kSplit > 1) {
    constexpr int kGroups = kBf16 ? 2 : 1, kTile = kBf16 ? 16 : 8;
    return AttentionShape<Product, kChunk, kSplit, kGroups, kTile, 1>{};
  } else {
    constexpr int kGroups = kWide ? 4 : 8, kTile = kBf16 && kWide ? 64 : kWide ? 16 : 32;
    return AttentionShape<Product, kChunk, kSplit, kGroups, kTile, 2>{};
  }
}
template <typename Product, int kChunk, int kSplit>
using ForwardShape = decltype(forwardShape<Product, kChunk, kSplit>());

template <typename Shape>
constexpr size_t kForwardBytes =
    Shape::kOwnBytes + 2 * Shape::kStages* Shape::kTileBytes + Shape::kExchangeBytes;

// 16 warps on a multiprocessor: at most 128 registers a thread in blocks of 8 warps.
template <typename Shape>
constexpr int kForwardBlocks = Shape::kThreads == 256 ? 2 : 1;

// Scores to weights. In fp32 the difference comes first: it is exact near the maximum, whatever the
// scores' size. For bf16 one fused operation less, whose error the rounding of p hides.
template <typename Product>
__device__ __forceinline__ float weight(float s, float most, float scale) {
  if constexpr (sizeof(typename Product::Element) == 2) {
    return exp2Approx(fmaf(s, scale, -most * scale));
  } else {
    return exp2Approx((s - most) * scale);
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, kForwardBlocks<Shape>)
    attentionKernel(ForwardParameters p) {
  awaitPrevious();
  using T = typename Shape::Element;
  using Product = typename Shape::Product;
  constexpr double kLog2E = 1.44269504088896340736;
  constexpr float kInfinity = __builtin_huge_valf();

  char* const own = sharedMemory();
  char* const tiles = own + Shape::kOwnBytes;
  float* const exchange = reinterpret_cast<float*>(tiles + 2 * Shape::kStages * Shape::kTileBytes);

  const int block = static_cast<int>(blockIdx.x);
  const int head = block / p.blocks, firstQuery = block % p.blocks * Shape::kOwn;  // of all heads
  const int row = head / p.heads, channel = head % p.heads * p.d;
  const int64_t token = static_cast<int64_t>(row) * p.tokens;
  const T* const qkv = static_cast<const T*>(p.qkv) + token * 3 * p.c + channel;
  const HeadRows<const T> q = {qkv, 3 * p.c, p.tokens, p.d, p.vectors};
  const HeadRows<const T> k = {qkv + p.c, 3 * p.c, p.tokens, p.d, p.vectors};
  const HeadRows<const T> v = {qkv + 2 * p.c, 3 * p.c, p.tokens, p.d, p.vectors};

  const Lane lane;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = warp / Shape::kSplit, part = warp % Shape::kSplit;
  const int partBytes = part * Shape::kChunk * static_cast<int>(sizeof(T));
  char* const ownRows = own + group * 16 * Shape::kPitch + partBytes;
  constexpr bool kHold = sizeof(T) == 2;  // floats would take too many registers
  OwnRows<Product, Shape::kChunk, Shape::kPitch, kHold> queries(ownRows);

  const auto loadStage = [&](int step) {
    char* const to = tiles + step % Shape::kStages * 2 * Shape::kTileBytes;
    loadTile<Shape, Shape::kTile>(to, k, step * Shape::kTile);
    loadTile<Shape, Shape::kTile>(to + Shape::kTileBytes, v, step * Shape::kTile);
    copyAsyncCommit();
  };

  float o[Shape::kBlocks][4] = {};
  float most[2] = {-kInfinity, -kInfinity}, total[2] = {};  // of rows g and g + 8
  const float scale = static_cast<float>(p.scale * kLog2E);
  const int steps = (p.tokens + Shape::kTile - 1) / Shape::kTile;

  loadTile<Shape, Shape::kOwn>(own, q, firstQuery);
  loadStage(0);
  for (int step = 0; step < steps; step++) {
    char* const keys = tiles + step % Shape::kStages * 2 * Shape::kTileBytes;
    copyAsyncWait<0>();
    if (step == 0) roundTile<Shape, Shape::kOwn>(own);
    roundTile<Shape, Shape::kTile>(keys);
    roundTile<Shape, Shape::kTile>(keys + Shape::kTileBytes);
    __syncthreads();
    if (step == 0) queries.load();
    // Into the stage that everyone has left behind at the barrier.
    if (Shape::kStages == 2 && step + 1 < steps) loadStage(step + 1);

    float s[Shape::kTiles][4] = {};
    queries.scores(keys + partBytes, s);
    sumParts<Shape>(s, exchange, group, part);
    const int left = p.tokens - step * Shape::kTile;
    if (left < Shape::kTile) {
#pragma unroll
      for (int i = 0; i < Shape::kTiles * 4; i++) {
        if (i / 4 * 8 + lane.q * 2 + i % 2 >= left) s[i / 4][i % 4] = -kInfinity;
      }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float before = most[half];
#pragma unroll
      for (int j = 0; j < Shape::kTiles; j++) {
        most[half] = fmaxf(most[half], fmaxf(s[j][2 * half], s[j][2 * half + 1]));
      }
      most[half] = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 1));
      most[half] = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 2));
      const float factor = weight<Product>(before, most[half], scale);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < Shape::kTiles; j++) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
          s[j][i] = weight<Product>(s[j][i], most[half], scale);
          sum += s[j][i];
        }
      }
      total[half] = total[half] * factor + sum;
#pragma unroll
      for (int n = 0; n < Shape::kBlocks; n++) {
        o[n][2 * half] *= factor;
        o[n][2 * half + 1] *= factor;
      }
    }
    weigh<Shape::kPitch>(Product{}, s, keys + Shape::kTileBytes + partBytes, o);

    if (Shape::kStages == 1 && step + 1 < steps) {
      __syncthreads();
      loadStage(step + 1);
    }
  }

  const int first = firstQuery + group * 16;
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
    factor[half] = 1.0f / total[half];
    const int query = first + lane.g + 8 * half;
    if (p.logSumExp && part == 0 && lane.q == 0 && query < p.tokens) {
      p.logSumExp[static_cast<int64_t>(head) * p.tokens + query] =
          static_cast<float>(most[half] * p.scale + logf(total[half]));
    }
  }
  const HeadRows<T> y = {static_cast<T*>(p.y) + token * p.c + channel, p.c, p.tokens, p.d,
                         p.vectors};
  storeRows<Shape>(o, factor, ownRows, y, first, part * Shape::kChunk);
}

}  // namespace

void attention(Context& context, const AttentionArgs& args) {
  const int64_t rows = args.y.shape[0], tokens = args.y.shape[1], c = args.y.shape[2];
  const int64_t d = c / args.heads;
  if (args.y.count() == 0) return;
  if (context.arch == Arch::Sm90a && hopper::attentionFits(args)) {
    return hopper::attention(context, args);
  }
  withAttentionShape<ForwardShape>(args.qkv.dtype, args.tf32, d, [&]<typename Shape>(Shape) {
    const int64_t blocks = divideUp(tokens, Shape::kOwn);
    const ForwardParameters parameters = {
        .qkv = args.qkv.data,
        .y = args.y.data,
        .logSumExp = args.logSumExp ? args.logSumExp.as<float>() : nullptr,
        .c = static_cast<int>(c),
        .heads = static_cast<int>(args.heads),
        .tokens = static_cast<int>(tokens),
        .d = static_cast<int>(d),
        .blocks = static_cast<int>(blocks),
        .scale = 1 / std::sqrt(static_cast<double>(d)),
        .vectors = inVectors(c, d, dtypeSize(args.y.dtype), {args.qkv.data, args.y.data})};
    launch(context, attentionKernel<Shape>, dim3(static_cast<unsigned>(rows * args.heads * blocks)),
           dim3(Shape::kThreads), kForwardBytes<Shape>, parameters);
  });
}

}  // namespace dit::cuda
