#pragma once

#include "cpu/simd/vec.h"

// exp and 2^x for registers of floats: a power of two for the whole part of the exponent, times a
// polynomial for the rest. The polynomials are minimax in relative error (Remez exchange).

namespace dit::cpu::DIT_ISA {

// p * 2^n for whole n in [-150, 128]; results below the normal numbers are rounded once more.
DIT_INLINE Vec scaleByPowerOf2(Vec p, Vec n) {
#ifdef __AVX512F__
  return _mm512_maskz_scalef_ps(0xffff, p, n);
#else
  // In two steps, for 2^-150 and 2^128 are not floats.
  const Ints whole = __builtin_convertvector(n, Ints);
  const Ints half = whole >> 1;
  const Vec first = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec second = reinterpret_cast<Vec>((whole - half + 127) << 23);
  return p * first * second;
#endif
}

// Within 1.5 units in the last place; 0 from -104 downwards, infinity from 88.73 upwards, NaN
// stays.
DIT_INLINE Vec exp(Vec x) {
  // Beyond these the result is 0 or infinity anyway. NaN passes, as the second operand.
  x = minimum(splat(89.0f), maximum(splat(-104.0f), x));
  // Adding 1.5 * 2^23 leaves no bits for fractions: it rounds to the nearest whole number.
  const Vec rounder = splat(12582912.0f);
  const Vec n = (x * splat(1.44269504088896341f) + rounder) - rounder;
  // ln 2 in two parts, of which the first has so few bits that n times it is exact.
  const Vec r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440054690583e-4f);
  // 1 + r + r^2 q(r) on |r| <= ln 2 / 2: relative error 3.1e-9.
  // Pairs of terms at a time (Estrin), for the sake of latency.
  const Vec r2 = r * r;
  const Vec low = splat(0.166665207f) * r + splat(0.499999935f);
  const Vec high = splat(0.00836870982f) * r + splat(0.0416683874f);
  const Vec q = (splat(0.00138146133f) * r2 + high) * r2 + low;
  const Vec p = q * r2 + r;
  return scaleByPowerOf2(p + splat(1.0f), n);
}

// 2^x: 0 gives 1 exactly, -infinity gives 0, NaN stays. Relative error 8e-8 near 0, growing as the
// spacing of floats at x; with kCoarse 9e-5, where the result is about to be rounded to bfloat16
// (2e-3).
template <bool kCoarse>
DIT_INLINE Vec exp2(Vec x) {
#ifdef __AVX512F__
  // scalef takes the floor of its exponent by itself; reduce leaves x - floor(x), 0 for -infinity.
  constexpr int kTowardsMinusInfinity = 0x9;
  const Vec n = x, r = _mm512_maskz_reduce_ps(0xffff, x, kTowardsMinusInfinity);
#else
  const Vec rounder = splat(12582912.0f);  // see exp; it rounds x - 1/2 to the floor of x
  x = minimum(splat(128.0f), maximum(splat(-150.0f), x));
  const Vec n = (x - splat(0.5f) + rounder) - rounder;
  const Vec r = x - n;
#endif
  Vec p;
  if constexpr (kCoarse) {
    p = splat(0.0770670464f);
    p = p * r + splat(0.227644985f);
    p = p * r + splat(0.695116788f);
  } else {
    const Vec r2 = r * r;
    const Vec low = splat(0.24016445f) * r + splat(0.693151312f);
    const Vec high = splat(0.00901702996f) * r + splat(0.0557999134f);
    p = (splat(0.00186713021f) * r2 + high) * r2 + low;
  }
  return scaleByPowerOf2(p * r + splat(1.0f), n);
}

// s = 1 / (1 + exp(-x)) and 1 - s, both without cancellation; kCoarse as above. At an infinity
// they are 0 and 1, NaN stays.
struct Sigmoid {
  Vec s, complement;
};

template <bool kCoarse>
DIT_INLINE Sigmoid sigmoid(Vec x) {
  Vec e, s;
  if constexpr (kCoarse) {
    e = exp2<true>(x * splat(-1.44269504088896341f));
  } else {
    e = exp(-x);
  }
#ifdef __AVX512F__
  s = kCoarse ? Vec(_mm512_maskz_rcp14_ps(0xffff, e + splat(1.0f))) : splat(1.0f) / (e + 1.0f);
#else
  s = splat(1.0f) / (e + 1.0f);
#endif
  // e may be infinite, s near 1.
  return {s, e < splat(1.0f) ? s * e : splat(1.0f) - s};
}

// gelu(x) = x / 2 (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), and its
// derivative, s + x s (1 - s) 2 u'. kCoarse as above. Beyond 32 either way they are x or 0, 1 or 0.
struct Gelu {
  Vec value, derivative;
};

template <bool kCoarse>
DIT_INLINE Gelu gelu(Vec x) {
  constexpr float kTwoRoot = 1.59576912160573f;  // 2 sqrt(2 / pi)
  // Within limits, for infinity times 0 is NaN. NaN passes, as the second operand.
  const Vec v = minimum(splat(32.0f), maximum(splat(-32.0f), x));
  const Vec square = v * v;
  const Sigmoid at = sigmoid<kCoarse>(v * (square * (kTwoRoot * 0.044715f) + kTwoRoot));
  const Vec slope = square * (3 * kTwoRoot * 0.044715f) + kTwoRoot;
  return {x * at.s, at.s * (v * at.complement * slope + 1.0f)};
}

// x / (1 + exp(-x)); kCoarse as above.
template <bool kCoarse>
DIT_INLINE Vec silu(Vec x) {
  if constexpr (!kCoarse) return x / (exp(-x) + splat(1.0f));
  const Vec denominator = exp2<true>(x * splat(-1.44269504088896341f)) + splat(1.0f);
#ifdef __AVX512F__
  return x * Vec(_mm512_maskz_rcp14_ps(0xffff, denominator));
#else
  return x / denominator;
#endif
}

}  // namespace dit::cpu::DIT_ISA
