#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// The functions of CUDA's library that are not rounded correctly, as wrong as its documentation
// lets them be (CUDA C++ Programming Guide, appendix "Mathematical Functions"; PTX ISA for the
// approximate instructions): the true value, moved by up to that many units in the last place, by a
// hash of the argument. A bar that holds here does not lean on the host's library, which is nearly
// exact. Sums, products, fma, division and square roots are rounded correctly on a GPU as well.

namespace dit::simt {

// `value` as a float within `units` of its last place, at least 0.5. What is exact, stays exact.
inline float inexact(float argument, double value, double units) {
  const auto nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || !std::isfinite(nearest) || nearest == 0) {
    return nearest;
  }
  uint32_t bits;
  std::memcpy(&bits, &argument, sizeof(bits));
  bits = (bits ^ bits >> 16) * 0x7feb352du;
  bits = (bits ^ bits >> 15) * 0x846ca68bu;
  const double between = static_cast<double>(bits ^ bits >> 16) * 0x1p-31 - 1;  // -1 .. 1
  const double unit = std::ldexp(1.0, std::ilogb(value) - 23);
  return static_cast<float>(value + between * (units - 0.5) * unit);
}

inline float exponential(float x) { return inexact(x, std::exp(static_cast<double>(x)), 2); }
inline float logarithm(float x) { return inexact(x, std::log(static_cast<double>(x)), 1); }
inline float sine(float x) { return inexact(x, std::sin(static_cast<double>(x)), 2); }
inline float cosine(float x) { return inexact(x, std::cos(static_cast<double>(x)), 2); }

// ex2.approx.ftz: relative error 2^-22.5; what would be subnormal is 0.
inline float exp2Approximate(float x) {
  const float y = inexact(x, std::exp2(static_cast<double>(x)), 1.41);
  return y < 0x1p-126f ? 0.0f : y;
}
// rcp.approx.ftz.
inline float reciprocalApproximate(float x) {
  const float y = inexact(x, 1.0 / static_cast<double>(x), 1);
  return std::abs(y) < 0x1p-126f ? std::copysign(0.0f, y) : y;
}
// tanh.approx: relative error 2^-11.
inline float tanhApproximate(float x) {
  return inexact(x, std::tanh(static_cast<double>(x)), 0x1p12);
}

}  // namespace dit::simt

// As kernels call them, without std.
#define expf(x) ::dit::simt::exponential(x)
#define logf(x) ::dit::simt::logarithm(x)
#define sinf(x) ::dit::simt::sine(x)
#define cosf(x) ::dit::simt::cosine(x)
