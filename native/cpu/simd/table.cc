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
};

}  // namespace dit::cpu::DIT_ISA
