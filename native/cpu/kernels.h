#pragma once

#include <vector>

#include "ops/ops.h"

namespace dit::cpu {

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
};

// The table for the best instruction set of this processor, or for the one that the environment
// variable DIT_CPU_ISA names. Throws Option when that cannot run here.
const Kernels& kernels();

// The instruction sets that this processor can run, best last.
std::vector<const char*> supportedIsas();

}  // namespace dit::cpu
