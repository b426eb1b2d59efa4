#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "json.h"
#include "model/weights.h"

namespace dit::test {

// test/fixtures/<name> of the source tree; the environment variable DIT_FIXTURES names another
// folder. Throws File where there is no such file.
std::string fixturePath(std::string_view name);

std::string readFile(const std::string& path);
Json readJson(const std::string& path);

// A safetensors file (u64 length of the header, JSON header, data) in memory. Its tensors are
// views that live as long as the file. `Fixture file("vae_tiny/io.safetensors")`.
class Fixture {
 public:
  explicit Fixture(std::string_view name);
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

  const std::string& name() const { return name_; }
  bool has(const std::string& tensor) const { return tensors_.count(tensor) > 0; }
  // Throws Format with the names there are.
  const Tensor& at(const std::string& tensor) const;
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

 private:
  std::string name_;
  std::vector<std::byte> bytes_;
  std::map<std::string, Tensor> tensors_;
};

// The weights of a network from a fixture. With `asBf16` it behaves like a file of bf16 weights.
class FixtureWeights : public WeightSource {
 public:
  explicit FixtureWeights(std::string_view name, bool asBf16 = false)
      : file_(name), asBf16_(asBf16) {}

  using WeightSource::read;
  const Fixture& file() const { return file_; }
  bool has(const std::string& name) const override { return file_.has(name); }
  Shape shape(const std::string& name) const override { return file_.at(name).shape; }
  Tensor read(const std::string& name, bool keepBf16) override;

 private:
  Fixture file_;
  bool asBf16_;
  std::vector<float> wide_;
  std::vector<uint16_t> narrow_;
};

// How far a tensor may be from what is expected: `rel L2` is ||got - want|| / ||want||, in float64
// over the whole tensor, `max abs` the largest absolute difference.
struct Tolerance {
  double relL2 = 0;
  double maxAbs = 0;
};

// The suggested tolerance of a fixture's tensor (test/fixtures/manifest.json): ten times what the
// reference's own fp32 run differs from float64.
Tolerance suggestedTolerance(std::string_view fixture, const std::string& tensor);

Tolerance difference(const float* got, const float* want, int64_t count);

}  // namespace dit::test
