#include "model/dit.h"

namespace dit {

// A DiT block with adaLN-Zero (Peebles & Xie 2022, figure 3). `modulation` [E, 6C] holds, per
// (timestep, condition): shift, scale and gate of the attention, then of the MLP.
//
//   h = h + gate1 * proj(attention(norm(h) (1 + scale1) + shift1))
//   h = h + gate2 * fc2(gelu(fc1(norm(h) (1 + scale2) + shift2)))
void Dit::blockForward(const DitBlock& block, const Tensor& entry, const Tensor& modulation,
                       int64_t R, const Checkpoint& checkpoint) {
  const int64_t C = config_.hidden;
  const auto check = [&] {
    if (checkpoint) checkpoint();
  };
  const auto part = [&](int i) { return RowVector{modulation.columns(i * C, C), entry}; };
  const Tensor tokens = a_.tokens.slice(0, R), normed = a_.normed.slice(0, R);
  const Tensor qkv = a_.qkv.slice(0, R), attended = a_.attended.slice(0, R);
  const Tensor mlp = a_.mlp.slice(0, R);

  ops_.layerNormModulate({.x = tokens, .shift = part(0), .scale = part(1), .y = normed});
  ops_.linear({.x = normed, .weight = block.qkv.weight.get(), .bias = block.qkv.bias, .y = qkv});
  check();
  ops_.attention({.qkv = qkv, .y = attended, .heads = config_.heads});
  check();
  ops_.linear({.x = attended,
               .weight = block.proj.weight.get(),
               .bias = block.proj.bias,
               .y = tokens,
               .epilogue = Epilogue::BiasResidual,
               .gate = part(2),
               .residual = tokens});

  ops_.layerNormModulate({.x = tokens, .shift = part(3), .scale = part(4), .y = normed});
  check();
  ops_.linear({.x = normed,
               .weight = block.fc1.weight.get(),
               .bias = block.fc1.bias,
               .y = mlp,
               .epilogue = Epilogue::BiasGelu});
  check();
  ops_.linear({.x = mlp,
               .weight = block.fc2.weight.get(),
               .bias = block.fc2.bias,
               .y = tokens,
               .epilogue = Epilogue::BiasResidual,
               .gate = part(5),
               .residual = tokens});
}

}  // namespace dit
