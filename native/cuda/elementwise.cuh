#pragma once

#include "cuda/context.h"
#include "cuda/numbers.cuh"

// One thread per piece of work, striding over the grid: launch with `gridFor(context, n, kThreads)`
// blocks of kThreads.

namespace dit::cuda {

constexpr int kThreads = 256;

// The numbers of [0, n) that this thread looks after.
template <typename Each>
__device__ __forceinline__ void forEach(int64_t n, const Each& each) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    each(i);
  }
}

// Of the few numbers of conditions. In double precision: expf may err by 2 units in the last place.
__device__ __forceinline__ float sigmoid(float x) {
  return static_cast<float>(1.0 / (1.0 + exp(-static_cast<double>(x))));
}

}  // namespace dit::cuda
