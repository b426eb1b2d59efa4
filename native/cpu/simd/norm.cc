// layerNormModulate: y = (x - mean) / sqrt(variance + eps) * (1 + scale) + shift per token, with
// shift and scale of the token's row.
//
// Three passes over the channels (1152 for XL): for the mean, for the variance around it (from the
// sum of squares it would lose digits) and for the result. kTokens tokens go together: they fit
// the first-level cache, share what is read of shift and scale, and keep additions in flight while
// each token's sum runs through its channels in order.
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/simd/row_vector.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

constexpr int64_t kTokens = 4;

template <int64_t kCount, typename In, typename Out>
void normalise(int64_t c, const In* x, const float* shift, const float* scale, float eps, Out* y) {
  const float n = static_cast<float>(c);
  Vec sum[kCount] = {}, squares[kCount] = {};
  forLanes(c, [&](int64_t i, auto lanes) {
    for (int64_t t = 0; t < kCount; t++) sum[t] += load(x + t * c + i, lanes);
  });
  Vec mean[kCount], norm[kCount];
  for (int64_t t = 0; t < kCount; t++) mean[t] = splat(sumLanes(sum[t]) / n);
  forLanes(c, [&](int64_t i, auto lanes) {
    for (int64_t t = 0; t < kCount; t++) {
      const Vec centred = keep(load(x + t * c + i, lanes) - mean[t], lanes);
      squares[t] += centred * centred;
    }
  });
  for (int64_t t = 0; t < kCount; t++) {
    norm[t] = splat(1 / sqrtf(sumLanes(squares[t]) / n + eps));
  }
  forLanes(c, [&](int64_t i, auto lanes) {
    const Vec factor = load(scale + i, lanes) + 1.0f, offset = load(shift + i, lanes);
    for (int64_t t = 0; t < kCount; t++) {
      const Vec normal = (load(x + t * c + i, lanes) - mean[t]) * norm[t];
      store(y + t * c + i, normal * factor + offset, lanes);
    }
  });
}

template <typename In, typename Out>
void run(const LayerNormModulateArgs& args) {
  const int64_t rows = args.x.shape[0], tokens = args.x.shape[1], c = args.x.shape[2];
  const int64_t groups = (tokens + kTokens - 1) / kTokens;  // of a row
  parallelFor(rows * groups, [&](int64_t group) {
    const int64_t row = group / groups, first = group % groups * kTokens;
    const float *shift = vectorOf(args.shift, row), *scale = vectorOf(args.scale, row);
    const In* x = args.x.as<In>() + (row * tokens + first) * c;
    Out* y = args.y.as<Out>() + (row * tokens + first) * c;
    if (first + kTokens <= tokens) {
      normalise<kTokens>(c, x, shift, scale, args.eps, y);
    } else {
      for (int64_t t = 0; t < tokens - first; t++) {
        normalise<1>(c, x + t * c, shift, scale, args.eps, y + t * c);
      }
    }
  });
}

}  // namespace

void layerNormModulate(const LayerNormModulateArgs& args) {
  withElements(args.x.dtype, [&]<typename In>(In*) {
    withElements(args.y.dtype, [&]<typename Out>(Out*) { run<In, Out>(args); });
  });
}

}  // namespace dit::cpu::DIT_ISA
