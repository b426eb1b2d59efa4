// silu, timestepEmbedding, conditionEmbedding and toRgb8: one pass each.
#include <cmath>

#include "cpu/simd/chunks.h"
#include "cpu/simd/simd_math.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void silu(const SiluArgs& args) {
  withElements(args.y.dtype, [&]<typename Out>(Out*) {
    forChunks(args.x.count(), [&](int64_t begin, int64_t end) {
      const float* x = args.x.as<float>() + begin;
      Out* y = args.y.as<Out>() + begin;
      forLanes(end - begin, [&](int64_t i, auto lanes) {
        store(y + i, silu<kIsBf16<Out>>(load(x + i, lanes)), lanes);
      });
    });
  });
}

// In float throughout, as the reference computes it: near t = 999 the rounding of t f alone
// moves the result by 3e-5.
void timestepEmbedding(const TimestepEmbeddingArgs& args) {
  constexpr int64_t kHalf = 128;
  constexpr float kLogMaxPeriod = 9.210340371976184f;  // ln 10000
  withElements(args.y.dtype, [&]<typename Out>(Out*) {
    parallelFor(args.t.count(), [&](int64_t e) {
      const float t = args.t.as<float>()[e];
      Out* y = args.y.as<Out>() + e * 2 * kHalf;
      for (int64_t i = 0; i < kHalf; i++) {
        const float angle = t * expf(-kLogMaxPeriod * static_cast<float>(i) / kHalf);
        put(y + i, cosf(angle));
        put(y + kHalf + i, sinf(angle));
      }
    });
  });
}

void conditionEmbedding(const ConditionEmbeddingArgs& args) {
  const int64_t c = args.t.shape[1];
  parallelFor(args.t.shape[0], [&](int64_t e) {
    const int32_t label = args.label.as<int32_t>()[e];
    const float* t = args.t.as<float>() + e * c;
    const float* vector =
        label < 0 ? args.vectors.as<float>() + e * c : args.table.as<float>() + label * c;
    float* y = args.y.as<float>() + e * c;
    for (int64_t i = 0; i < c; i++) y[i] = t[i] + vector[i];
  });
}

void toRgb8(const ToRgb8Args& args) {
  withElements(args.x.dtype, [&]<typename In>(In*) {
    forChunks(args.x.count(), [&](int64_t begin, int64_t end) {
      const In* x = args.x.as<In>();
      uint8_t* y = args.y.as<uint8_t>();
      for (int64_t i = begin; i < end; i++) {
        const float scaled = 127.5f * toFloat(x[i]) + 128.0f;
        const float floor = scaled > 0 ? scaled : 0;  // NaN is black
        y[i] = static_cast<uint8_t>(static_cast<int32_t>(floor < 255 ? floor : 255));
      }
    });
  });
}

}  // namespace dit::cpu::DIT_ISA
