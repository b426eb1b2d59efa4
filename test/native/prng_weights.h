#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fixture.h"
#include "model/weights.h"
#include "prng.h"

namespace dit::test {

// The weights of a listing, drawn when they are asked for.
class PrngWeights : public WeightSource {
 public:
  explicit PrngWeights(std::string_view fixture)
      : listing_(readPrngListing(fixturePath(fixture))) {}

  using WeightSource::read;
  const PrngListing& listing() const { return listing_; }

  bool has(const std::string& name) const override {
    for (const PrngTensor& tensor : listing_.weights) {
      if (tensor.name == name) return true;
    }
    return false;
  }
  Shape shape(const std::string& name) const override {
    Shape shape;
    for (const int64_t size : listing_.at(name).shape) shape.append(size);
    return shape;
  }
  Tensor read(const std::string& name, bool) override {
    values_ = listing_.at(name).values();
    return {values_.data(), DType::F32, shape(name)};
  }

 private:
  PrngListing listing_;
  std::vector<float> values_;
};

}  // namespace dit::test
