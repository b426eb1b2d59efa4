#pragma once

#include <cmath>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "harness.h"
#include "model/weights.h"

// What the benchmarks that are timed beside PyTorch (bench/peers) share. Their labels and sizes are
// those of torch_ops.py and torch_runs.py: "op shape dtype".

namespace dit::test {

// The sizes of DiT-XL/2 want a GPU; the tiny ones show on any device that all of it works.
inline bool hasTimeFor(const Test& test, const std::string& scale) {
  const std::string& device = test.options().device;
  if (scale != "xl" || (device.starts_with("cuda") && device != "cuda:emulated")) return true;
  std::printf("%s: for a GPU only\n", test.name().c_str());
  return false;
}

inline bool hasPrecision(Test& test, Precision precision) {
  if (test.backend().supports(precision)) return true;
  std::printf("%s: not on this device\n", test.name().c_str());
  return false;
}

inline DType activationType(Precision precision) {
  return precision == Precision::BF16 ? DType::BF16 : DType::F32;
}

// Normal numbers drawn on the device, where hundreds of millions take no time.
inline DeviceTensor drawn(Test& test, DType dtype, Shape shape, uint64_t seed = 1) {
  DeviceTensor wide = test.output(DType::F32, shape);
  test.ops().noise({.seed = seed, .y = wide});
  if (dtype == DType::F32) return wide;
  DeviceTensor narrow = test.output(dtype, shape);
  test.ops().cast({.x = wide, .y = narrow});
  return narrow;
}

// Normal weights that keep the size of activations, with no gate at zero: matrices have a deviation
// of 1 / sqrt(inputs), vectors of 0.02 (around 1 for a norm's weight). All are cut from one
// sequence of random numbers, so that 675 million take no time.
class RepeatedWeights : public WeightSource {
 public:
  explicit RepeatedWeights(const std::vector<ParamSpec>& params) {
    for (const ParamSpec& param : params) specs_[param.name] = param;
    std::mt19937_64 random(1);
    pool_.resize(kCount);
    auto uniform = [&] { return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53; };
    for (float& value : pool_) {
      const double radius = std::sqrt(-2 * std::log(uniform()));
      value = static_cast<float>(radius * std::cos(2 * M_PI * uniform()));
    }
  }

  using WeightSource::read;
  bool has(const std::string& name) const override { return specs_.count(name) > 0; }
  Shape shape(const std::string& name) const override { return specs_.at(name).shape; }
  Tensor read(const std::string& name, bool) override {
    const ParamSpec& spec = specs_.at(name);
    const auto count = static_cast<size_t>(spec.shape.count());
    if (spec.init == Init::Fixed) {
      values_ = spec.fixed;
    } else {
      const bool matrix = spec.shape.rank() > 1;
      const float scale =
          matrix ? 1 / std::sqrt(static_cast<float>(spec.shape.count() / spec.shape[0])) : 0.02f;
      const float shift = !matrix && name.ends_with(".weight") ? 1.0f : 0.0f;
      values_.resize(count);
      size_t from = next_++ * 7919;  // another start for each
      for (float& value : values_) value = pool_[from++ % kCount] * scale + shift;
    }
    return {values_.data(), DType::F32, spec.shape};
  }

 private:
  static constexpr size_t kCount = size_t{1} << 20;  // of the sequence

  std::unordered_map<std::string, ParamSpec> specs_;
  std::vector<float> pool_, values_;
  size_t next_ = 0;
};

}  // namespace dit::test
