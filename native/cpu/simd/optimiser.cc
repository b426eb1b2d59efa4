// squaredNorm and adamW: one pass over the parameters each.
#include <cmath>

#include "cpu/simd/chunks.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

// Half a register of floats, a whole one of doubles.
typedef float HalfVec __attribute__((vector_size(2 * kLanes)));
typedef double Doubles __attribute__((vector_size(4 * kLanes)));
constexpr int kDoubles = kLanes / 2;

DIT_INLINE Doubles loadDoubles(const float* p) {
  HalfVec x;
  __builtin_memcpy(&x, p, sizeof(x));
  return __builtin_convertvector(x, Doubles);
}

// Four sums at once, for the sake of latency.
double squares(const float* x, int64_t n) {
  constexpr int kSums = 4;
  Doubles sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kDoubles <= n; i += kSums * kDoubles) {
    for (int k = 0; k < kSums; k++) {
      const Doubles at = loadDoubles(x + i + k * kDoubles);
      sums[k] += at * at;
    }
  }
  const Doubles all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double sum = 0;
  for (int k = 0; k < kDoubles; k++) sum += all[k];
  for (; i < n; i++) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

DIT_INLINE Vec squareRoot(Vec x) {
#ifdef __AVX512F__
  return _mm512_maskz_sqrt_ps(0xffff, x);
#else
  for (int i = 0; i < kLanes; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// The coefficients of a step, each rounded once. 1 - beta is exact in float, so a moment of a
// constant gradient tends to it exactly, and so does the EMA of constant parameters.
struct Coefficients {
  float gradScale, beta1, toM, beta2, toV, rootBias2, stepSize, eps, emaDecay, toEma;
  float decay[2];  // what a granule is multiplied by, without and with weight decay
};

Coefficients coefficients(const AdamWArgs& args) {
  const double step = static_cast<double>(args.step), lr = args.lr;
  const double bias1 = 1 - ::pow(static_cast<double>(args.beta1), step);
  const double bias2 = 1 - ::pow(static_cast<double>(args.beta2), step);
  Coefficients c;
  c.gradScale = args.gradScale;
  c.beta1 = args.beta1;
  c.toM = 1 - args.beta1;
  c.beta2 = args.beta2;
  c.toV = 1 - args.beta2;
  c.rootBias2 = static_cast<float>(1 / ::sqrt(bias2));
  c.stepSize = static_cast<float>(lr / bias1);
  c.eps = args.eps;
  c.emaDecay = args.emaDecay;
  c.toEma = 1 - args.emaDecay;
  c.decay[0] = 1;
  c.decay[1] = static_cast<float>(1 - lr * args.weightDecay);
  return c;
}

}  // namespace

void squaredNorm(const SquaredNormArgs& args) {
  const int64_t n = args.x.count();
  const float* x = args.x.as<float>();
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  double* sums = static_cast<double*>(scratch(static_cast<size_t>(chunks) * sizeof(double)));
  forChunks(n, [&](int64_t begin, int64_t end) {
    sums[begin / kChunk] = squares(x + begin, end - begin);
  });
  double sum = 0;
  for (int64_t i = 0; i < chunks; i++) sum += sums[i];
  *args.out.as<double>() = sum;
}

void adamW(const AdamWArgs& args) {
  static_assert(kParamGranule % kLanes == 0 && kChunk % kParamGranule == 0);
  const Coefficients c = coefficients(args);
  const uint8_t* decays = args.decays.as<uint8_t>();
  float *param = args.param.as<float>(), *grad = args.grad.as<float>();
  float *m = args.m.as<float>(), *v = args.v.as<float>(), *ema = args.ema.as<float>();
  Bf16* low = args.low.as<Bf16>();
  forChunks(args.param.count(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
      const float decay = c.decay[decays[i / kParamGranule] != 0];
      const Vec g = load(grad + i) * c.gradScale;
      const Vec mean = load(m + i) * c.beta1 + g * c.toM;
      const Vec square = load(v + i) * c.beta2 + g * g * c.toV;
      const Vec denominator = squareRoot(square) * c.rootBias2 + c.eps;
      const Vec p = load(param + i) * decay - mean * c.stepSize / denominator;
      store(grad + i, Vec{});
      store(m + i, mean);
      store(v + i, square);
      store(param + i, p);
      store(ema + i, load(ema + i) * c.emaDecay + p * c.toEma);
      if (low) store(low + i, p);
    }
  });
}

}  // namespace dit::cpu::DIT_ISA
