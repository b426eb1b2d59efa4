// loss
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void loss(const LossArgs&) { throw Error(ErrorCode::Internal, "loss: not built yet"); }

}  // namespace dit::cpu::DIT_ISA
