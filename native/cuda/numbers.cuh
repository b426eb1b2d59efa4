#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

// Numbers as kernels hold them: activations are float or Bf16 in memory and float in registers.

namespace dit::cuda {

struct Bf16 {
  uint16_t bits;
};

__device__ __forceinline__ float toFloat(float x) { return x; }
__device__ __forceinline__ float toFloat(Bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

template <typename T>
__device__ __forceinline__ T fromFloat(float x);
template <>
__device__ __forceinline__ float fromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ Bf16 fromFloat<Bf16>(float x) {
  return {static_cast<uint16_t>(packBf16(x, 0.0f))};
}

// The halves of a pair of bf16.
__device__ __forceinline__ float lowBf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float highBf16(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

// Four neighbours in memory, aligned to their size.
__device__ __forceinline__ float4 load4(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ float4 load4(const Bf16* from) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(from);
  return make_float4(lowBf16(pairs.x), highBf16(pairs.x), lowBf16(pairs.y), highBf16(pairs.y));
}
__device__ __forceinline__ void store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void store4(Bf16* to, float4 x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(packBf16(x.x, x.y), packBf16(x.z, x.w));
}

// ---------------------------------------------------------------- sums of a warp and a block

// The same bits in all lanes: pairs are added in a fixed tree.
__device__ __forceinline__ float warpSum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  }
  return x;
}
__device__ __forceinline__ double warpSum(double x) {
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  }
  return x;
}

// Of all threads of the block, in all threads. `shared`: room for one number per warp, free again
// after the call's last barrier.
template <typename T>
__device__ __forceinline__ T blockSum(T x, T* shared) {
  const int warps = static_cast<int>(blockDim.x + 31) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  x = warpSum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  T sum = 0;
  for (int i = 0; i < warps; i++) sum += shared[i];
  __syncthreads();
  return sum;
}

}  // namespace dit::cuda
