#pragma once

#include <string>
#include <vector>

#include "fixture.h"
#include "harness.h"
#include "model/dit.h"
#include "model/sampler.h"

// A small model on the device under test, as the tests of the forward pass and of sampling use it.

namespace dit::test {

inline DitConfig fixtureConfig(const std::string& name) {
  const Json json = readJson(fixturePath("dit_tiny_forward/" + name + "/config.json"));
  DitConfig config;
  config.depth = json.at("depth").integer();
  config.hidden = json.at("hidden_size").integer();
  config.heads = json.at("num_heads").integer();
  config.mlpHidden =
      static_cast<int64_t>(static_cast<double>(config.hidden) * json.at("mlp_ratio").number());
  config.patch = json.at("patch_size").integer();
  config.channels = json.at("in_channels").integer();
  config.height = json.at("input_size").integers().at(0);
  config.width = json.at("input_size").integers().at(1);
  config.classes = json.at("num_classes").integer();
  return config;
}

// A model on the device under test, and what one evaluation needs.
struct Model {
  Model(Test& test, const DitConfig& config, WeightSource& weights, Precision precision,
        int64_t maxLanes)
      : config(config),
        dit(test.ops(), config, weights, precision, 2 * maxLanes, {}),
        sampler(test.ops(), dit, nullptr, maxLanes, 1000) {}

  std::vector<float> denoise(const std::vector<float>& x, const std::vector<float>& t,
                             const std::vector<int32_t>& y, float guidance = 1,
                             int32_t guidanceChannels = 0) {
    const int64_t n = static_cast<int64_t>(t.size());
    std::vector<float> out(
        static_cast<size_t>(n * config.outChannels() * config.height * config.width));
    Sampler::Evaluation evaluation{.n = n,
                                   .x = x.data(),
                                   .conditions = {},
                                   .guidance = guidance,
                                   .guidanceChannels = guidanceChannels,
                                   .out = out.data()};
    for (int64_t i = 0; i < n; i++) evaluation.conditions.push_back({t[i], y[i], nullptr});
    sampler.denoise(evaluation, {});
    return out;
  }

  DitConfig config;
  Dit dit;
  Sampler sampler;
};

inline std::vector<float> floats(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.count()));
  for (int64_t i = 0; i < tensor.count(); i++) {
    values[i] = tensor.dtype == DType::I64 ? static_cast<float>(tensor.as<int64_t>()[i])
                                           : tensor.as<float>()[i];
  }
  return values;
}

inline std::vector<int32_t> labels(const Tensor& tensor) {
  return std::vector<int32_t>(tensor.as<int64_t>(), tensor.as<int64_t>() + tensor.count());
}

}  // namespace dit::test
