#pragma once

#include <cstddef>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/weights.h"

namespace dit {

// A copy of parameters in the host's memory, F32.
class HostWeights : public WeightSource {
 public:
  HostWeights(WeightSource& source, const std::vector<ParamSpec>& params);

  using WeightSource::read;
  bool has(const std::string& name) const override { return values_.count(name) != 0; }
  Shape shape(const std::string& name) const override { return find(name).shape; }
  Tensor read(const std::string& name, bool keepBf16) override;

  size_t bytes() const { return bytes_; }

 private:
  struct Values {
    Shape shape;
    std::vector<float> floats;
  };
  const Values& find(const std::string& name) const;

  std::unordered_map<std::string, Values> values_;
  size_t bytes_ = 0;
};

}  // namespace dit
