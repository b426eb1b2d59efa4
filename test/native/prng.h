#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dit::test {

// The generator behind the fixtures' full-size weights, which are listed instead of stored:
// FNV-1a of the tensor's name is the seed of a splitmix64 sequence (see "The PRNG" in the
// documentation of the fixtures). Bit for bit the same everywhere.
uint64_t prngSeed(std::string_view name);
// The i-th number of the sequence, i = 0, 1, ...
uint64_t prngBits(uint64_t seed, uint64_t i);
// Uniform in offset +- scale.
float prngValue(uint64_t seed, uint64_t i, double scale, double offset);

// One tensor of a listing (full_size/*.json).
struct PrngTensor {
  std::string name;
  std::vector<int64_t> shape;
  double scale = 0, offset = 0;
  uint64_t seed = 0;

  int64_t count() const;
  std::vector<float> values() const;
};

struct PrngListing {
  std::vector<PrngTensor> weights;  // without those that are computed, not drawn (pos_embed)
  std::vector<PrngTensor> inputs;   // "input.x", ...

  // Throws Format where there is no weight or input of that name.
  const PrngTensor& at(std::string_view name) const;
};

// Checks the listing's own seeds, first two and last values against what is drawn here.
PrngListing readPrngListing(const std::string& path);

}  // namespace dit::test
