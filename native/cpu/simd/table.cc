// The table of the kernels of this folder, as compiled for one instruction set.
#include "cpu/kernels.h"

#define DIT_STRING2(name) #name
#define DIT_STRING(name) DIT_STRING2(name)

namespace dit::cpu::DIT_ISA {

void layerNormModulate(const LayerNormModulateArgs& args);
void attention(const AttentionArgs& args);
void silu(const SiluArgs& args);
void timestepEmbedding(const TimestepEmbeddingArgs& args);
void conditionEmbedding(const ConditionEmbeddingArgs& args);
void patchify(const PatchifyArgs& args);
void unpatchify(const UnpatchifyArgs& args);
void guide(const GuideArgs& args);
void solverUpdate(const SolverUpdateArgs& args);
void noise(const NoiseArgs& args);
void groupNorm(const GroupNormArgs& args);
void toChannelsLast(const ToChannelsLastArgs& args);
void toChannelsFirst(const ToChannelsFirstArgs& args);
void sampleMoments(const SampleMomentsArgs& args);
void toRgb8(const ToRgb8Args& args);
void gateBackward(const GateBackwardArgs& args);
void layerNormModulateBackward(const LayerNormModulateBackwardArgs& args);
void attentionBackward(const AttentionBackwardArgs& args);
void siluBackward(const SiluBackwardArgs& args);
void conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs& args);
void unpatchifyBackward(const UnpatchifyBackwardArgs& args);
void drawLatents(const DrawLatentsArgs& args);
void qSample(const QSampleArgs& args);
void loss(const LossArgs& args);
void squaredNorm(const SquaredNormArgs& args);
void adamW(const AdamWArgs& args);
void cast(const CastArgs& args);
void linearFinish(const LinearFinishArgs& args);
void geluBackward(const GeluBackwardArgs& args);
void columnSums(const ColumnSumsArgs& args);

extern const Kernels kTable;
const Kernels kTable = {
    .isa = DIT_STRING(DIT_ISA),
#ifdef __AVX512BF16__
    .bf16Attention = true,
#else
    .bf16Attention = false,
#endif
    .layerNormModulate = layerNormModulate,
    .attention = attention,
    .silu = silu,
    .timestepEmbedding = timestepEmbedding,
    .conditionEmbedding = conditionEmbedding,
    .patchify = patchify,
    .unpatchify = unpatchify,
    .guide = guide,
    .solverUpdate = solverUpdate,
    .noise = noise,
    .groupNorm = groupNorm,
    .toChannelsLast = toChannelsLast,
    .toChannelsFirst = toChannelsFirst,
    .sampleMoments = sampleMoments,
    .toRgb8 = toRgb8,
    .gateBackward = gateBackward,
    .layerNormModulateBackward = layerNormModulateBackward,
    .attentionBackward = attentionBackward,
    .siluBackward = siluBackward,
    .conditionEmbeddingBackward = conditionEmbeddingBackward,
    .unpatchifyBackward = unpatchifyBackward,
    .drawLatents = drawLatents,
    .qSample = qSample,
    .loss = loss,
    .squaredNorm = squaredNorm,
    .adamW = adamW,
    .cast = cast,
    .linearFinish = linearFinish,
    .geluBackward = geluBackward,
    .columnSums = columnSums,
};

}  // namespace dit::cpu::DIT_ISA
