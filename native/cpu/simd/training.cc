// Small operations of training.
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

void siluBackward(const SiluBackwardArgs&) {
  throw Error(ErrorCode::Internal, "siluBackward: not built yet");
}

void conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs&) {
  throw Error(ErrorCode::Internal, "conditionEmbeddingBackward: not built yet");
}

void unpatchifyBackward(const UnpatchifyBackwardArgs&) {
  throw Error(ErrorCode::Internal, "unpatchifyBackward: not built yet");
}

void drawLatents(const DrawLatentsArgs&) {
  throw Error(ErrorCode::Internal, "drawLatents: not built yet");
}

void qSample(const QSampleArgs&) { throw Error(ErrorCode::Internal, "qSample: not built yet"); }

void cast(const CastArgs&) { throw Error(ErrorCode::Internal, "cast: not built yet"); }

}  // namespace dit::cpu::DIT_ISA
