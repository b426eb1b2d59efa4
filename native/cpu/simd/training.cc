// The small operations of training, one pass each: siluBackward, conditionEmbeddingBackward,
// unpatchifyBackward, drawLatents, qSample and cast.
#include "cpu/kernels.h"
#include "cpu/simd/chunks.h"
#include "cpu/simd/simd_math.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void siluBackward(const SiluBackwardArgs& args) {
  forChunks(args.x.count(), [&](int64_t begin, int64_t end) {
    const float *x = args.x.as<float>() + begin, *dY = args.dY.as<float>() + begin;
    float* dX = args.dX.as<float>() + begin;
    forLanes(end - begin, [&](int64_t i, auto lanes) {
      const Vec v = load(x + i, lanes);
      const Sigmoid at = sigmoid<false>(v);
      store(dX + i, load(dY + i, lanes) * at.s * (v * at.complement + 1.0f), lanes);
    });
  });
}

// Threads share the columns: entries of the same label meet in one thread, in order.
void conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs& args) {
  constexpr int64_t kColumns = 64;
  const int64_t c = args.dY.shape[1], entries = args.dY.shape[0];
  const int32_t* label = args.label.as<int32_t>();
  parallelFor((c + kColumns - 1) / kColumns, [&](int64_t part) {
    const int64_t begin = part * kColumns, n = c < begin + kColumns ? c - begin : kColumns;
    for (int64_t e = 0; e < entries; e++) {
      const float* dY = args.dY.as<float>() + e * c + begin;
      float* dTable = args.dTable.as<float>() + label[e] * c + begin;
      forLanes(n, [&](int64_t i, auto lanes) {
        store(dTable + i, load(dTable + i, lanes) + load(dY + i, lanes), lanes);
      });
    }
  });
}

void unpatchifyBackward(const UnpatchifyBackwardArgs& args) {
  const int64_t c = args.dY.shape[1], h = args.dY.shape[2], w = args.dY.shape[3], p = args.patch;
  const int64_t gridRows = h / p, gridColumns = w / p;
  withElements(args.dX.dtype, [&]<typename Out>(Out*) {
    parallelFor(args.dY.shape[0] * gridRows, [&](int64_t i) {
      const float* dY = args.dY.as<float>() + i / gridRows * c * h * w + i % gridRows * p * w;
      Out* dX = args.dX.as<Out>() + i * gridColumns * p * p * c;
      for (int64_t j = 0; j < gridColumns; j++) {
        for (int64_t a = 0; a < p; a++) {
          for (int64_t b = 0; b < p; b++) {
            for (int64_t channel = 0; channel < c; channel++) {
              put(dX++, dY[(channel * h + a) * w + j * p + b]);
            }
          }
        }
      }
    });
  });
}

void drawLatents(const DrawLatentsArgs& args) {
  forChunks(args.y.count(), [&](int64_t begin, int64_t end) {
    const float *mean = args.mean.as<float>() + begin, *z = args.z.as<float>() + begin;
    const float* deviation = args.deviation.as<float>() + begin;
    float* y = args.y.as<float>() + begin;
    forLanes(end - begin, [&](int64_t i, auto lanes) {
      const Vec drawn = load(mean + i, lanes) + load(deviation + i, lanes) * load(z + i, lanes);
      store(y + i, (drawn - args.shift) * args.scale, lanes);
    });
  });
}

void qSample(const QSampleArgs& args) {
  const int64_t rows = args.x0.shape[0], n = args.x0.count() / rows;
  parallelFor(rows, [&](int64_t row) {
    const float *x0 = args.x0.as<float>() + row * n, *z = args.z.as<float>() + row * n;
    const float signal = args.signal.as<float>()[row], noise = args.noise.as<float>()[row];
    float* y = args.y.as<float>() + row * n;
    forLanes(n, [&](int64_t i, auto lanes) {
      store(y + i, load(x0 + i, lanes) * signal + load(z + i, lanes) * noise, lanes);
    });
  });
}

void cast(const CastArgs& args) {
  withElements(args.y.dtype, [&]<typename Out>(Out*) {
    forChunks(args.x.count(), [&](int64_t begin, int64_t end) {
      const float* x = args.x.as<float>() + begin;
      Out* y = args.y.as<Out>() + begin;
      forLanes(end - begin,
               [&](int64_t i, auto lanes) { store(y + i, load(x + i, lanes), lanes); });
    });
  });
}

}  // namespace dit::cpu::DIT_ISA
