// guide, solverUpdate and noise: what happens to a latent between two evaluations of the model.
// Latents are small (4 x 32 x 32 numbers): guidance, the solver's step and its noise are one
// kernel, a thread has the four neighbours that share a block of random numbers.
#include "core/rng.h"
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

__device__ __forceinline__ float guided(float cond, float uncond, float scale) {
  return uncond + (cond - uncond) * scale;
}

// The nearest row that exists: the host cannot check indices that lie on the device.
__device__ __forceinline__ int64_t within(int32_t row, int64_t rows) {
  return max(int64_t{0}, min(int64_t{row}, rows - 1));
}

struct Guide {
  const float* model;
  const int32_t *cond, *uncond;
  const float* scale;
  int64_t rows, co, pixels, channels;
  float* y;
};

__global__ void __launch_bounds__(kThreads) guideKernel(int64_t work, Guide at) {
  awaitPrevious();
  forEach(work, [&](int64_t i) {
    const int64_t n = at.co * at.pixels, lane = i / n, in = i % n;
    float m = at.model[within(at.cond[lane], at.rows) * n + in];
    const int32_t uncond = at.uncond[lane];
    if (uncond >= 0 && in < at.channels * at.pixels) {
      m = guided(m, at.model[within(uncond, at.rows) * n + in], at.scale[lane]);
    }
    at.y[i] = m;
  });
}

struct Update {
  const float* model;
  const SolverStep* steps;
  float *x, *history;
  const float* noise;  // may be null
  int64_t rows, lanes, pixels;
  int64_t n, modelN;  // numbers of a latent, of a row of the model's output
};

// One number of a latent: element i of lane s.lane. z is its noise, where s.noise is not 0.
__device__ __forceinline__ void updateElement(const Update& at, const SolverStep& s, int64_t i,
                                              float z) {
  const float* cond = at.model + within(s.condRow, at.rows) * at.modelN;
  float m = cond[i];
  if (s.uncondRow >= 0 && i < s.guidanceChannels * at.pixels) {
    m = guided(m, at.model[within(s.uncondRow, at.rows) * at.modelN + i], s.guidance);
  }
  float* const x = at.x + s.lane * at.n + i;
  float* const history = at.history + s.lane * kSolverHistory * at.n + i;
  const float estimate = *x * s.x0FromX + m * s.x0FromModel;
  // Not fmaxf and fminf, which would make a bound of NaN.
  const float x0 = estimate < -s.clip ? -s.clip : estimate > s.clip ? s.clip : estimate;
  const float eps = *x * s.epsFromX + x0 * s.epsFromX0 + m * s.epsFromModel;
  float next = *x * s.xFromX + x0 * s.xFromX0 + eps * s.xFromEps;
#pragma unroll
  for (int h = 0; h < kSolverHistory; h++) {
    // A slot that has never been written may hold anything: 0 times that is not always 0.
    if (s.xFromHistory[h] != 0) next += history[h * at.n] * s.xFromHistory[h];
  }
  if (s.noise != 0) {
    float sigma = s.noise;
    if (s.learnedVariance && at.modelN == 2 * at.n) {
      const float f = (cond[at.n + i] + 1.0f) * 0.5f;
      sigma *= expf((f * s.logVarianceMax + (1.0f - f) * s.logVarianceMin) * 0.5f);
    }
    next += sigma * z;
  }
  history[max(0, min(s.historySlot, kSolverHistory - 1)) * at.n] = x0;
  *x = next;
}

// A thread has the elements 4 b .. 4 b + 3 of one lane. A lane that does not exist is left alone.
__global__ void __launch_bounds__(kThreads) solverUpdateKernel(int64_t work, Update at) {
  awaitPrevious();
  const int64_t blocks = (at.n + 3) / 4;
  forEach(work, [&](int64_t piece) {
    const SolverStep s = at.steps[piece / blocks];
    const int64_t block = piece % blocks;
    if (s.lane < 0 || s.lane >= at.lanes) return;
    float z[4] = {};
    if (s.noise != 0 && !at.noise) {
      normal4(s.seed, NoiseStream::Step, s.noiseIndex, static_cast<uint64_t>(block), z);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int64_t i = block * 4 + j;
      if (i < at.n) {
        updateElement(at, s, i, s.noise != 0 && at.noise ? at.noise[s.lane * at.n + i] : z[j]);
      }
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    noiseKernel(int64_t n, uint64_t seed, uint32_t stream, uint32_t index, float* y) {
  awaitPrevious();
  forEach((n + 3) / 4, [&](int64_t block) {
    float z[4];
    normal4(seed, static_cast<NoiseStream>(stream), index, static_cast<uint64_t>(block), z);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (block * 4 + j < n) y[block * 4 + j] = z[j];
    }
  });
}

}  // namespace

void guide(Context& context, const GuideArgs& args) {
  const int64_t work = args.y.count();
  const Guide at{args.model.as<float>(),
                 args.cond.as<int32_t>(),
                 args.uncond.as<int32_t>(),
                 args.scale.as<float>(),
                 args.model.shape[0],
                 args.model.shape[1],
                 args.model.shape[2] * args.model.shape[3],
                 args.channels,
                 args.y.as<float>()};
  launch(context, guideKernel, gridFor(context, work, kThreads), kThreads, 0, work, at);
}

void solverUpdate(Context& context, const SolverUpdateArgs& args) {
  const int64_t pixels = args.x.shape[2] * args.x.shape[3], n = args.x.shape[1] * pixels;
  const Update at{args.model.as<float>(),
                  args.steps.as<SolverStep>(),
                  args.x.as<float>(),
                  args.history.as<float>(),
                  args.noise.as<float>(),
                  args.model.shape[0],
                  args.x.shape[0],
                  pixels,
                  n,
                  args.model.shape[1] * pixels};
  const int64_t work = args.steps.shape[0] * divideUp(n, 4);
  launch(context, solverUpdateKernel, gridFor(context, work, kThreads), kThreads, 0, work, at);
}

void noise(Context& context, const NoiseArgs& args) {
  const int64_t n = args.y.count();
  launch(context, noiseKernel, gridFor(context, divideUp(n, 4), kThreads), kThreads, 0, n,
         args.seed, args.stream, args.index, args.y.as<float>());
}

}  // namespace dit::cuda
