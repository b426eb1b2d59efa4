#pragma once

#include <string>
#include <vector>

#include "model/dit.h"
#include "oracle.h"

// DiT from the oracle's operations, one row at a time. In double it is the truth; in float it is
// the naive run; with `bf16` each operation's activations and matrices are rounded to bf16 first,
// as a naive run in that precision does.

namespace dit::test {

// Normal numbers of deviation `scale` for every parameter: no tensor is without effect.
class RandomWeights : public WeightSource {
 public:
  RandomWeights(const DitConfig& config, uint64_t seed, float scale = 0.1f) : scale_(scale) {
    std::vector<ParamSpec> params = ditParams(config);
    for (ParamSpec& param : params) param.init = Init::Normal002;
    normal_ = initialWeights(params, seed);
  }

  using WeightSource::read;
  bool has(const std::string& name) const override {
    return name != "pos_embed" && normal_->has(name);
  }
  Shape shape(const std::string& name) const override { return normal_->shape(name); }
  Tensor read(const std::string& name, bool keepBf16) override {
    const Tensor values = normal_->read(name, keepBf16);
    scaled_.assign(values.as<float>(), values.as<float>() + values.count());
    for (float& value : scaled_) value *= scale_ / 0.02f;
    return {scaled_.data(), DType::F32, values.shape};
  }

 private:
  float scale_;
  std::unique_ptr<WeightSource> normal_;
  std::vector<float> scaled_;
};

template <typename T>
class DitOracle {
 public:
  using Vector = oracle::Vector<T>;

  DitOracle(const DitConfig& config, WeightSource& weights, bool bf16 = false)
      : config_(config), weights_(weights), bf16_(bf16) {}

  // x [C, H, W] -> [outChannels, H, W].
  Vector forward(const Vector& x, T timestep, int32_t label) {
    const int64_t C = config_.hidden, tokens = config_.tokens(), p = config_.patch;
    const Vector t =
        linear("t_embedder.mlp.2", 1,
               silu(linear("t_embedder.mlp.0", 1, oracle::timestepEmbedding<T>({timestep}), false)),
               false);
    const Vector table = param("y_embedder.embedding_table.weight", false);
    const Vector condition =
        silu(oracle::conditionEmbedding<T>(C, t, table, {label}, Vector(static_cast<size_t>(C))));

    h_ = linear("x_embedder.proj", tokens,
                oracle::patchify<T>(config_.channels, config_.height, config_.width, p, x, {0}));
    const Vector position = weights_.has("pos_embed") ? param("pos_embed", false) : computedTable();
    for (size_t i = 0; i < h_.size(); i++) h_[i] += position[i];

    for (int64_t i = 0; i < config_.depth; i++) {
      const std::string block = "blocks." + std::to_string(i);
      const std::vector<Vector> m = modulation(block + ".adaLN_modulation.1", condition, 6);
      const Vector qkv = linear(block + ".attn.qkv", tokens, normed(m[0], m[1]));
      const Vector attended = oracle::attention<T>(1, tokens, C, config_.heads, rounded(qkv));
      add(m[2], linear(block + ".attn.proj", tokens, attended));
      Vector hidden = linear(block + ".mlp.fc1", tokens, normed(m[3], m[4]));
      for (T& value : hidden) value = oracle::gelu(value);
      add(m[5], linear(block + ".mlp.fc2", tokens, hidden));
    }
    const std::vector<Vector> m = modulation("final_layer.adaLN_modulation.1", condition, 2);
    return oracle::unpatchify<T>(1, config_.outChannels(), config_.height, config_.width, p,
                                 linear("final_layer.linear", tokens, normed(m[0], m[1])));
  }

 private:
  Vector rounded(Vector v) const {
    if (!bf16_) return v;
    for (T& x : v) x = static_cast<T>(bf16ToFloat(floatToBf16(static_cast<float>(x))));
    return v;
  }

  Vector param(const std::string& name, bool matrix) {
    const Tensor values = weights_.read(name, false);
    Vector v(values.as<float>(), values.as<float>() + values.count());
    return matrix ? rounded(std::move(v)) : v;
  }

  Vector computedTable() const {
    const std::vector<float> table = positionEmbedding(config_);
    return Vector(table.begin(), table.end());
  }

  Vector linear(const std::string& name, int64_t rows, const Vector& x, bool low = true) {
    const Vector w = param(name + ".weight", low), bias = param(name + ".bias", false);
    const int64_t n = static_cast<int64_t>(bias.size());
    return oracle::linear<T>(1, rows, n, static_cast<int64_t>(w.size()) / n, low ? rounded(x) : x,
                             w, bias, Epilogue::Bias);
  }

  Vector silu(Vector v) const {
    for (T& x : v) x = oracle::silu(x);
    return v;
  }

  std::vector<Vector> modulation(const std::string& name, const Vector& condition, int parts) {
    const Vector all = linear(name, 1, condition);
    std::vector<Vector> split;
    for (int i = 0; i < parts; i++) {
      split.emplace_back(all.begin() + i * config_.hidden, all.begin() + (i + 1) * config_.hidden);
    }
    return split;
  }

  Vector normed(const Vector& shift, const Vector& scale) const {
    return oracle::layerNormModulate<T>(1, config_.tokens(), config_.hidden, rounded(h_), shift,
                                        scale);
  }

  void add(const Vector& gate, const Vector& branch) {
    for (size_t i = 0; i < h_.size(); i++) h_[i] += gate[i % gate.size()] * branch[i];
    h_ = rounded(std::move(h_));
  }

  const DitConfig& config_;
  WeightSource& weights_;
  bool bf16_;
  Vector h_;  // [1, T, C]
};

}  // namespace dit::test
