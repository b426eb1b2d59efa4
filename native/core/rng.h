#pragma once

#include <array>
#include <cmath>
#include <cstdint>

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011), a counter-based generator: a number depends on its key and its counter only, never on
// what was drawn before. The noise of an image therefore depends on (seed, step, position) alone,
// whatever shares its batch, and is the same on every device up to the rounding of log and cos.

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
DIT_HOST_DEVICE static inline float uniformOpen(uint32_t bits) {
  const float u = (static_cast<float>(bits >> 8) + 0.5f) * 5.9604644775390625e-8f;  // 2^-24
  return u;
}

// Four standard normal numbers (Box-Muller) for elements 4 * block .. 4 * block + 3 of a tensor.
// `index` tells apart the tensors of one stream: the step of a sampler, the number of a weight.
DIT_HOST_DEVICE static inline void normal4(uint64_t seed, NoiseStream stream, uint32_t index,
                                           uint64_t block, float out[4]) {
  const Philox4 bits =
      philox(seed, {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), index,
                     static_cast<uint32_t>(stream)}});
  for (int pair = 0; pair < 2; pair++) {
    const float radius = sqrtf(-2.0f * logf(uniformOpen(bits.v[2 * pair])));
    const float angle = 6.283185307179586f * uniformOpen(bits.v[2 * pair + 1]);
#ifdef __CUDA_ARCH__
    // Otherwise cosf and sinf come with a way for huge arguments, which takes local memory.
    __builtin_assume(fabsf(angle) < 7.0f);
#endif
    out[2 * pair] = radius * cosf(angle);
    out[2 * pair + 1] = radius * sinf(angle);
  }
}

}  // namespace dit
