#pragma once

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "harness.h"
#include "model/vae.h"

// The VAEs of the tests.

namespace dit::test {

constexpr const char* kTinyVaeWeights = "vae_tiny/modern/diffusion_pytorch_model.safetensors";

// test/fixtures/vae_tiny/config.json, with latents in the VAE's own scale.
inline VaeConfig tinyConfig() {
  return {.blockOutChannels = {16, 32}, .layersPerBlock = 1, .groups = 8, .scalingFactor = 1.0f};
}

// Random weights for any config: normal, of a size that keeps activations near 1.
class RandomVaeWeights : public WeightSource {
 public:
  RandomVaeWeights(Test& test, const VaeConfig& config) {
    for (const ParamSpec& param : vaeParams(config)) {
      const bool matrix = param.shape.rank() > 1;
      const bool gamma = !matrix && param.name.find("norm") != std::string::npos &&
                         param.name.ends_with(".weight");
      const double fanIn = static_cast<double>(param.shape.count() / param.shape[0]);
      const Values values =
          test.random(DType::F32, param.shape, matrix ? 1 / std::sqrt(fanIn) : 0.1, gamma ? 1 : 0);
      values_[param.name] = {param.shape, values.as<float>()};
    }
  }

  // Scales a parameter; of a convolution's kernel, only the pixel in its middle stays with
  // `middle`.
  void change(const std::string& name, float scale, float shift = 0, bool middle = false) {
    auto& [shape, values] = values_.at(name);
    for (size_t i = 0; i < values.size(); i++) {
      const bool kept = !middle || i % 9 == 4;
      values[i] = kept ? values[i] * scale + shift : 0;
    }
  }

  using WeightSource::read;
  bool has(const std::string& name) const override { return values_.count(name) > 0; }
  Shape shape(const std::string& name) const override { return values_.at(name).first; }
  Tensor read(const std::string& name, bool) override {
    auto& [shape, values] = values_.at(name);
    return {values.data(), DType::F32, shape};
  }

 private:
  std::map<std::string, std::pair<Shape, std::vector<float>>> values_;
};

}  // namespace dit::test
