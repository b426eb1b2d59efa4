// What stands around the blocks of a DiT: the condition and its modulation, the patch embedding,
// the final layer. Each backward stands below its forward.
#include "model/dit_layers.h"

namespace dit {

namespace {

constexpr int64_t kFrequencies = 256;

// [E, n] as one row of E.
Tensor one(const Tensor& x) {
  Tensor y = x;
  y.shape = {1, x.shape[0], x.shape[1]};
  return y;
}

void linear(Ops& ops, const LinearLayer& layer, const Tensor& x, const Tensor& y) {
  ops.linear({.x = one(x), .weight = layer.weight.get(), .bias = layer.bias, .y = one(y)});
}

}  // namespace

ConditionActivations layOutCondition(const DitConfig& config, DType act, int64_t entries,
                                     bool vectors, Arena& arena) {
  const int64_t E = entries, C = config.hidden;
  ConditionActivations a;
  a.timesteps = arena.make(DType::F32, {E});
  a.labels = arena.make(DType::I32, {E});
  if (vectors) a.vectors = arena.make(DType::F32, {E, C});
  a.frequencies = arena.make(DType::F32, {E, kFrequencies});
  a.hidden = arena.make(DType::F32, {E, C});
  a.hiddenAct = arena.make(DType::F32, {E, C});
  a.embedded = arena.make(DType::F32, {E, C});
  a.condition = arena.make(DType::F32, {E, C});
  a.conditionAct = arena.make(act, {E, C});
  return a;
}

void conditionForward(Ops& ops, const DitLayers& layers, const ConditionActivations& a,
                      const Tensor& table, const Checkpoint& checkpoint) {
  ops.timestepEmbedding({.t = a.timesteps, .y = a.frequencies});
  linear(ops, layers.timestep0, a.frequencies, a.hidden);
  ops.silu({.x = a.hidden, .y = a.hiddenAct});
  linear(ops, layers.timestep2, a.hiddenAct, a.embedded);
  ops.conditionEmbedding({.t = a.embedded,
                          .table = layers.labels,
                          .label = a.labels,
                          .vectors = a.vectors,
                          .y = a.condition});
  ops.silu({.x = a.condition, .y = a.conditionAct});

  const int64_t C = a.condition.shape[1], depth = static_cast<int64_t>(layers.blocks.size());
  for (int64_t i = 0; i < depth; i++) {
    if (checkpoint) checkpoint();
    linear(ops, layers.blocks[static_cast<size_t>(i)].modulation, a.conditionAct,
           table.columns(6 * C * i, 6 * C));
  }
  linear(ops, layers.finalModulation, a.conditionAct, table.columns(6 * C * depth, 2 * C));
}

void modulationBackward(Ops& ops, const LinearLayer& layer, const ConditionActivations& a,
                        const Tensor& dModulation, const Tensor& low, const Tensor& dConditionAct) {
  if (low.data != dModulation.data) ops.cast({.x = dModulation, .y = low});
  ops.linearBackward({.x = one(a.conditionAct),
                      .weight = layer.weight.get(),
                      .dY = one(low),
                      .dX = one(dConditionAct),
                      .addToDx = true,
                      .dWeight = layer.dWeight,
                      .dBias = layer.dBias});
}

void conditionBackward(Ops& ops, const DitLayers& layers, const ConditionActivations& a,
                       const Tensor& dConditionAct, const Tensor& scratch) {
  const Tensor& dCondition =
      dConditionAct;  // from here on; also the gradient of the timestep's part
  ops.siluBackward({.x = a.condition, .dY = dConditionAct, .dX = dCondition});
  ops.conditionEmbeddingBackward({.dY = dCondition, .label = a.labels, .dTable = layers.dLabels});
  const auto backward = [&](const LinearLayer& layer, const Tensor& x, const Tensor& dY,
                            const Tensor& dX) {
    ops.linearBackward({.x = one(x),
                        .weight = layer.weight.get(),
                        .dY = one(dY),
                        .dX = dX ? one(dX) : dX,
                        .dWeight = layer.dWeight,
                        .dBias = layer.dBias});
  };
  backward(layers.timestep2, a.hiddenAct, dCondition, scratch);
  ops.siluBackward({.x = a.hidden, .dY = scratch, .dX = scratch});
  backward(layers.timestep0, a.frequencies, scratch, {});
}

void embedForward(Ops& ops, const DitConfig& config, const DitLayers& layers, const Tensor& x,
                  const Tensor& lane, const EndActivations& a, const Tensor& tokens) {
  ops.patchify({.x = x, .lane = lane, .patch = config.patch, .y = a.patches});
  ops.linear({.x = a.patches,
              .weight = layers.patchEmbed.weight.get(),
              .bias = layers.patchEmbed.bias,
              .y = tokens,
              .epilogue = Epilogue::BiasResidual,
              .residual = layers.position});
}

void embedBackward(Ops& ops, const DitLayers& layers, const EndActivations& a,
                   const Tensor& dTokens, const Tensor& low) {
  if (low.data != dTokens.data) ops.cast({.x = dTokens, .y = low});
  ops.linearBackward({.x = a.patches,
                      .weight = layers.patchEmbed.weight.get(),
                      .dY = low,
                      .dWeight = layers.patchEmbed.dWeight,
                      .dBias = layers.patchEmbed.dBias});
}

void finalForward(Ops& ops, const DitConfig& config, const DitLayers& layers, const Tensor& tokens,
                  const Tensor& modulation, const Tensor& entry, const EndActivations& a,
                  const Tensor& out, const Probe& probe) {
  const int64_t C = config.hidden;
  ops.layerNormModulate({.x = tokens,
                         .shift = {modulation.columns(0, C), entry},
                         .scale = {modulation.columns(C, C), entry},
                         .y = a.normed});
  ops.linear({.x = a.normed,
              .weight = layers.finalLinear.weight.get(),
              .bias = layers.finalLinear.bias,
              .y = a.last});
  if (probe) probe("final_layer", a.last);
  ops.unpatchify({.x = a.last, .patch = config.patch, .y = out});
}

void finalBackward(Ops& ops, const DitConfig& config, const DitLayers& layers, const Tensor& tokens,
                   const Tensor& modulation, const Tensor& entry, const EndActivations& a,
                   const FinalGradients& g, const Tensor& dOut, const Tensor& dTokens) {
  const int64_t C = config.hidden;
  ops.unpatchifyBackward({.dY = dOut, .patch = config.patch, .dX = g.dLast});
  ops.linearBackward({.x = a.normed,
                      .weight = layers.finalLinear.weight.get(),
                      .dY = g.dLast,
                      .dX = g.dNormed,
                      .dWeight = layers.finalLinear.dWeight,
                      .dBias = layers.finalLinear.dBias});
  ops.layerNormModulateBackward({.x = tokens,
                                 .scale = {modulation.columns(C, C), entry},
                                 .dY = g.dNormed,
                                 .dX = dTokens,
                                 .dShift = g.dModulation.columns(0, C),
                                 .dScale = g.dModulation.columns(C, C)});
}

}  // namespace dit
