#pragma once

#include "cuda/context.h"
#include "cuda/numbers.cuh"
#include "ops/arguments.h"

// What kernels over tokens and channels share: vectors that rows pick, and kWide numbers at a time
// (4 where pointers and rows are aligned, else 1).

namespace dit::cuda {

// RowVector as a kernel takes it. The host cannot read the index, so it is kept within the table
// here: a wrong one gives wrong numbers and never reads elsewhere.
struct RowVectors {
  const float* table;
  const int32_t* index;
  int64_t stride;
  int entries;

  __device__ __forceinline__ const float* of(int64_t row) const {
    return table + max(0, min(index[row], entries - 1)) * stride;
  }
};

inline RowVectors rowVectors(const RowVector& vector) {
  return {vector.table.as<float>(), vector.index.as<int32_t>(), vector.table.rowStride,
          static_cast<int>(vector.table.shape[0])};
}

// Whether rows of this tensor can be read four numbers at a time. An absent one is no obstacle.
inline bool byFours(const Tensor& tensor) {
  const size_t four = 4 * dtypeSize(tensor.dtype);
  return reinterpret_cast<uintptr_t>(tensor.data) % four == 0 && tensor.shape[-1] % 4 == 0 &&
         tensor.rowStride % 4 == 0;
}
template <typename... Tensors>
bool byFours(const Tensor& first, const Tensors&... others) {
  return (!first || byFours(first)) && (... && (!others || byFours(others)));
}

template <int kWide, typename T>
__device__ __forceinline__ void loadWide(float (&x)[kWide], const T* from) {
  if constexpr (kWide == 4) {
    const float4 four = load4(from);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  } else {
    static_assert(kWide == 1);
    x[0] = toFloat(*from);
  }
}

template <int kWide, typename T>
__device__ __forceinline__ void storeWide(T* to, const float (&x)[kWide]) {
  if constexpr (kWide == 4) {
    store4(to, make_float4(x[0], x[1], x[2], x[3]));
  } else {
    static_assert(kWide == 1);
    *to = fromFloat<T>(x[0]);
  }
}

}  // namespace dit::cuda
