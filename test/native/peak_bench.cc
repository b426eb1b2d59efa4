#include <cstdint>
#include <cstring>

#include "cpu/parallel.h"
#include "harness.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// The processor's peak, to compare products with: multiply-adds on registers alone, in as many
// independent chains as hide their latency, on all threads. `npm run bench` reads these lines.

namespace dit::test {
namespace {

constexpr int64_t kRounds = 1 << 20;

// One loop: multiply-adds per round and what runs `rounds` of them. The sum keeps the loop alive.
struct Loop {
  const char* name;
  double flopsPerRound;
  float (*run)(int64_t rounds, float start);
};

#if defined(__x86_64__)

// 24 of 32 registers are sums: more than two units times a latency of six cycles at most.
constexpr int kChains = 24;

__attribute__((target("avx512f"))) float avx512Fp32(int64_t rounds, float start) {
  __m512 sums[kChains];
  for (int i = 0; i < kChains; i++) sums[i] = _mm512_set1_ps(start + static_cast<float>(i));
  const __m512 x = _mm512_set1_ps(start * 0.5f), y = _mm512_set1_ps(0.25f);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) sums[i] = _mm512_fmadd_ps(sums[i], x, y);
  }
  for (int i = 1; i < kChains; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

// The operands are ones and a quarter: sums grow for a while, then stay, and never overflow.
__attribute__((target("avx512f,avx512bf16"))) float avx512Bf16(int64_t rounds, float start) {
  __m512 sums[kChains];
  for (int i = 0; i < kChains; i++) sums[i] = _mm512_set1_ps(start + static_cast<float>(i));
  const __m512i ones = _mm512_set1_epi32(0x3f803f80), quarters = _mm512_set1_epi32(0x3e803e80);
  __m512bh x, y;
  std::memcpy(&x, &ones, sizeof(x));
  std::memcpy(&y, &quarters, sizeof(y));
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) sums[i] = _mm512_dpbf16_ps(sums[i], x, y);
  }
  for (int i = 1; i < kChains; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

constexpr int kChains256 = 12;  // of 16 registers

__attribute__((target("avx2,fma"))) float avx2Fp32(int64_t rounds, float start) {
  __m256 sums[kChains256];
  for (int i = 0; i < kChains256; i++) sums[i] = _mm256_set1_ps(start + static_cast<float>(i));
  const __m256 x = _mm256_set1_ps(start * 0.5f), y = _mm256_set1_ps(0.25f);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains256; i++) sums[i] = _mm256_fmadd_ps(sums[i], x, y);
  }
  for (int i = 1; i < kChains256; i++) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

#endif

// What any processor has: a multiplication and an addition of four numbers.
float portableFp32(int64_t rounds, float start) {
  using Four = float __attribute__((vector_size(16)));
  constexpr int kChainsOfFour = 12;
  Four sums[kChainsOfFour];
  for (int i = 0; i < kChainsOfFour; i++) sums[i] = Four{} + (start + static_cast<float>(i));
  const Four x = Four{} + start * 0.5f, y = Four{} + 0.25f;
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
    for (int i = 0; i < kChainsOfFour; i++) sums[i] = sums[i] * x + y;
  }
  for (int i = 1; i < kChainsOfFour; i++) sums[0] += sums[i];
  return sums[0][0];
}

void benchLoop(Test& test, const Loop& loop) {
  cpu::setThreads(test.options().threads);
  const int64_t threads = cpu::threads();
  std::vector<float> results(static_cast<size_t>(threads));
  const double flops = loop.flopsPerRound * static_cast<double>(kRounds * threads);
  test.bench(loop.name, flops, 0, [&] {
    cpu::parallelFor(threads,
                     [&](int64_t i) { results[static_cast<size_t>(i)] = loop.run(kRounds, 1); });
  });
  for (const float result : results) EXPECT(result != 0);
}

DIT_BENCH("peak") {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bf16"))
    benchLoop(test, {"peak/bf16", 2.0 * 32 * kChains, avx512Bf16});
  if (__builtin_cpu_supports("avx512f")) {
    benchLoop(test, {"peak/fp32", 2.0 * 16 * kChains, avx512Fp32});
    return;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    benchLoop(test, {"peak/fp32", 2.0 * 8 * kChains256, avx2Fp32});
    return;
  }
#endif
  benchLoop(test, {"peak/fp32", 2.0 * 4 * 12, portableFp32});
}

}  // namespace
}  // namespace dit::test
