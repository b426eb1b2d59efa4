// layerNormModulate: y = (x - mean) / sqrt(variance + eps) * (1 + scale) + shift per token, with
// shift and scale of the token's row. A token's channels (1152 for XL) stay in the first-level
// cache, so the three passes, for the mean, for the variance around it and for the result, read
// memory once; variance from the sum of squares would save one pass and lose digits.
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

template <typename In, typename Out>
void normaliseToken(int64_t c, const In* x, const float* shift, const float* scale, float eps,
                    Out* y) {
  const float n = static_cast<float>(c);
  const float mean = sumOf(c, [&](int64_t i, auto lanes) { return load(x + i, lanes); }) / n;
  const float variance = sumOf(c,
                               [&](int64_t i, auto lanes) {
                                 const Vec centred = load(x + i, lanes) - mean;
                                 return centred * centred;
                               }) /
                         n;
  const float norm = 1 / sqrtf(variance + eps);
  forLanes(c, [&](int64_t i, auto lanes) {
    const Vec normal = (load(x + i, lanes) - mean) * norm;
    store(y + i, normal * (load(scale + i, lanes) + 1.0f) + load(shift + i, lanes), lanes);
  });
}

template <typename In, typename Out>
void run(const LayerNormModulateArgs& args) {
  const int64_t rows = args.x.shape[0], tokens = args.x.shape[1], c = args.x.shape[2];
  const In* x = args.x.as<In>();
  Out* y = args.y.as<Out>();
  auto vector = [](const RowVector& v, int64_t row) {
    return v.table.as<float>() + v.index.as<int32_t>()[row] * v.table.rowStride;
  };
  parallelFor(rows * tokens, [&](int64_t token) {
    const int64_t row = token / tokens;
    normaliseToken(c, x + token * c, vector(args.shift, row), vector(args.scale, row), args.eps,
                   y + token * c);
  });
}

}  // namespace

void layerNormModulate(const LayerNormModulateArgs& args) {
  withElements(args.x.dtype, [&]<typename In>(In*) {
    withElements(args.y.dtype, [&]<typename Out>(Out*) { run<In, Out>(args); });
  });
}

}  // namespace dit::cpu::DIT_ISA
