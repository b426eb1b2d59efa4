// SiLU, its derivative, and casts: one thread per number, striding over the grid.
#include "cuda/dispatch.h"
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads) siluKernel(int64_t n, const float* x, T* y) {
  awaitPrevious();
  forEach(n, [&](int64_t i) { y[i] = fromFloat<T>(x[i] * sigmoid(x[i])); });
}

__global__ void __launch_bounds__(kThreads)
    siluBackwardKernel(int64_t n, const float* x, const float* dY, float* dX) {
  awaitPrevious();
  forEach(n, [&](int64_t i) {
    const float s = sigmoid(x[i]);
    dX[i] = dY[i] * (s * (1.0f + x[i] * (1.0f - s)));
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) castKernel(int64_t n, const float* x, T* y) {
  awaitPrevious();
  forEach(n, [&](int64_t i) { y[i] = fromFloat<T>(x[i]); });
}

}  // namespace

void silu(Context& context, const SiluArgs& args) {
  const int64_t n = args.x.count();
  withType(args.y.dtype, [&]<typename T>(T) {
    launch(context, siluKernel<T>, gridFor(context, n, kThreads), kThreads, 0, n,
           args.x.as<float>(), args.y.as<T>());
  });
}

void siluBackward(Context& context, const SiluBackwardArgs& args) {
  const int64_t n = args.x.count();
  launch(context, siluBackwardKernel, gridFor(context, n, kThreads), kThreads, 0, n,
         args.x.as<float>(), args.dY.as<float>(), args.dX.as<float>());
}

void cast(Context& context, const CastArgs& args) {
  const int64_t n = args.x.count();
  withType(args.y.dtype, [&]<typename T>(T) {
    launch(context, castKernel<T>, gridFor(context, n, kThreads), kThreads, 0, n,
           args.x.as<float>(), args.y.as<T>());
  });
}

}  // namespace dit::cuda
