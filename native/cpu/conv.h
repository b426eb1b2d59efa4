#pragma once

#include <memory>

#include "cpu/onednn.h"
#include "ops/ops.h"

namespace dit::cpu {

std::unique_ptr<PreparedWeight> prepareConv(OneDnn& onednn, const ConvWeightArgs& args);

// Image by image.
void conv2d(OneDnn& onednn, const Conv2dArgs& args);

}  // namespace dit::cpu
