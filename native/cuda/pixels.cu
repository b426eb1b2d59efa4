// What stands between images, latents and the VAE: toChannelsLast, toChannelsFirst, sampleMoments
// and toRgb8; and what training does to latents: drawLatents, qSample. One pass each.
//
// Changing the order of channels is for images and latents of 3 to 8 channels: a thread has a
// pixel, so that one side is coalesced and of the other every sector is used by the same warp.
#include "cuda/dispatch.h"
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"

namespace dit::cuda {

namespace {

// Pixel i of all images: its first number with channels last, and first (the next is `pixels` on).
struct Pixel {
  int64_t last, first;
  __device__ __forceinline__ Pixel(int64_t i, int64_t pixels, int64_t c)
      : last(i * c), first(i / pixels * c * pixels + i % pixels) {}
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    toChannelsLastKernel(int64_t work, int64_t pixels, int64_t c, const float* x, float scale,
                         float shift, T* y) {
  awaitPrevious();
  forEach(work, [&](int64_t i) {
    const Pixel at(i, pixels, c);
    for (int64_t j = 0; j < c; j++) {
      y[at.last + j] = fromFloat<T>(x[at.first + j * pixels] * scale + shift);
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    toChannelsFirstKernel(int64_t work, int64_t pixels, int64_t c, const T* x, float* y) {
  awaitPrevious();
  forEach(work, [&](int64_t i) {
    const Pixel at(i, pixels, c);
    for (int64_t j = 0; j < c; j++) y[at.first + j * pixels] = toFloat(x[at.last + j]);
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sampleMomentsKernel(int64_t work, int64_t pixels, int64_t c, const T* moments,
                        const float* noise, float scale, float shift, float* y) {
  awaitPrevious();
  forEach(work, [&](int64_t i) {
    const Pixel at(i, pixels, c);
    for (int64_t j = 0; j < c; j++) {
      float value = toFloat(moments[2 * at.last + j]);
      if (noise) {
        const float logvar = toFloat(moments[2 * at.last + c + j]);
        const float clamped = logvar < -30.0f ? -30.0f : logvar > 20.0f ? 20.0f : logvar;
        value += expf(clamped / 2) * noise[at.first + j * pixels];
      }
      y[at.first + j * pixels] = (value - shift) * scale;
    }
  });
}

// Not a number is black.
__device__ __forceinline__ uint8_t rgb8(float x) {
  return static_cast<uint8_t>(static_cast<int>(fminf(fmaxf(127.5f * x + 128.0f, 0.0f), 255.0f)));
}

template <typename T, int kWide>
__global__ void __launch_bounds__(kThreads) toRgb8Kernel(int64_t work, const T* x, uint8_t* y) {
  awaitPrevious();
  forEach(work, [&](int64_t i) {
    float values[kWide];
    loadWide<kWide>(values, x + i * kWide);
    if constexpr (kWide == 4) {
      uint32_t bytes = 0;
#pragma unroll
      for (int j = 0; j < kWide; j++) bytes |= uint32_t{rgb8(values[j])} << (8 * j);
      reinterpret_cast<uint32_t*>(y)[i] = bytes;
    } else {
      y[i] = rgb8(values[0]);
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    drawLatentsKernel(int64_t n, const float* mean, const float* deviation, const float* z,
                      float scale, float shift, float* y) {
  awaitPrevious();
  forEach(n, [&](int64_t i) { y[i] = (mean[i] + deviation[i] * z[i] - shift) * scale; });
}

__global__ void __launch_bounds__(kThreads)
    qSampleKernel(int64_t work, int64_t n, const float* x0, const float* z, const float* signal,
                  const float* noise, float* y) {
  awaitPrevious();
  forEach(work, [&](int64_t i) { y[i] = signal[i / n] * x0[i] + noise[i / n] * z[i]; });
}

}  // namespace

void toChannelsLast(Context& context, const ToChannelsLastArgs& args) {
  const int64_t c = args.x.shape[1], pixels = args.x.shape[2] * args.x.shape[3];
  const int64_t work = args.x.shape[0] * pixels;
  withType(args.y.dtype, [&]<typename T>(T) {
    launch(context, toChannelsLastKernel<T>, gridFor(context, work, kThreads), kThreads, 0, work,
           pixels, c, args.x.as<float>(), args.scale, args.shift, args.y.as<T>());
  });
}

void toChannelsFirst(Context& context, const ToChannelsFirstArgs& args) {
  const int64_t c = args.x.shape[3], pixels = args.x.shape[1] * args.x.shape[2];
  const int64_t work = args.x.shape[0] * pixels;
  withType(args.x.dtype, [&]<typename T>(T) {
    launch(context, toChannelsFirstKernel<T>, gridFor(context, work, kThreads), kThreads, 0, work,
           pixels, c, args.x.as<T>(), args.y.as<float>());
  });
}

void sampleMoments(Context& context, const SampleMomentsArgs& args) {
  const int64_t c = args.y.shape[1], pixels = args.y.shape[2] * args.y.shape[3];
  const int64_t work = args.y.shape[0] * pixels;
  withType(args.moments.dtype, [&]<typename T>(T) {
    launch(context, sampleMomentsKernel<T>, gridFor(context, work, kThreads), kThreads, 0, work,
           pixels, c, args.moments.as<T>(), args.noise.as<float>(), args.scale, args.shift,
           args.y.as<float>());
  });
}

void toRgb8(Context& context, const ToRgb8Args& args) {
  const int64_t n = args.x.count();
  const auto aligned = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % (4 * dtypeSize(tensor.dtype)) == 0;
  };
  withType(args.x.dtype, [&]<typename T>(T) {
    const T* const x = args.x.as<T>();
    uint8_t* const y = args.y.as<uint8_t>();
    if (n % 4 == 0 && aligned(args.x) && aligned(args.y)) {
      launch(context, toRgb8Kernel<T, 4>, gridFor(context, n / 4, kThreads), kThreads, 0, n / 4, x,
             y);
    } else {
      launch(context, toRgb8Kernel<T, 1>, gridFor(context, n, kThreads), kThreads, 0, n, x, y);
    }
  });
}

void drawLatents(Context& context, const DrawLatentsArgs& args) {
  const int64_t n = args.y.count();
  launch(context, drawLatentsKernel, gridFor(context, n, kThreads), kThreads, 0, n,
         args.mean.as<float>(), args.deviation.as<float>(), args.z.as<float>(), args.scale,
         args.shift, args.y.as<float>());
}

void qSample(Context& context, const QSampleArgs& args) {
  const int64_t work = args.y.count();
  launch(context, qSampleKernel, gridFor(context, work, kThreads), kThreads, 0, work,
         work / args.y.shape[0], args.x0.as<float>(), args.z.as<float>(), args.signal.as<float>(),
         args.noise.as<float>(), args.y.as<float>());
}

}  // namespace dit::cuda
