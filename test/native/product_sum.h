#pragma once

#include <type_traits>

#include "../simt/tensor_core.h"
#include "harness.h"
#include "oracle.h"

namespace dit::test {

// How a naive run in float adds products: one after the other, in fp32; with tensor cores, as they
// do, whose sums are cut off instead of rounded. In other types: one after the other.
struct ProductSum {
  bool tensorCores = false;
  simt::TensorCore core = {};

  // The sum over k of a[k] b[k].
  template <typename T>
  T operator()(const T* a, const T* b, int64_t k) const {
    if constexpr (std::is_same_v<T, float>) {
      if (tensorCores) {
        float sum = 0;
        simt::addProducts(core, &sum, a, b, 1, static_cast<int>(k));
        return sum;
      }
    }
    return oracle::InOrder()(a, b, k);
  }
};

// As the device under test does it in this precision. Of GPUs the coarsest that is supported, an
// Ampere, is what every one is measured by: a Hopper has half the error. No bar of fp32 changes.
inline ProductSum productSum(Test& test, Precision precision) {
  if (precision == Precision::F32 || !test.options().device.starts_with("cuda")) return {};
  return {true, precision == Precision::TF32 ? simt::kAmpere.forTf32() : simt::kAmpere};
}

}  // namespace dit::test
