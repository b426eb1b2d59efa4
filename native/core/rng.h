#pragma once

#include <cmath>
#include <cstdint>

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011), a counter-based generator: a number depends on its key and its counter only, never on
// what was drawn before. The noise of an image therefore depends on (seed, step, position) alone,
// whatever shares its batch, and is the same, bit by bit, on every device.

#ifdef __CUDACC__
#define DIT_HOST_DEVICE __host__ __device__
#else
#define DIT_HOST_DEVICE
#endif

namespace dit {

// The functions are static: native/cpu/simd compiles them once for each instruction set, and the
// linker must not take one of these copies for all.
struct Philox4 {
  uint32_t v[4];
};

DIT_HOST_DEVICE static inline Philox4 philox(uint64_t key, Philox4 counter) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * counter.v[0];
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * counter.v[2];
    counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.v[1] ^ k0, static_cast<uint32_t>(p1),
                static_cast<uint32_t>(p0 >> 32) ^ counter.v[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// What a random number is for: a part of the counter, so that no two uses share numbers.
enum class NoiseStream : uint32_t {
  Latent = 0,
  Step = 1,
  Moments = 2,
  Init = 3,
  Training = 4,      // the noise that a training step adds
  TrainingRow = 5,   // its timesteps and dropped labels
  TrainingStep = 6,  // the key of a training step
};

// A uniform number in (0, 1): an odd multiple of 2^-25, so never 0 and never 1.
DIT_HOST_DEVICE static inline double uniformOpen(uint32_t bits) {
  return (static_cast<double>(bits >> 8) + 0.5) * 5.9604644775390625e-8;  // 2^-24
}

// Logarithm, cosine and sine of what libraries round as they please, from operations that IEEE 754
// rounds alone: in double precision, every product that meets a sum in one fma, so that no compiler
// has anything to contract. So the numbers below have the same bits on every device and processor;
// errors are below 1e-10, far below the rounding to float.

// log(x) = 2 artanh(s) with s = (x - 1) / (x + 1), x from sqrt(1/2) to sqrt(2) times a power of 2.
DIT_HOST_DEVICE static inline double exactLog(double x) {
  const uint64_t bits = __builtin_bit_cast(uint64_t, x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = __builtin_bit_cast(double, (bits & 0xfffffffffffff) | 0x3ff0000000000000);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    exponent++;
  }
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double p = 1.0 / 13;
  p = fma(p, square, 1.0 / 11);
  p = fma(p, square, 1.0 / 9);
  p = fma(p, square, 1.0 / 7);
  p = fma(p, square, 1.0 / 5);
  p = fma(p, square, 1.0 / 3);
  p = fma(p, square, 1.0);
  const double twice = s + s;
  return fma(static_cast<double>(exponent), 0.6931471805599453, twice * p);
}

// Cosine and sine of u turns, u in [0, 1): Taylor's sums for what is left of whole quarters.
DIT_HOST_DEVICE static inline void exactCosSin(double u, double& cosine, double& sine) {
  const int quarter = static_cast<int>(fma(u, 4.0, 0.5));
  const double x = fma(u, 4.0, -static_cast<double>(quarter)) * 1.5707963267948966;
  const double square = x * x;
  double s = -1.0 / 39916800, c = 1.0 / 479001600;
  s = fma(s, square, 1.0 / 362880);
  s = fma(s, square, -1.0 / 5040);
  s = fma(s, square, 1.0 / 120);
  s = fma(s, square, -1.0 / 6);
  s = fma(s, square, 1.0);
  s *= x;
  c = fma(c, square, -1.0 / 3628800);
  c = fma(c, square, 1.0 / 40320);
  c = fma(c, square, -1.0 / 720);
  c = fma(c, square, 1.0 / 24);
  c = fma(c, square, -0.5);
  c = fma(c, square, 1.0);
  const bool odd = quarter % 2 != 0;
  const double a = odd ? -s : c, b = odd ? c : s;
  cosine = quarter & 2 ? -a : a;
  sine = quarter & 2 ? -b : b;
}

// Four standard normal numbers (Box-Muller) for elements 4 * block .. 4 * block + 3 of a tensor.
// `index` tells apart the tensors of one stream: the step of a sampler, the number of a weight.
DIT_HOST_DEVICE static inline void normal4(uint64_t seed, NoiseStream stream, uint32_t index,
                                           uint64_t block, float out[4]) {
  const Philox4 bits =
      philox(seed, {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), index,
                     static_cast<uint32_t>(stream)}});
  for (int pair = 0; pair < 2; pair++) {
    const double radius = sqrt(-2.0 * exactLog(uniformOpen(bits.v[2 * pair])));
    double cosine, sine;
    exactCosSin(uniformOpen(bits.v[2 * pair + 1]), cosine, sine);
    out[2 * pair] = static_cast<float>(radius * cosine);
    out[2 * pair + 1] = static_cast<float>(radius * sine);
  }
}

}  // namespace dit
