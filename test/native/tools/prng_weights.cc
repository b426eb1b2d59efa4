// dit_prng_weights <listing.json> <out.safetensors> [--only <prefix> | --inputs]
//
// Writes the weights of a listing of the fixtures (full_size/*.json), which are drawn and not
// stored, as an F32 safetensors file. --only keeps those whose name begins with the prefix,
// --inputs writes the listing's inputs instead.

#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <sstream>

#include "core/error.h"
#include "prng.h"

namespace {

void writeSafetensors(const std::vector<dit::test::PrngTensor>& tensors, const std::string& path) {
  std::ostringstream json;
  int64_t offset = 0;
  for (const auto& tensor : tensors) {
    json << (offset ? ",\"" : "{\"") << tensor.name << "\":{\"dtype\":\"F32\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); i++) json << (i ? "," : "") << tensor.shape[i];
    json << "],\"data_offsets\":[" << offset;
    offset += tensor.count() * static_cast<int64_t>(sizeof(float));
    json << "," << offset << "]}";
  }
  json << "}";
  std::string header = json.str();
  header.resize((header.size() + 7) / 8 * 8, ' ');  // the data begins at a multiple of 8

  std::ofstream out(path, std::ios::binary);
  const uint64_t headerBytes = header.size();
  out.write(reinterpret_cast<const char*>(&headerBytes), sizeof(headerBytes));
  out << header;
  for (const auto& tensor : tensors) {
    const std::vector<float> values = tensor.values();
    out.write(reinterpret_cast<const char*>(values.data()),
              static_cast<std::streamsize>(values.size() * sizeof(float)));
  }
  out.close();
  DIT_CHECK(out.good(), dit::ErrorCode::File, "cannot write ", path);
}

}  // namespace

int main(int argc, char** argv) {
  const bool only = argc == 5 && !std::strcmp(argv[3], "--only");
  const bool inputs = argc == 4 && !std::strcmp(argv[3], "--inputs");
  if (argc != 3 && !only && !inputs) {
    std::cerr << "usage: dit_prng_weights <listing.json> <out.safetensors> "
                 "[--only <prefix> | --inputs]\n";
    return 2;
  }
  try {
    dit::test::PrngListing listing = dit::test::readPrngListing(argv[1]);
    std::vector<dit::test::PrngTensor>& tensors = inputs ? listing.inputs : listing.weights;
    const std::string prefix = only ? argv[4] : "";
    std::erase_if(tensors, [&](const auto& tensor) { return !tensor.name.starts_with(prefix); });
    DIT_CHECK(!tensors.empty(), dit::ErrorCode::Option, "no tensor begins with '", prefix, "'");
    writeSafetensors(tensors, argv[2]);
  } catch (const std::exception& error) {
    std::cerr << "dit_prng_weights: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
