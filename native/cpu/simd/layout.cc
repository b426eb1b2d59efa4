// patchify, unpatchify, toChannelsLast, toChannelsFirst and sampleMoments: elements change places.
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void patchify(const PatchifyArgs& args) {
  const int64_t c = args.x.shape[1], h = args.x.shape[2], w = args.x.shape[3], p = args.patch;
  const int64_t gridRows = h / p, gridColumns = w / p;
  withElements(args.y.dtype, [&]<typename Out>(Out*) {
    parallelFor(args.lane.count() * gridRows, [&](int64_t i) {
      const int64_t top = i % gridRows * p;
      const float* x = args.x.as<float>() + args.lane.as<int32_t>()[i / gridRows] * c * h * w;
      Out* y = args.y.as<Out>() + i * gridColumns * c * p * p;
      for (int64_t j = 0; j < gridColumns; j++) {
        for (int64_t channel = 0; channel < c; channel++) {
          for (int64_t a = 0; a < p; a++) {
            const float* from = x + (channel * h + top + a) * w + j * p;
            for (int64_t b = 0; b < p; b++) put(y++, from[b]);
          }
        }
      }
    });
  });
}

void unpatchify(const UnpatchifyArgs& args) {
  const int64_t c = args.y.shape[1], h = args.y.shape[2], w = args.y.shape[3], p = args.patch;
  const int64_t gridRows = h / p, gridColumns = w / p;
  withElements(args.x.dtype, [&]<typename In>(In*) {
    parallelFor(args.y.shape[0] * gridRows, [&](int64_t i) {
      const In* x = args.x.as<In>() + i * gridColumns * p * p * c;
      float* y = args.y.as<float>() + i / gridRows * c * h * w + i % gridRows * p * w;
      for (int64_t j = 0; j < gridColumns; j++) {
        for (int64_t a = 0; a < p; a++) {
          for (int64_t b = 0; b < p; b++) {
            for (int64_t channel = 0; channel < c; channel++) {
              y[(channel * h + a) * w + j * p + b] = toFloat(*x++);
            }
          }
        }
      }
    });
  });
}

void toChannelsLast(const ToChannelsLastArgs& args) {
  const int64_t c = args.x.shape[1], h = args.x.shape[2], w = args.x.shape[3];
  withElements(args.y.dtype, [&]<typename Out>(Out*) {
    parallelFor(args.x.shape[0] * h, [&](int64_t i) {
      const float* x = args.x.as<float>() + (i / h * c * h + i % h) * w;
      Out* y = args.y.as<Out>() + i * w * c;
      for (int64_t j = 0; j < w; j++) {
        for (int64_t channel = 0; channel < c; channel++) {
          put(y++, x[channel * h * w + j] * args.scale + args.shift);
        }
      }
    });
  });
}

void toChannelsFirst(const ToChannelsFirstArgs& args) {
  const int64_t h = args.x.shape[1], w = args.x.shape[2], c = args.x.shape[3];
  withElements(args.x.dtype, [&]<typename In>(In*) {
    parallelFor(args.x.shape[0] * h, [&](int64_t i) {
      const In* x = args.x.as<In>() + i * w * c;
      float* y = args.y.as<float>() + (i / h * c * h + i % h) * w;
      for (int64_t channel = 0; channel < c; channel++) {
        for (int64_t j = 0; j < w; j++) y[channel * h * w + j] = toFloat(x[j * c + channel]);
      }
    });
  });
}

void sampleMoments(const SampleMomentsArgs& args) {
  const int64_t n = args.y.shape[0], c = args.y.shape[1];
  const int64_t pixels = args.y.shape[2] * args.y.shape[3];
  withElements(args.moments.dtype, [&]<typename In>(In*) {
    parallelFor(n * c, [&](int64_t plane) {
      const In* moments = args.moments.as<In>() + plane / c * pixels * 2 * c + plane % c;
      float* y = args.y.as<float>() + plane * pixels;
      for (int64_t i = 0; i < pixels; i++) {
        float value = toFloat(moments[i * 2 * c]);
        if (args.noise) {
          const float logvar = toFloat(moments[i * 2 * c + c]);
          const float clamped = logvar < -30 ? -30 : logvar > 20 ? 20 : logvar;
          value += expf(clamped / 2) * args.noise.as<float>()[plane * pixels + i];
        }
        y[i] = (value - args.shift) * args.scale;
      }
    });
  });
}

}  // namespace dit::cpu::DIT_ISA
