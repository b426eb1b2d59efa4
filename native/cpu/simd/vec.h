#pragma once

#include <cstdint>
#include <utility>

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

template <typename T>
constexpr bool kIsBf16 = false;
template <>
constexpr bool kIsBf16<Bf16> = true;

// x in every lane. (x - 0 is x for all x, which the compiler knows; x + 0 is not, for x = -0.)
DIT_INLINE Vec splat(float x) { return x - Vec{}; }
// b where either is NaN. (The compiler finds the instruction in some places only.)
#ifdef __AVX512F__
DIT_INLINE Vec maximum(Vec a, Vec b) { return _mm512_maskz_max_ps(0xffff, a, b); }
DIT_INLINE Vec minimum(Vec a, Vec b) { return _mm512_maskz_min_ps(0xffff, a, b); }
#else
DIT_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
DIT_INLINE Vec minimum(Vec a, Vec b) { return a < b ? a : b; }
#endif

DIT_INLINE Vec bitsToFloats(UInts bits) { return reinterpret_cast<Vec>(bits); }
DIT_INLINE UInts floatsToBits(Vec x) { return reinterpret_cast<UInts>(x); }

DIT_INLINE Vec widen(UShorts x) {
#ifdef __AVX512F__
  // Left to itself, the compiler does it by halves.
  const UInts wide =
      reinterpret_cast<UInts>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(x)));
#else
  const UInts wide = __builtin_convertvector(x, UInts);
#endif
  return bitsToFloats(wide << 16);
}

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

// Lane i of the result is lane Source::of(i) of a, or of b from kLanes onwards.
template <typename Source, int... kIndex>
DIT_INLINE Vec shuffle(Vec a, Vec b, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(a, b, Source::of(kIndex)...);
}
template <typename Source>
DIT_INLINE Vec shuffle(Vec a, Vec b) {
  return shuffle<Source>(a, b, std::make_integer_sequence<int, kLanes>());
}

template <int kBy>
struct Rotated {
  static constexpr int of(int lane) { return (lane + kBy) % kLanes; }
};

// Sum of the lanes, always in the same order: halves onto halves.
template <int kHalf = kLanes / 2>
DIT_INLINE float sumLanes(Vec x) {
  x += shuffle<Rotated<kHalf>>(x, x);
  if constexpr (kHalf > 1) {
    return sumLanes<kHalf / 2>(x);
  } else {
    return x[0];
  }
}

// Calls use(i, lanes) for i = 0, kLanes, ... that cover [0, n): with Full, last with First.
template <typename Use>
DIT_INLINE void forLanes(int64_t n, Use&& use) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) use(i, Full{});
  if (i < n) use(i, First{static_cast<int>(n - i)});
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
