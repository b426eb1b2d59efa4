#pragma once

#include <memory>

#include "cpu/kernels.h"
#include "cpu/onednn.h"
#include "ops/ops.h"

namespace dit::cpu {

std::unique_ptr<PreparedWeight> prepareLinear(OneDnn& onednn, const LinearWeightArgs& args);
std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args);

// With a prepared weight the rows of a round one by one, each as a product of M x N x K: what is
// computed for a row cannot depend on the others. That costs nothing measurable: with the sizes of
// DiT-XL/2, two products of 256 rows take as long as one of 512 (bf16, N 3456, K 1152: 4.17 and
// 4.18 ms on two Zen 5 cores). With a trained weight all rows at once, unless gate or residual are
// a part of the product and not the same for all.
void linear(OneDnn& onednn, const Kernels& kernels, const LinearArgs& args);

// Rows of x in each of its products.
int64_t rowsOfProduct(const LinearArgs& args);

void linearBackward(OneDnn& onednn, const Kernels& kernels, const LinearBackwardArgs& args);

}  // namespace dit::cpu
