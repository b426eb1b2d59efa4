#pragma once

#include <cstdint>

#include "core/tensor.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

// One register of floats, for the instruction set that this folder is being compiled for. Nothing
// here or in the files that include it may leave an inline function to the linker under a name
// that the builds share: it would keep one of them, and run AVX-512 code on a processor without.
// So everything stands in namespace dit::cpu::DIT_ISA, and what comes from other headers must be
// small enough to vanish.

#define DIT_INLINE inline __attribute__((always_inline))

namespace dit::cpu::DIT_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Arithmetic and comparisons work lane by lane; a comparison gives Ints of 0 and -1, and
// `condition ? a : b` chooses by lane.
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UInts __attribute__((vector_size(4 * kLanes)));
typedef uint16_t UShorts __attribute__((vector_size(2 * kLanes)));

struct Bf16 {
  uint16_t bits;
};

// x in every lane. (x - 0 is x for all x, which the compiler knows; x + 0 is not, for x = -0.)
DIT_INLINE Vec splat(float x) { return x - Vec{}; }
DIT_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
DIT_INLINE Vec minimum(Vec a, Vec b) { return a < b ? a : b; }

DIT_INLINE Vec bitsToFloats(UInts bits) { return reinterpret_cast<Vec>(bits); }
DIT_INLINE UInts floatsToBits(Vec x) { return reinterpret_cast<UInts>(x); }

DIT_INLINE Vec widen(UShorts x) { return bitsToFloats(__builtin_convertvector(x, UInts) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN. (The processor's own instruction takes
// subnormal numbers for zero.)
DIT_INLINE UShorts narrow(Vec x) {
#ifdef __AVX512BF16__
  return reinterpret_cast<UShorts>(_mm512_cvtneps_pbh(x));
#else
  const UInts bits = floatsToBits(x);
  const UInts up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(x == x ? up : (bits >> 16) | 0x40, UShorts);
#endif
}

// How many of a register's lanes a load or a store touches: all, or the first n. The lanes that a
// load leaves out are 0.
struct Full {};
struct First {
  int n;
};

DIT_INLINE Vec load(const float* p, Full = {}) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}

DIT_INLINE Vec load(const Bf16* p, Full = {}) {
  UShorts x;
  __builtin_memcpy(&x, p, sizeof(x));
  return widen(x);
}

DIT_INLINE void store(float* p, Vec x, Full = {}) { __builtin_memcpy(p, &x, sizeof(x)); }

DIT_INLINE void store(Bf16* p, Vec x, Full = {}) {
  const UShorts bits = narrow(x);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

#ifdef __AVX512F__

DIT_INLINE __mmask16 firstLanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

DIT_INLINE Vec load(const float* p, First lanes) {
  return _mm512_maskz_loadu_ps(firstLanes(lanes.n), p);
}

DIT_INLINE Vec load(const Bf16* p, First lanes) {
  return widen(reinterpret_cast<UShorts>(_mm256_maskz_loadu_epi16(firstLanes(lanes.n), p)));
}

DIT_INLINE void store(float* p, Vec x, First lanes) {
  _mm512_mask_storeu_ps(p, firstLanes(lanes.n), x);
}

DIT_INLINE void store(Bf16* p, Vec x, First lanes) {
  _mm256_mask_storeu_epi16(p, firstLanes(lanes.n), reinterpret_cast<__m256i>(narrow(x)));
}

#else

DIT_INLINE Vec load(const float* p, First lanes) {
  Vec x = {};
  for (int i = 0; i < kLanes; i++) x[i] = i < lanes.n ? p[i] : 0;
  return x;
}

DIT_INLINE Vec load(const Bf16* p, First lanes) {
  UShorts x = {};
  for (int i = 0; i < kLanes; i++) x[i] = i < lanes.n ? p[i].bits : 0;
  return widen(x);
}

DIT_INLINE void store(float* p, Vec x, First lanes) {
  for (int i = 0; i < lanes.n; i++) p[i] = x[i];
}

DIT_INLINE void store(Bf16* p, Vec x, First lanes) {
  const UShorts bits = narrow(x);
  for (int i = 0; i < lanes.n; i++) p[i].bits = bits[i];
}

#endif

DIT_INLINE float toFloat(float x) { return x; }
DIT_INLINE float toFloat(Bf16 x) { return bf16ToFloat(x.bits); }
DIT_INLINE void put(float* p, float x) { *p = x; }
DIT_INLINE void put(Bf16* p, float x) { p->bits = floatToBf16(x); }

// x in the lanes that count, 0 in the others.
DIT_INLINE Vec keep(Vec x, Full) { return x; }
DIT_INLINE Vec keep(Vec x, First lanes) {
#ifdef __AVX512F__
  return _mm512_maskz_mov_ps(firstLanes(lanes.n), x);
#else
  for (int i = lanes.n; i < kLanes; i++) x[i] = 0;
  return x;
#endif
}

// Sum of the lanes, always in the same order: halves onto halves.
DIT_INLINE float sumLanes(Vec x) {
  float lane[kLanes];
  store(lane, x);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  }
  return lane[0];
}

// Calls use(i, lanes) for i = 0, kLanes, ... that cover [0, n): with Full, last with First.
template <typename Use>
DIT_INLINE void forLanes(int64_t n, Use&& use) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) use(i, Full{});
  if (i < n) use(i, First{static_cast<int>(n - i)});
}

// Sum of term(i, lanes) over [0, n): lanes first, in an order that depends on n alone.
template <typename Term>
DIT_INLINE float sumOf(int64_t n, Term&& term) {
  constexpr int kChains = 4;  // additions in flight
  Vec sum[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    for (int chain = 0; chain < kChains; chain++) sum[chain] += term(i + chain * kLanes, Full{});
  }
  forLanes(n - i, [&](int64_t j, auto lanes) { sum[0] += keep(term(i + j, lanes), lanes); });
  return sumLanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Calls use with a null pointer of the type that a tensor's elements have: float or Bf16.
template <typename Use>
DIT_INLINE void withElements(DType dtype, Use&& use) {
  if (dtype == DType::BF16) {
    use(static_cast<Bf16*>(nullptr));
  } else {
    use(static_cast<float*>(nullptr));
  }
}

}  // namespace dit::cpu::DIT_ISA
