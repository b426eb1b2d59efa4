#pragma once

#include <memory>
#include <vector>

#include "core/arena.h"
#include "model/callbacks.h"
#include "model/dit_config.h"
#include "ops/ops.h"

// The parts of a DiT, forward and backward, for sampling (dit.cc) and training (trainer.cc) alike.
// R rows of T tokens; `act` is the type of the products' operands.

namespace dit {

// y = x W^T + b. The gradients are there in training only.
struct LinearLayer {
  std::unique_ptr<PreparedWeight> weight;
  Tensor bias;
  Tensor dWeight, dBias;
};

struct DitBlock {
  LinearLayer qkv, proj, fc1, fc2, modulation;
  bool tf32 = false;  // of attention's products; those of a weight know their precision from it
};

struct DitLayers {
  Tensor position;         // [1, T, C] F32, fixed
  Tensor labels, dLabels;  // [labelRows, C] F32
  LinearLayer patchEmbed, timestep0, timestep2;
  std::vector<DitBlock> blocks;
  LinearLayer finalLinear, finalModulation;
};

// What a layer's products are over: the tokens of all rows, or one (timestep, condition) a row. The
// timestep's sinusoid needs more digits than bf16 has, and its products are tiny: always fp32.
enum class LayerUse : uint8_t { Tokens, Conditions, Timestep };

// Of a layer's products in a model of the precision.
inline Precision precisionOf(LayerUse use, Precision model) {
  return use == LayerUse::Timestep ? Precision::F32 : model;
}

// Visits the parameters in the order of ditParams: table(tensor, gradient) for the position
// embedding and the label table, linear(layer, use) for the rest, a weight and its bias.
template <typename Table, typename Linear>
void visitLayers(DitLayers& layers, Table&& table, Linear&& linear) {
  Tensor none;
  table(layers.position, none);
  linear(layers.patchEmbed, LayerUse::Tokens);
  linear(layers.timestep0, LayerUse::Timestep);
  linear(layers.timestep2, LayerUse::Timestep);
  table(layers.labels, layers.dLabels);
  for (DitBlock& block : layers.blocks) {
    linear(block.qkv, LayerUse::Tokens);
    linear(block.proj, LayerUse::Tokens);
    linear(block.fc1, LayerUse::Tokens);
    linear(block.fc2, LayerUse::Tokens);
    linear(block.modulation, LayerUse::Conditions);
  }
  linear(layers.finalLinear, LayerUse::Tokens);
  linear(layers.finalModulation, LayerUse::Conditions);
}

// ---------------------------------------------------------------- condition -> modulation

struct ConditionActivations {
  Tensor timesteps;    // [E] F32
  Tensor labels;       // [E] I32; -1: a vector instead
  Tensor vectors;      // [E, C] F32; may be absent where no label is negative
  Tensor frequencies;  // [E, 256] F32
  Tensor hidden, hiddenAct, embedded, condition;  // [E, C] F32
  Tensor conditionAct;                            // [E, C] act
};

ConditionActivations layOutCondition(const DitConfig& config, DType act, int64_t entries,
                                     bool vectors, Arena& arena);

// From timesteps and labels (and vectors) to the modulation of all blocks, table
// [E, modulationSize] F32.
void conditionForward(Ops& ops, const DitLayers& layers, const ConditionActivations& a,
                      const Tensor& table, const Checkpoint& checkpoint);

// dModulation [E, n C] F32 is the gradient of what `layer` gave. Adds the gradient of conditionAct
// to dConditionAct [E, C] F32; `low` [E, n C] act is where the products take it from.
void modulationBackward(Ops& ops, const LinearLayer& layer, const ConditionActivations& a,
                        const Tensor& dModulation, const Tensor& low, const Tensor& dConditionAct);

// The rest of it, down to the label table. Destroys dConditionAct; `scratch` [E, C] F32.
void conditionBackward(Ops& ops, const DitLayers& layers, const ConditionActivations& a,
                       const Tensor& dConditionAct, const Tensor& scratch);

// ---------------------------------------------------------------- blocks

// What a block reads and leaves, all [R, T, ..]. In sampling the stream stays in one place (input,
// middle and output are the same tensor) and nothing is kept for a derivative.
struct BlockActivations {
  Tensor input, middle, output;  // C: the residual stream
  Tensor normed1, normed2;       // C
  Tensor qkv, attended;          // 3C, C
  Tensor hidden;                 // mlpHidden, after GELU
  // Kept for the derivative; absent in sampling.
  Tensor logSumExp;         // [R, heads, T] F32
  Tensor branch1, branch2;  // C: what the gates multiply
  Tensor preActivation;     // mlpHidden, before GELU
};

// Memory of the backward of one block; blocks take turns.
struct BlockGradients {
  Tensor dBranch, dNormed;  // [R, T, C] act
  Tensor dHidden;           // [R, T, mlpHidden] act
  Tensor dQkv;              // [R, T, 3C] act; may share memory with dHidden
  Tensor dModulation;       // [R, 6C] F32
  Tensor dModulationLow;    // [R, 6C] act; dModulation itself in fp32
};

// `modulation` [E, 6C]: row r uses entry[r].
void blockForward(Ops& ops, const DitConfig& config, const DitBlock& block,
                  const Tensor& modulation, const Tensor& entry, const BlockActivations& a,
                  const Checkpoint& checkpoint);

// dTokens [R, T, C] F32: the gradient of the output, and in the end that of the input. Leaves the
// gradient of the modulation in g.dModulation.
void blockBackward(Ops& ops, const DitConfig& config, const DitBlock& block,
                   const Tensor& modulation, const Tensor& entry, const BlockActivations& a,
                   const BlockGradients& g, const Tensor& dTokens, const Checkpoint& checkpoint);

// ---------------------------------------------------------------- the two ends

struct EndActivations {
  Tensor patches;  // [R, T, channels p p] act
  Tensor normed;   // [R, T, C] act
  Tensor last;     // [R, T, p p outChannels] F32
};

// x [L, C, H, W] F32, lane [R] I32 -> tokens [R, T, C].
void embedForward(Ops& ops, const DitConfig& config, const DitLayers& layers, const Tensor& x,
                  const Tensor& lane, const EndActivations& a, const Tensor& tokens);

// dTokens [R, T, C] F32; `low` [R, T, C] act is where the products take it from.
void embedBackward(Ops& ops, const DitLayers& layers, const EndActivations& a,
                   const Tensor& dTokens, const Tensor& low);

// tokens [R, T, C], modulation [E, 2C] -> out [R, outChannels, H, W] F32.
void finalForward(Ops& ops, const DitConfig& config, const DitLayers& layers, const Tensor& tokens,
                  const Tensor& modulation, const Tensor& entry, const EndActivations& a,
                  const Tensor& out, const Probe& probe);

struct FinalGradients {
  Tensor dLast;        // [R, T, p p outChannels] act
  Tensor dNormed;      // [R, T, C] act
  Tensor dModulation;  // [R, 2C] F32
};

// dOut [R, outChannels, H, W] F32 -> dTokens [R, T, C] F32, and g.dModulation.
void finalBackward(Ops& ops, const DitConfig& config, const DitLayers& layers, const Tensor& tokens,
                   const Tensor& modulation, const Tensor& entry, const EndActivations& a,
                   const FinalGradients& g, const Tensor& dOut, const Tensor& dTokens);

}  // namespace dit
