// A DiT block with adaLN-Zero (Peebles & Xie 2022, figure 3), and its derivative: the second is the
// first in reverse. `modulation` [E, 6C] holds, per (timestep, condition): shift, scale and gate of
// the attention, then of the MLP.
//
//   h = h + gate1 * proj(attention(norm(h) (1 + scale1) + shift1))
//   h = h + gate2 * fc2(gelu(fc1(norm(h) (1 + scale2) + shift2)))
#include "model/dit_layers.h"

namespace dit {

void blockForward(Ops& ops, const DitConfig& config, const DitBlock& block,
                  const Tensor& modulation, const Tensor& entry, const BlockActivations& a,
                  const Checkpoint& checkpoint) {
  const int64_t C = config.hidden;
  const auto check = [&] {
    if (checkpoint) checkpoint();
  };
  const auto part = [&](int i) { return RowVector{modulation.columns(i * C, C), entry}; };

  ops.layerNormModulate({.x = a.input, .shift = part(0), .scale = part(1), .y = a.normed1});
  ops.linear(
      {.x = a.normed1, .weight = block.qkv.weight.get(), .bias = block.qkv.bias, .y = a.qkv});
  check();
  ops.attention({.qkv = a.qkv,
                 .y = a.attended,
                 .heads = config.heads,
                 .logSumExp = a.logSumExp,
                 .tf32 = block.tf32});
  check();
  ops.linear({.x = a.attended,
              .weight = block.proj.weight.get(),
              .bias = block.proj.bias,
              .y = a.middle,
              .epilogue = Epilogue::BiasResidual,
              .gate = part(2),
              .residual = a.input,
              .kept = a.branch1});

  ops.layerNormModulate({.x = a.middle, .shift = part(3), .scale = part(4), .y = a.normed2});
  check();
  ops.linear({.x = a.normed2,
              .weight = block.fc1.weight.get(),
              .bias = block.fc1.bias,
              .y = a.hidden,
              .epilogue = Epilogue::BiasGelu,
              .kept = a.preActivation});
  check();
  ops.linear({.x = a.hidden,
              .weight = block.fc2.weight.get(),
              .bias = block.fc2.bias,
              .y = a.output,
              .epilogue = Epilogue::BiasResidual,
              .gate = part(5),
              .residual = a.middle,
              .kept = a.branch2});
}

void blockBackward(Ops& ops, const DitConfig& config, const DitBlock& block,
                   const Tensor& modulation, const Tensor& entry, const BlockActivations& a,
                   const BlockGradients& g, const Tensor& dTokens, const Checkpoint& checkpoint) {
  const int64_t C = config.hidden;
  const auto check = [&] {
    if (checkpoint) checkpoint();
  };
  const auto part = [&](int i) { return RowVector{modulation.columns(i * C, C), entry}; };
  const auto dPart = [&](int i) { return g.dModulation.columns(i * C, C); };

  ops.gateBackward({.dY = dTokens,
                    .branch = a.branch2,
                    .gate = part(5),
                    .dBranch = g.dBranch,
                    .dGate = dPart(5)});
  ops.linearBackward({.x = a.hidden,
                      .weight = block.fc2.weight.get(),
                      .dY = g.dBranch,
                      .preActivation = a.preActivation,
                      .dX = g.dHidden,
                      .dWeight = block.fc2.dWeight,
                      .dBias = block.fc2.dBias});
  check();
  ops.linearBackward({.x = a.normed2,
                      .weight = block.fc1.weight.get(),
                      .dY = g.dHidden,
                      .dX = g.dNormed,
                      .dWeight = block.fc1.dWeight,
                      .dBias = block.fc1.dBias});
  check();
  ops.layerNormModulateBackward({.x = a.middle,
                                 .scale = part(4),
                                 .dY = g.dNormed,
                                 .dResidual = dTokens,
                                 .dX = dTokens,
                                 .dShift = dPart(3),
                                 .dScale = dPart(4)});

  ops.gateBackward({.dY = dTokens,
                    .branch = a.branch1,
                    .gate = part(2),
                    .dBranch = g.dBranch,
                    .dGate = dPart(2)});
  ops.linearBackward({.x = a.attended,
                      .weight = block.proj.weight.get(),
                      .dY = g.dBranch,
                      .dX = g.dNormed,
                      .dWeight = block.proj.dWeight,
                      .dBias = block.proj.dBias});
  check();
  ops.attentionBackward({.qkv = a.qkv,
                         .y = a.attended,
                         .logSumExp = a.logSumExp,
                         .dY = g.dNormed,
                         .heads = config.heads,
                         .dQkv = g.dQkv,
                         .tf32 = block.tf32});
  check();
  ops.linearBackward({.x = a.normed1,
                      .weight = block.qkv.weight.get(),
                      .dY = g.dQkv,
                      .dX = g.dNormed,
                      .dWeight = block.qkv.dWeight,
                      .dBias = block.qkv.dBias});
  ops.layerNormModulateBackward({.x = a.input,
                                 .scale = part(1),
                                 .dY = g.dNormed,
                                 .dResidual = dTokens,
                                 .dX = dTokens,
                                 .dShift = dPart(0),
                                 .dScale = dPart(1)});
}

}  // namespace dit
