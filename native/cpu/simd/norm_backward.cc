// layerNormModulateBackward
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void layerNormModulateBackward(const LayerNormModulateBackwardArgs&) {
  throw Error(ErrorCode::Internal, "layerNormModulateBackward: not built yet");
}

}  // namespace dit::cpu::DIT_ISA
