#pragma once

#include "core/tensor.h"
#include "cuda/numbers.cuh"

// From a tensor's type to a template's: calls work(T{}) with T = float or Bf16.

namespace dit::cuda {

template <typename Work>
void withType(DType type, const Work& work) {
  switch (type) {
    case DType::F32:
      return work(float{});
    case DType::BF16:
      return work(Bf16{});
    default:
      fail(ErrorCode::Internal, "CUDA: no kernels for ", dtypeName(type));
  }
}

}  // namespace dit::cuda
