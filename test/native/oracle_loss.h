#pragma once

#include <complex>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "oracle.h"

// The oracle of the training loss and of AdamW, as training.h has their formulas. The likelihood is
// the difference of two cdfs as it stands there: it cancels, so where P is small only a run in long
// double is the truth.

namespace dit::test::oracle {

inline long double realPart(long double x) { return x; }
inline long double realPart(std::complex<long double> x) { return x.real(); }

constexpr double kLeastProbability = 1e-12;

template <typename T>
T cdfArgument(T z) {
  return number<T>(std::sqrt(2 / M_PI)) * (z + number<T>(0.044715) * z * z * z);
}

// The tanh approximation of the standard normal cdf.
template <typename T>
T normalCdf(T z) {
  return number<T>(0.5) * (number<T>(1) + std::tanh(cdfArgument(z)));
}

// log P of the bin of 2/255 around x where the mean lies `distance` below x, in nats.
template <typename T>
T logLikelihood(double x, T distance, T logVariance) {
  const T inverse = std::exp(-logVariance / number<T>(2));
  const T upper = normalCdf((distance + number<T>(1.0 / 255)) * inverse);
  const T lower = normalCdf((distance - number<T>(1.0 / 255)) * inverse);
  const T p = x < -0.999 ? upper : x > 0.999 ? number<T>(1) - lower : upper - lower;
  return std::log(realPart(p) < kLeastProbability ? number<T>(kLeastProbability) : p);
}

// KL(N(m1, exp(logVariance1)) || N(m2, exp(logVariance2))) with m1 - m2 = distance, in nats.
template <typename T>
T normalKl(T distance, T logVariance1, T logVariance2) {
  return number<T>(0.5) *
         (number<T>(-1) + logVariance2 - logVariance1 + std::exp(logVariance1 - logVariance2) +
          distance * distance * std::exp(-logVariance2));
}

template <typename T>
T logVariance(const LossStep& step, T v) {
  const T f = (v + number<T>(1)) / number<T>(2);
  return f * number<T>(step.logVarianceMax) + (number<T>(1) - f) * number<T>(step.logVarianceMin);
}

// The bound's term of one element, in bits. The mean of p is that of q, at t = 0 x0, plus distance.
template <typename T>
T boundTerm(const LossStep& step, double x0, T difference, T v) {
  const T distance = number<T>(step.meanFromEps) * difference, variance = logVariance(step, v);
  const T nats = step.decoder ? -logLikelihood(x0, -distance, variance)
                              : normalKl(distance, number<T>(step.logVarianceMin), variance);
  return nats / number<T>(std::log(2.0));
}

// d boundTerm / d v by the formulas' own derivatives, without regard to cancellation.
template <typename T>
T boundDerivative(const LossStep& step, double x0, T difference, T v) {
  const T one = number<T>(1), half = number<T>(0.5);
  const T distance = number<T>(step.meanFromEps) * difference, variance = logVariance(step, v);
  T slope;
  if (step.decoder) {
    const T inverse = std::exp(-variance * half), bin = number<T>(1.0 / 255);
    const T z[] = {(bin - distance) * inverse, (-bin - distance) * inverse};
    T moved[2];  // d cdf / d logVariance
    for (int i = 0; i < 2; i++) {
      const T tanh = std::tanh(cdfArgument(z[i]));
      const T inner =
          number<T>(std::sqrt(2 / M_PI)) * (one + number<T>(3 * 0.044715) * z[i] * z[i]);
      moved[i] = half * (one - tanh * tanh) * inner * -half * z[i];
    }
    const T upper = normalCdf(z[0]), lower = normalCdf(z[1]);
    const T p = x0 < -0.999 ? upper : x0 > 0.999 ? one - lower : upper - lower;
    const T change = x0 < -0.999 ? moved[0] : x0 > 0.999 ? -moved[1] : moved[0] - moved[1];
    slope = p < number<T>(kLeastProbability) ? number<T>(0) : -change / p;
  } else {
    slope = half * (one - std::exp(number<T>(step.logVarianceMin) - variance) -
                    distance * distance * std::exp(-variance));
  }
  const T range = number<T>(step.logVarianceMax) - number<T>(step.logVarianceMin);
  return slope * range * half / number<T>(std::log(2.0));
}

struct LossSetup {
  int64_t rows, c, co, hw;
  bool bound = true;
  double scale = 1;
};

template <typename T>
struct LossResult {
  Vector<T> mse, vb;   // [R]
  Vector<T> dEps, dV;  // [R, C, HW]; dV empty where nothing is learned
};

// model [R, Co, HW], noise and x0 [R, C, HW]. In double the gradients are complex steps.
template <typename T>
LossResult<T> loss(const LossSetup& s, const Vector<T>& model, const Vector<T>& noise,
                   const Vector<T>& x0, const std::vector<LossStep>& steps) {
  LossResult<T> result;
  const int64_t n = s.c * s.hw;
  const T share = number<T>(s.scale) / number<T>(n);
  for (int64_t row = 0; row < s.rows; row++) {
    T squares{}, bits{};
    for (int64_t i = 0; i < n; i++) {
      const T difference = noise[row * n + i] - model[row * s.co * s.hw + i];
      squares += difference * difference;
      result.dEps.push_back(number<T>(-2) * difference * share);
      if (s.co == s.c) continue;
      const T v = model[row * s.co * s.hw + n + i];
      const double x = x0[row * n + i];
      if (!s.bound) {
        result.dV.push_back(number<T>(0));
        continue;
      }
      bits += boundTerm(steps[row], x, difference, v);
      if constexpr (std::is_same_v<T, double>) {
        using Complex = std::complex<double>;
        constexpr double kStep = 1e-100;
        const Complex moved = boundTerm<Complex>(steps[row], x, difference, {v, kStep});
        result.dV.push_back(moved.imag() / kStep * share);
      } else {
        result.dV.push_back(boundDerivative(steps[row], x, difference, v) * share);
      }
    }
    result.mse.push_back(squares / number<T>(n));
    result.vb.push_back(bits / number<T>(n));
  }
  return result;
}

// One element's parameter, gradient, moments and EMA.
template <typename T>
struct AdamState {
  T param, grad, m, v, ema;
};

template <typename T>
void adamW(const AdamWArgs& args, bool decays, AdamState<T>& s) {
  const T one = number<T>(1), beta1 = number<T>(args.beta1), beta2 = number<T>(args.beta2);
  const T lr = number<T>(args.lr), step = number<T>(static_cast<double>(args.step));
  const T g = number<T>(args.gradScale) * s.grad;
  if (decays) s.param *= one - lr * number<T>(args.weightDecay);
  s.m = beta1 * s.m + (one - beta1) * g;
  s.v = beta2 * s.v + (one - beta2) * g * g;
  s.param -= lr * (s.m / (one - std::pow(beta1, step))) /
             (std::sqrt(s.v / (one - std::pow(beta2, step))) + number<T>(args.eps));
  const T decay = number<T>(args.emaDecay);
  s.ema = decay * s.ema + (one - decay) * s.param;
  s.grad = number<T>(0);
}

}  // namespace dit::test::oracle
