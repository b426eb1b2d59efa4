#pragma once

#include "cuda/context.h"
#include "ops/ops.h"

namespace dit::cuda::hopper {

// Whether Hopper's own kernel takes this attention: bf16, head dimensions of 64 and 72.
bool attentionFits(const AttentionArgs& args);
void attention(Context& context, const AttentionArgs& args);

// The same of its derivative.
bool attentionBackwardFits(const AttentionBackwardArgs& args);
void attentionBackward(Context& context, const AttentionBackwardArgs& args);

}  // namespace dit::cuda::hopper
