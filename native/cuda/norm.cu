// layerNormModulate: y = (x - mean) / sqrt(variance + eps) * (1 + scale) + shift for every token,
// statistics over its C channels, shift and scale of its row.
//
// Bound by memory: x is read once, y is written once (16 384 x 1152 bf16: 75 MB, 25 us at 3 TB/s).
// A warp holds a token in registers, kQuads times four numbers a lane: 9 loads of 8 or 16 bytes in
// flight at C = 1152, and both passes of the statistics (the mean, then the squares of what differs
// from it: of the sum of squares no digit would be left where the mean is large) touch no memory.
// The warps of a block work on tokens of one row, so that shift and scale, twice or four times the
// bytes of a token, come from the first-level cache.
//
// Channels that are not four by four, or too many for registers, take a block per token that reads
// x three times, twice of it from the cache. Which way is taken depends on C and on the alignment
// of the arguments: on nothing that the number of rows could change.
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"

namespace dit::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kWarpThreads = kWarps * 32;
constexpr int kMostPerWarp = 4;  // tokens
constexpr int kPlainThreads = 128;

template <typename In, typename Out>
struct Norm {
  const In* x;
  Out* y;
  RowVectors shift, scale;
  int64_t tokens;  // of a row
  int c;
  float eps;
};

// kQuads * 128 >= C: a lane has channels own + 128 q .. + 3. A block has kWarps * perWarp tokens of
// one row.
template <typename In, typename Out, int kQuads>
__global__ void __launch_bounds__(kWarpThreads, kQuads > 9 ? 6 : 7)
    layerNormKernel(Norm<In, Out> at, int64_t blocksPerRow, int perWarp) {
  awaitPrevious();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int own = static_cast<int>(threadIdx.x) % 32 * 4, left = at.c - own;  // channels
  const int64_t row = blockIdx.x / blocksPerRow;
  const int64_t first = blockIdx.x % blocksPerRow * (kWarps * perWarp) + warp;
  const float *shift = at.shift.of(row) + own, *scale = at.scale.of(row) + own;
  const float n = static_cast<float>(at.c);
  for (int k = 0; k < perWarp; k++) {
    const int64_t token = first + k * kWarps;
    if (token >= at.tokens) return;
    const In* from = at.x + (row * at.tokens + token) * at.c + own;
    Out* to = at.y + (row * at.tokens + token) * at.c + own;
    float x[kQuads][4] = {};
    float sum = 0;
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      if (q * 128 < left) {
        loadWide<4>(x[q], from + q * 128);
        sum += (x[q][0] + x[q][1]) + (x[q][2] + x[q][3]);
      }
    }
    const float mean = warpSum(sum) / n;
    float squares = 0;
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      if (q * 128 < left) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          x[q][j] -= mean;
          squares = fmaf(x[q][j], x[q][j], squares);
        }
      }
    }
    const float norm = 1.0f / sqrtf(warpSum(squares) / n + at.eps);
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      if (q * 128 < left) {
        float factor[4], offset[4];
        loadWide<4>(factor, scale + q * 128);
        loadWide<4>(offset, shift + q * 128);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          x[q][j] = fmaf(x[q][j] * norm, 1.0f + factor[j], offset[j]);
        }
        storeWide<4>(to + q * 128, x[q]);
      }
    }
  }
}

// A block per token.
template <typename In, typename Out>
__global__ void __launch_bounds__(kPlainThreads) layerNormPlainKernel(Norm<In, Out> at) {
  awaitPrevious();
  float* shared = reinterpret_cast<float*>(sharedMemory());
  const int64_t token = blockIdx.x, row = token / at.tokens;
  const int thread = static_cast<int>(threadIdx.x);
  const In* x = at.x + token * at.c;
  Out* y = at.y + token * at.c;
  const float *shift = at.shift.of(row), *scale = at.scale.of(row);
  const float n = static_cast<float>(at.c);
  float sum = 0;
  for (int i = thread; i < at.c; i += kPlainThreads) sum += toFloat(x[i]);
  const float mean = blockSum(sum, shared) / n;
  float squares = 0;
  for (int i = thread; i < at.c; i += kPlainThreads) {
    const float centred = toFloat(x[i]) - mean;
    squares = fmaf(centred, centred, squares);
  }
  const float norm = 1.0f / sqrtf(blockSum(squares, shared) / n + at.eps);
  for (int i = thread; i < at.c; i += kPlainThreads) {
    y[i] = fromFloat<Out>(fmaf((toFloat(x[i]) - mean) * norm, 1.0f + scale[i], shift[i]));
  }
}

template <typename In, typename Out, int kQuads>
void launchWarps(const Context& context, const Norm<In, Out>& at, int64_t rows) {
  // Enough blocks to fill the device come first; then, several tokens a warp. A power of two, for
  // such are the numbers of tokens.
  const int64_t fill = int64_t{8} * kWarps * context.multiprocessors;
  int64_t perWarp = 1;
  while (perWarp < kMostPerWarp && 2 * perWarp * fill <= rows * at.tokens) perWarp *= 2;
  const int64_t blocksPerRow = divideUp(at.tokens, kWarps * perWarp);
  launch(context, layerNormKernel<In, Out, kQuads>, static_cast<unsigned>(rows * blocksPerRow),
         kWarpThreads, 0, at, blocksPerRow, static_cast<int>(perWarp));
}

template <typename In, typename Out>
void run(const Context& context, const LayerNormModulateArgs& args) {
  const int64_t rows = args.x.shape[0], tokens = args.x.shape[1], c = args.x.shape[2];
  const Norm<In, Out> at{
      args.x.as<In>(),     args.y.as<Out>(), rowVectors(args.shift), rowVectors(args.scale), tokens,
      static_cast<int>(c), args.eps};
  const bool fours = byFours(args.x, args.y, args.shift.table, args.scale.table);
  if (fours && c <= 3 * 128) return launchWarps<In, Out, 3>(context, at, rows);
  if (fours && c <= 6 * 128) return launchWarps<In, Out, 6>(context, at, rows);
  if (fours && c <= 9 * 128) return launchWarps<In, Out, 9>(context, at, rows);
  if (fours && c <= 12 * 128) return launchWarps<In, Out, 12>(context, at, rows);
  launch(context, layerNormPlainKernel<In, Out>, static_cast<unsigned>(rows * tokens),
         kPlainThreads, kPlainThreads / 32 * sizeof(float), at);
}

}  // namespace

void layerNormModulate(Context& context, const LayerNormModulateArgs& args) {
  withType(args.x.dtype, [&]<typename In>(In) {
    withType(args.y.dtype, [&]<typename Out>(Out) { run<In, Out>(context, args); });
  });
}

}  // namespace dit::cuda
