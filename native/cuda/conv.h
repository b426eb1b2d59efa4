#pragma once

#include "cuda/context.h"
#include "cuda/device_memory.h"
#include "ops/ops.h"

// Convolutions: what conv.cu and Hopper's conv_sm90.cu share.

namespace dit::cuda {

// [phases][co][kh kw ci], channels innermost; a row of it is `steps` times 64 bytes, with zeros at
// its end.
struct ConvWeight final : PreparedWeight {
  int64_t co = 0, ci = 0, kh = 0, kw = 0;  // of a phase, where there are some
  Precision precision = Precision::F32;
  bool phases = false;  // four, of a kernel after upsampling (conv.cu)
  int64_t steps = 0;
  DeviceMemory values;

  size_t bytes() const override { return values.bytes(); }
  DType type() const { return precision == Precision::BF16 ? DType::BF16 : DType::F32; }
};

// Hopper's own kernel. Arguments have been checked against the weight. What does not fit is for
// that of conv.cuh.
namespace hopper {

bool convFits(const ConvWeight& weight, const Conv2dArgs& args);
void conv2d(Context& context, const ConvWeight& weight, const Conv2dArgs& args);

}  // namespace hopper

}  // namespace dit::cuda
