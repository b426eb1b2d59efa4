// What stands beside the products of linear and its backward.
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void linearFinish(const LinearFinishArgs&) {
  throw Error(ErrorCode::Internal, "linearFinish: not built yet");
}

void geluBackward(const GeluBackwardArgs&) {
  throw Error(ErrorCode::Internal, "geluBackward: not built yet");
}

void gateBackward(const GateBackwardArgs&) {
  throw Error(ErrorCode::Internal, "gateBackward: not built yet");
}

}  // namespace dit::cpu::DIT_ISA
