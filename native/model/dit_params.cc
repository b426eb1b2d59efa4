#include <cmath>

#include "model/dit_config.h"

namespace dit {

namespace {

constexpr int64_t kFrequencies = 256;

void addLinear(std::vector<ParamSpec>& params, const std::string& name, int64_t out, int64_t in,
               Init init) {
  params.push_back({.name = name + ".weight", .shape = {out, in}, .init = init, .decays = true});
  params.push_back({name + ".bias", {out}, Init::Zero});
}

}  // namespace

std::vector<ParamSpec> ditParams(const DitConfig& config) {
  const int64_t C = config.hidden, p = config.patch;
  std::vector<ParamSpec> params;
  params.push_back({.name = "pos_embed",
                    .shape = {1, config.tokens(), C},
                    .init = Init::Fixed,
                    .fixed = positionEmbedding(config)});
  params.push_back({.name = "x_embedder.proj.weight",
                    .shape = {C, config.channels, p, p},
                    .init = Init::XavierUniform,
                    .decays = true});
  params.push_back({"x_embedder.proj.bias", {C}, Init::Zero});
  addLinear(params, "t_embedder.mlp.0", C, kFrequencies, Init::Normal002);
  addLinear(params, "t_embedder.mlp.2", C, C, Init::Normal002);
  params.push_back({"y_embedder.embedding_table.weight", {config.labelRows(), C}, Init::Normal002});
  for (int64_t i = 0; i < config.depth; i++) {
    const std::string block = "blocks." + std::to_string(i);
    addLinear(params, block + ".attn.qkv", 3 * C, C, Init::XavierUniform);
    addLinear(params, block + ".attn.proj", C, C, Init::XavierUniform);
    addLinear(params, block + ".mlp.fc1", config.mlpHidden, C, Init::XavierUniform);
    addLinear(params, block + ".mlp.fc2", C, config.mlpHidden, Init::XavierUniform);
    addLinear(params, block + ".adaLN_modulation.1", 6 * C, C, Init::Zero);
  }
  addLinear(params, "final_layer.linear", p * p * config.outChannels(), C, Init::Zero);
  addLinear(params, "final_layer.adaLN_modulation.1", 2 * C, C, Init::Zero);
  return params;
}

// For the token at (row, col): [sin(col w) | cos(col w) | sin(row w) | cos(row w)], a quarter of
// the channels each, w_k = 10000^(-k / (C / 4)) in float64; the column comes first.
std::vector<float> positionEmbedding(const DitConfig& config) {
  const int64_t C = config.hidden, quarter = C / 4;
  const int64_t rows = config.height / config.patch, cols = config.width / config.patch;
  std::vector<float> table(static_cast<size_t>(rows * cols * C));
  for (int64_t token = 0; token < rows * cols; token++) {
    const double position[2] = {static_cast<double>(token % cols),
                                static_cast<double>(token / cols)};
    float* out = table.data() + token * C;
    for (int64_t k = 0; k < quarter; k++) {
      const double w = std::pow(10000.0, -static_cast<double>(k) / static_cast<double>(quarter));
      for (int axis = 0; axis < 2; axis++) {
        out[2 * axis * quarter + k] = static_cast<float>(std::sin(position[axis] * w));
        out[(2 * axis + 1) * quarter + k] = static_cast<float>(std::cos(position[axis] * w));
      }
    }
  }
  return table;
}

}  // namespace dit
