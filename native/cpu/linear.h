#pragma once

#include <memory>

#include "cpu/onednn.h"
#include "ops/ops.h"

namespace dit::cpu {

std::unique_ptr<PreparedWeight> prepareLinear(OneDnn& onednn, const LinearWeightArgs& args);

// The rows of a round one by one, each as a product of M x N x K: what is computed for a row cannot
// depend on the others. On the Zen 5 of the benchmarks this costs nothing: with M = 256 a product
// runs as fast as with 512, since a panel of W stays in L2 while it meets all of x.
void linear(OneDnn& onednn, const LinearArgs& args);

}  // namespace dit::cpu
