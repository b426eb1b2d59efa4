#include "model/host_weights.h"

namespace dit {

HostWeights::HostWeights(WeightSource& source, const std::vector<ParamSpec>& params) {
  for (const ParamSpec& param : params) {
    const Tensor values = source.read(param, /*keepBf16=*/false);
    const float* first = values.as<float>();
    values_[param.name] = {values.shape, std::vector<float>(first, first + values.count())};
    bytes_ += values.bytes();
  }
}

Tensor HostWeights::read(const std::string& name, bool) {
  const Values& values = find(name);
  return {const_cast<float*>(values.floats.data()), DType::F32, values.shape};
}

const HostWeights::Values& HostWeights::find(const std::string& name) const {
  const auto it = values_.find(name);
  DIT_CHECK(it != values_.end(), ErrorCode::Internal, "no parameter ", name);
  return it->second;
}

}  // namespace dit
