// guide, solverUpdate and noise: what happens to a latent between two evaluations of the model.
#include <cmath>

#include "core/rng.h"
#include "cpu/parallel.h"
#include "cpu/simd/simd_math.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

constexpr int64_t kChunk = 1024;  // elements of a piece of work, a multiple of 4

// z[i] = element first + i of the normal numbers of (seed, stream, index), i in [0, n).
void normals(uint64_t seed, NoiseStream stream, uint32_t index, int64_t first, int64_t n,
             float* z) {
  for (int64_t block = first / 4; block * 4 < first + n; block++) {
    float four[4];
    normal4(seed, stream, index, static_cast<uint64_t>(block), four);
    for (int64_t j = 0; j < 4; j++) {
      const int64_t i = block * 4 + j - first;
      if (i >= 0 && i < n) z[i] = four[j];
    }
  }
}

DIT_INLINE Vec guided(Vec cond, Vec uncond, float scale) {
  return uncond + (cond - uncond) * scale;
}

// One step for the elements [begin, end) of a channel of its lane; pointers are to the channel.
struct Channel {
  const float* cond;
  const float* uncond;    // null without guidance
  const float* variance;  // null where the model did not learn it
  const float* z;         // of element begin; null without noise
  float* x;
  float* history[kSolverHistory];
};

void step(const SolverStep& s, const Channel& at, int64_t begin, int64_t end) {
  forLanes(end - begin, [&](int64_t j, auto lanes) {
    const int64_t i = begin + j;
    Vec m = load(at.cond + i, lanes);
    if (at.uncond) m = guided(m, load(at.uncond + i, lanes), s.guidance);
    const Vec x = load(at.x + i, lanes);
    // In this order NaN stays NaN.
    const Vec x0 =
        minimum(splat(s.clip), maximum(splat(-s.clip), x * s.x0FromX + m * s.x0FromModel));
    const Vec eps = x * s.epsFromX + x0 * s.epsFromX0 + m * s.epsFromModel;
    Vec next = x * s.xFromX + x0 * s.xFromX0 + eps * s.xFromEps;
    for (int h = 0; h < kSolverHistory; h++) {
      // A slot that has never been written may hold anything: 0 times that is not always 0.
      if (s.xFromHistory[h] != 0) next += load(at.history[h] + i, lanes) * s.xFromHistory[h];
    }
    if (at.z) {
      Vec sigma = splat(s.noise);
      if (at.variance) {
        const Vec f = (load(at.variance + i, lanes) + 1.0f) * 0.5f;
        sigma *= exp((f * s.logVarianceMax + (1.0f - f) * s.logVarianceMin) * 0.5f);
      }
      next += sigma * load(at.z + j, lanes);
    }
    store(at.history[s.historySlot] + i, x0, lanes);
    store(at.x + i, next, lanes);
  });
}

}  // namespace

void guide(const GuideArgs& args) {
  const int64_t co = args.model.shape[1], pixels = args.model.shape[2] * args.model.shape[3];
  parallelFor(args.cond.count() * co, [&](int64_t plane) {
    const int64_t lane = plane / co, channel = plane % co;
    auto model = [&](int32_t row) {
      return args.model.as<float>() + (row * co + channel) * pixels;
    };
    const int32_t uncondRow = args.uncond.as<int32_t>()[lane];
    const float* cond = model(args.cond.as<int32_t>()[lane]);
    const float* uncond = uncondRow >= 0 && channel < args.channels ? model(uncondRow) : nullptr;
    const float scale = args.scale.as<float>()[lane];
    float* y = args.y.as<float>() + plane * pixels;
    forLanes(pixels, [&](int64_t i, auto lanes) {
      const Vec m = load(cond + i, lanes);
      store(y + i, uncond ? guided(m, load(uncond + i, lanes), scale) : m, lanes);
    });
  });
}

void solverUpdate(const SolverUpdateArgs& args) {
  const int64_t c = args.x.shape[1], pixels = args.x.shape[2] * args.x.shape[3];
  const int64_t co = args.model.shape[1];
  const int64_t chunks = (pixels + kChunk - 1) / kChunk;
  const SolverStep* steps = args.steps.as<SolverStep>();
  parallelFor(args.steps.shape[0] * c * chunks, [&](int64_t work) {
    const SolverStep& s = steps[work / (c * chunks)];
    if (s.lane < 0) return;
    const int64_t channel = work / chunks % c, begin = work % chunks * kChunk;
    const int64_t end = pixels < begin + kChunk ? pixels : begin + kChunk;
    auto model = [&](int32_t row, int64_t modelChannel) {
      return args.model.as<float>() + (row * co + modelChannel) * pixels;
    };
    const bool guides = s.uncondRow >= 0 && channel < s.guidanceChannels;
    float drawn[kChunk];
    Channel at = {};
    at.cond = model(s.condRow, channel);
    at.uncond = guides ? model(s.uncondRow, channel) : nullptr;
    at.variance = s.learnedVariance ? model(s.condRow, c + channel) : nullptr;
    at.x = args.x.as<float>() + (s.lane * c + channel) * pixels;
    for (int h = 0; h < kSolverHistory; h++) {
      at.history[h] =
          args.history.as<float>() + ((s.lane * kSolverHistory + h) * c + channel) * pixels;
    }
    if (s.noise != 0 && args.noise) {
      at.z = args.noise.as<float>() + (s.lane * c + channel) * pixels + begin;
    } else if (s.noise != 0) {
      normals(s.seed, NoiseStream::Step, s.noiseIndex, channel * pixels + begin, end - begin,
              drawn);
      at.z = drawn;
    }
    step(s, at, begin, end);
  });
}

void noise(const NoiseArgs& args) {
  const int64_t n = args.y.count();
  parallelFor((n + kChunk - 1) / kChunk, [&](int64_t i) {
    const int64_t begin = i * kChunk, end = n < begin + kChunk ? n : begin + kChunk;
    normals(args.seed, static_cast<NoiseStream>(args.stream), args.index, begin, end - begin,
            args.y.as<float>() + begin);
  });
}

}  // namespace dit::cpu::DIT_ISA
