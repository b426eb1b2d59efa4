// layerNormModulateBackward. With x_hat = (x - mean) / sqrt(variance + eps) and
// g = dY (1 + scale), the derivative of a token is
//   dX = dResidual + (g - mean(g) - x_hat mean(g x_hat)) / sqrt(variance + eps)
//
// Four passes over the channels of kTogether tokens, which stay in the first-level cache: for the
// mean, for the variance around it, for the two means of g (and the sums over tokens), and for dX.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/simd/row_vector.h"
#include "cpu/simd/token_sums.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

constexpr int64_t kTogether = 4;

// Of some tokens, from the first; residual may be null.
template <typename Act>
struct Tokens {
  const float* x;
  const Act* dY;
  const float* residual;
  float* dX;

  Tokens from(int64_t element) const {
    return {x + element, dY + element, residual ? residual + element : nullptr, dX + element};
  }
};

// Adds to the sums of dY and of dY x_hat.
template <int64_t kCount, typename Act>
void differentiate(int64_t c, const Tokens<Act>& at, const float* scale, float eps, float* dShift,
                   float* dScale) {
  const float n = static_cast<float>(c);
  Vec sum[kCount] = {}, squares[kCount] = {}, sumG[kCount] = {}, sumGx[kCount] = {};
  forLanes(c, [&](int64_t i, auto lanes) {
    for (int64_t t = 0; t < kCount; t++) sum[t] += load(at.x + t * c + i, lanes);
  });
  Vec mean[kCount], norm[kCount];
  for (int64_t t = 0; t < kCount; t++) mean[t] = splat(sumLanes(sum[t]) / n);
  forLanes(c, [&](int64_t i, auto lanes) {
    for (int64_t t = 0; t < kCount; t++) {
      const Vec centred = keep(load(at.x + t * c + i, lanes) - mean[t], lanes);
      squares[t] += centred * centred;
    }
  });
  for (int64_t t = 0; t < kCount; t++) {
    norm[t] = splat(1 / sqrtf(sumLanes(squares[t]) / n + eps));
  }
  // The lanes that a load leaves out add nothing: dY is 0 there.
  forLanes(c, [&](int64_t i, auto lanes) {
    const Vec factor = load(scale + i, lanes) + 1.0f;
    Vec shiftSum = load(dShift + i, lanes), scaleSum = load(dScale + i, lanes);
    for (int64_t t = 0; t < kCount; t++) {
      const Vec dY = load(at.dY + t * c + i, lanes), g = dY * factor;
      const Vec normal = (load(at.x + t * c + i, lanes) - mean[t]) * norm[t];
      shiftSum += dY;
      scaleSum += dY * normal;
      sumG[t] += g;
      sumGx[t] += g * normal;
    }
    store(dShift + i, shiftSum, lanes);
    store(dScale + i, scaleSum, lanes);
  });
  for (int64_t t = 0; t < kCount; t++) {
    sumG[t] = splat(sumLanes(sumG[t]) / n);
    sumGx[t] = splat(sumLanes(sumGx[t]) / n);
  }
  forLanes(c, [&](int64_t i, auto lanes) {
    const Vec factor = load(scale + i, lanes) + 1.0f;
    for (int64_t t = 0; t < kCount; t++) {
      const int64_t j = t * c + i;
      const Vec normal = (load(at.x + j, lanes) - mean[t]) * norm[t];
      const Vec g = load(at.dY + j, lanes) * factor;
      Vec dX = (g - sumG[t] - normal * sumGx[t]) * norm[t];
      if (at.residual) dX += load(at.residual + j, lanes);
      store(at.dX + j, dX, lanes);
    }
  });
}

template <typename Act>
void run(const LayerNormModulateBackwardArgs& args) {
  const int64_t c = args.x.shape[2];
  const TokenBlocks blocks(args.x.shape[0], args.x.shape[1]);
  const Tokens<Act> all{args.x.as<float>(), args.dY.as<Act>(), args.dResidual.as<float>(),
                        args.dX.as<float>()};
  // Of each block: dShift, then dScale.
  float* sums =
      static_cast<float*>(scratch(static_cast<size_t>(blocks.count() * 2 * c) * sizeof(*sums)));
  blocks.forEach([&](int64_t block, int64_t row, int64_t first, int64_t count) {
    const float* scale = vectorOf(args.scale, row);
    float *dShift = sums + block * 2 * c, *dScale = dShift + c;
    forLanes(2 * c, [&](int64_t i, auto lanes) { store(dShift + i, Vec{}, lanes); });
    const Tokens<Act> own = all.from(first * c);
    int64_t t = 0;
    for (; t + kTogether <= count; t += kTogether) {
      differentiate<kTogether>(c, own.from(t * c), scale, args.eps, dShift, dScale);
    }
    for (; t < count; t++) {
      differentiate<1>(c, own.from(t * c), scale, args.eps, dShift, dScale);
    }
  });
  blocks.add(sums, 2 * c, args.dShift);
  blocks.add(sums + c, 2 * c, args.dScale);
}

}  // namespace

void layerNormModulateBackward(const LayerNormModulateBackwardArgs& args) {
  withElements(args.dY.dtype, [&]<typename Act>(Act*) { run<Act>(args); });
}

}  // namespace dit::cpu::DIT_ISA
