#pragma once

#include <memory>

#include "cuda/context.h"
#include "ops/ops.h"

// Every operation of ops.h on one device: a function each, in the file that its name suggests. The
// arguments have been checked by Ops; tensors lie in the device's memory. Work is queued on the
// context's stream, nothing waits.

namespace dit::cuda {

std::unique_ptr<PreparedWeight> prepareLinear(Context& context, const LinearWeightArgs& args);
std::unique_ptr<PreparedWeight> prepareTrainedLinear(Context& context,
                                                     const TrainedLinearArgs& args);
std::unique_ptr<PreparedWeight> prepareConv(Context& context, const ConvWeightArgs& args);

#define DIT_DECLARE(name, Args) void name(Context& context, const Args& args);
DIT_OPERATIONS(DIT_DECLARE)
#undef DIT_DECLARE

}  // namespace dit::cuda
