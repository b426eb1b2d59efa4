#include "prng.h"

#include <charconv>

#include "core/error.h"
#include "fixture.h"

namespace dit::test {

uint64_t prngSeed(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

uint64_t prngBits(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// The product is rounded to double before the sum: the target compiles this file with
// -ffp-contract=off.
float prngValue(uint64_t seed, uint64_t i, double scale, double offset) {
  const double u = static_cast<double>(prngBits(seed, i) >> 11) * 0x1p-53;
  return static_cast<float>((u * 2 - 1) * scale + offset);
}

int64_t PrngTensor::count() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

std::vector<float> PrngTensor::values() const {
  std::vector<float> values(static_cast<size_t>(count()));
  for (size_t i = 0; i < values.size(); i++) values[i] = prngValue(seed, i, scale, offset);
  return values;
}

namespace {

PrngTensor readTensor(const std::string& prefix, const std::string& name, const Json& entry) {
  return {name, entry.at("shape").integers(), entry.at("scale").number(),
          entry.at("offset").number(), prngSeed(prefix + name)};
}

void checkTensor(const PrngTensor& tensor, const Json& entry) {
  const std::string& text = entry.at("seed").string();
  uint64_t seed = 0;
  std::from_chars(text.data() + 2, text.data() + text.size(), seed, 16);  // behind "0x"
  DIT_CHECK(seed == tensor.seed, ErrorCode::Format, tensor.name, ": the listing has seed ", text,
            ", got ", tensor.seed);
  const std::vector<Json>& first = entry.at("first").items();
  const auto check = [&](int64_t i, double want) {
    const float got = prngValue(tensor.seed, static_cast<uint64_t>(i), tensor.scale, tensor.offset);
    DIT_CHECK(static_cast<double>(got) == want, ErrorCode::Format, tensor.name, "[", i,
              "]: the listing has ", want, ", got ", got);
  };
  for (size_t i = 0; i < first.size(); i++) check(static_cast<int64_t>(i), first[i].number());
  check(tensor.count() - 1, entry.at("last").number());
}

}  // namespace

PrngListing readPrngListing(const std::string& path) {
  const Json json = readJson(path);
  const std::string& prefix = json.at("prefix").string();
  PrngListing listing;
  for (const auto& [name, entry] : json.at("tensors").members()) {
    if (!entry.find("scale")) continue;
    listing.weights.push_back(readTensor(prefix, name, entry));
    checkTensor(listing.weights.back(), entry);
  }
  const auto addInput = [&](const Json& entry) {
    listing.inputs.push_back(readTensor(prefix, entry.at("name").string(), entry));
  };
  if (const Json& input = json.at("input"); input.kind() == Json::Kind::Array) {
    for (const Json& entry : input.items()) addInput(entry);
  } else {
    addInput(input);
  }
  return listing;
}

const PrngTensor& PrngListing::at(std::string_view name) const {
  for (const auto* tensors : {&weights, &inputs}) {
    for (const PrngTensor& tensor : *tensors) {
      if (tensor.name == name) return tensor;
    }
  }
  fail(ErrorCode::Format, "the listing has no tensor '", name, "'");
}

}  // namespace dit::test
