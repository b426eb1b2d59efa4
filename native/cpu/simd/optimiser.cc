// squaredNorm and adamW
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void squaredNorm(const SquaredNormArgs&) {
  throw Error(ErrorCode::Internal, "squaredNorm: not built yet");
}

void adamW(const AdamWArgs&) { throw Error(ErrorCode::Internal, "adamW: not built yet"); }

}  // namespace dit::cpu::DIT_ISA
