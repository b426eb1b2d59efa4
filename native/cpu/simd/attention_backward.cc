// attentionBackward
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void attentionBackward(const AttentionBackwardArgs&) {
  throw Error(ErrorCode::Internal, "attentionBackward: not built yet");
}

}  // namespace dit::cpu::DIT_ISA
