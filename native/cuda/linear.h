#pragma once

#include "cuda/context.h"
#include "cuda/device_memory.h"
#include "ops/ops.h"

// Products with a weight: what linear.cu, linear_backward.cu and Hopper's linear_sm90.cu share.

namespace dit::cuda {

// W [N, K], row-major, so that the sums of y = x W^T run along rows of both: a copy of our own, or
// the optimiser's matrix where it lies.
struct LinearWeight final : PreparedWeight {
  int64_t n = 0, k = 0;
  int64_t rows = 0;  // that it was prepared for
  Precision precision = Precision::F32;
  DType type = DType::F32;  // of x and of the values: BF16 in bf16, else F32
  bool trained = false;
  // In elements of `type`. A copy's rows begin at multiples of 16 bytes and end with zeros; in TF32
  // its values are rounded (toTf32). A trained weight's rows are dense and its values in TF32 are
  // not rounded yet.
  const void* values = nullptr;
  int64_t stride = 0;
  DeviceMemory memory;  // of a copy

  size_t bytes() const override { return memory.bytes(); }
};

// The weight, which prepareLinear or prepareTrainedLinear has made.
const LinearWeight& linearWeight(const PreparedWeight* weight);

// ---------------------------------------------------------------- rows in pieces of 16 bytes

// Elements from one row of `n` to the next where each begins at a multiple of 16 bytes.
inline int64_t alignedStride(int64_t n, DType type) {
  const int64_t perPiece = 16 / static_cast<int64_t>(dtypeSize(type));
  return divideUp(n, perPiece) * perPiece;
}

// Copies a matrix into rows that are `alignedStride` apart and end with zeros. F32 <-> BF16 is
// converted; `toTf32` rounds F32 to TF32.
void copyRows(const Context& context, const Tensor& from, void* to, DType type, bool toTf32);

// to[k, n] = from[n, k]^T, rounded to TF32; rows of `to` are `stride` apart.
void copyTransposed(const Context& context, const float* from, int64_t n, int64_t k, float* to,
                    int64_t stride);

// A dense matrix [rows, n] as products read it: where it lies, or a copy of it in scratch memory.
class AlignedRows {
 public:
  AlignedRows(const void* data, DType type, int64_t rows, int64_t n);
  // Of the copy; 0 without one.
  size_t bytes() const { return bytes_; }
  // Makes the copy in `room`, where there is one; returns the room that is left.
  char* copyTo(const Context& context, char* room);

  const void* data() const { return matrix_.data; }
  int64_t stride() const { return matrix_.rowStride; }

 private:
  Tensor matrix_;
  size_t bytes_ = 0;
};

// to[n] += the sum of parts [count, n], the first first: what products leave whose sums were made
// in parts.
void addParts(const Context& context, const float* parts, int64_t count, int64_t n, float* to);

// Hopper's own kernels. Arguments have been checked against the weight. What does not fit is for
// the kernels of linear.cu and linear_backward.cu.
namespace hopper {

bool linearFits(const LinearWeight& weight, const LinearArgs& args);
void linear(Context& context, const LinearWeight& weight, const LinearArgs& args);
// The same by context.tuning's candidate, for a y in bf16.
void linearCandidate(const Context& context, const LinearWeight& weight, const LinearArgs& args);

// dX alone, in TF32; dWeight is linear_backward.cu's then.
bool inputGradientFits(const LinearWeight* weight, const LinearBackwardArgs& args);
void inputGradient(Context& context, const LinearWeight& weight, const LinearBackwardArgs& args);

// dX and dWeight in bf16; dBias is linear_backward.cu's. weight: may be null, the precision is that
// of x then.
bool backwardFits(const LinearWeight* weight, const LinearBackwardArgs& args);
void linearBackward(Context& context, const LinearWeight* weight, const LinearBackwardArgs& args);

}  // namespace hopper

}  // namespace dit::cuda
