#pragma once

#include <vector>

#include "ops/ops.h"

namespace dit::cpu {

// y = gelu(kept), or residual + gate * kept: what follows the product where both are wanted.
struct LinearFinishArgs {
  Tensor kept;           // [R, M, N] act
  RowVector gate = {};   // as in LinearArgs
  Tensor residual = {};  // as in LinearArgs; absent: gelu
  Tensor y;              // [R, M, N] act or F32
};

// x = gelu(pre), dX = dX * gelu'(pre), in place. [.., K], act.
struct GeluBackwardArgs {
  Tensor pre, x, dX;
};

// sums[n] += sum of x over m.
struct ColumnSumsArgs {
  Tensor x;     // [M, N] act
  Tensor sums;  // [N] F32
};

// The kernels of our own, compiled once per instruction set (native/cpu/simd) and chosen at run
// time. Arguments have been checked by Ops. They divide their work with native/cpu/parallel.h.
struct Kernels {
  const char* isa;     // "generic", "avx2", "avx512", "avx512bf16"
  bool bf16Attention;  // has bf16 dot products
  void (*layerNormModulate)(const LayerNormModulateArgs& args);
  void (*attention)(const AttentionArgs& args);
  void (*silu)(const SiluArgs& args);
  void (*timestepEmbedding)(const TimestepEmbeddingArgs& args);
  void (*conditionEmbedding)(const ConditionEmbeddingArgs& args);
  void (*patchify)(const PatchifyArgs& args);
  void (*unpatchify)(const UnpatchifyArgs& args);
  void (*guide)(const GuideArgs& args);
  void (*solverUpdate)(const SolverUpdateArgs& args);
  void (*noise)(const NoiseArgs& args);
  void (*groupNorm)(const GroupNormArgs& args);
  void (*toChannelsLast)(const ToChannelsLastArgs& args);
  void (*toChannelsFirst)(const ToChannelsFirstArgs& args);
  void (*sampleMoments)(const SampleMomentsArgs& args);
  void (*toRgb8)(const ToRgb8Args& args);

  void (*gateBackward)(const GateBackwardArgs& args);
  void (*layerNormModulateBackward)(const LayerNormModulateBackwardArgs& args);
  void (*attentionBackward)(const AttentionBackwardArgs& args);
  void (*siluBackward)(const SiluBackwardArgs& args);
  void (*conditionEmbeddingBackward)(const ConditionEmbeddingBackwardArgs& args);
  void (*unpatchifyBackward)(const UnpatchifyBackwardArgs& args);
  void (*drawLatents)(const DrawLatentsArgs& args);
  void (*qSample)(const QSampleArgs& args);
  void (*loss)(const LossArgs& args);
  void (*squaredNorm)(const SquaredNormArgs& args);
  void (*adamW)(const AdamWArgs& args);
  void (*cast)(const CastArgs& args);

  // The parts of linear and its backward beside the products.
  void (*linearFinish)(const LinearFinishArgs& args);
  void (*geluBackward)(const GeluBackwardArgs& args);
  void (*columnSums)(const ColumnSumsArgs& args);
};

// The table for the best instruction set of this processor, or for the one that the environment
// variable DIT_CPU_ISA names. Throws Option when that cannot run here.
const Kernels& kernels();

// The instruction sets that this processor can run, best last.
std::vector<const char*> supportedIsas();

}  // namespace dit::cpu
