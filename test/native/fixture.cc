#include "fixture.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>

namespace dit::test {
namespace {

DType parseDType(const std::string& name) {
  for (DType dtype :
       {DType::F32, DType::BF16, DType::F16, DType::F64, DType::I64, DType::I32, DType::U8}) {
    if (name == dtypeName(dtype)) return dtype;
  }
  fail(ErrorCode::Format, "fixture with tensors of type ", name);
}

}  // namespace

std::string fixturePath(std::string_view name) {
  const char* folder = std::getenv("DIT_FIXTURES");
  std::string path = std::string(folder ? folder : DIT_SOURCE_DIR "/test/fixtures") + "/";
  path += name;
  DIT_CHECK(std::ifstream(path).good(), ErrorCode::File, "no fixture ", path);
  return path;
}

std::string readFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  DIT_CHECK(in.good(), ErrorCode::File, "cannot open ", path);
  std::ostringstream text;
  text << in.rdbuf();
  return std::move(text).str();
}

Json readJson(const std::string& path) { return Json::parse(readFile(path)); }

Fixture::Fixture(std::string_view name) : name_(name) {
  const std::string text = readFile(fixturePath(name));
  uint64_t headerBytes = 0;
  DIT_CHECK(text.size() >= sizeof(headerBytes), ErrorCode::Format, name, " is too short");
  std::memcpy(&headerBytes, text.data(), sizeof(headerBytes));
  DIT_CHECK(headerBytes <= text.size() - sizeof(headerBytes), ErrorCode::Format, name,
            " is shorter than its header");
  const size_t dataBegin = sizeof(headerBytes) + headerBytes;
  const Json header = Json::parse(std::string_view(text).substr(sizeof(headerBytes), headerBytes));
  // In the file a tensor of I64 may follow an odd number of floats: each gets an aligned place.
  bytes_.resize(text.size() + header.members().size() * sizeof(double));
  size_t place = 0;
  for (const auto& [tensor, entry] : header.members()) {
    if (tensor == "__metadata__") continue;
    Shape shape;
    for (int64_t size : entry.at("shape").integers()) shape.append(size);
    const std::vector<int64_t> offsets = entry.at("data_offsets").integers();
    const Tensor view(bytes_.data() + place, parseDType(entry.at("dtype").string()), shape);
    DIT_CHECK(offsets.at(0) + static_cast<int64_t>(view.bytes()) == offsets.at(1) &&
                  offsets.at(0) >= 0 &&
                  dataBegin + static_cast<size_t>(offsets.at(1)) <= text.size(),
              ErrorCode::Format, name, ": '", tensor, "' of shape ", shape, " has data from ",
              offsets.at(0), " to ", offsets.at(1));
    std::memcpy(bytes_.data() + place, text.data() + dataBegin + offsets.at(0), view.bytes());
    place += (view.bytes() + sizeof(double) - 1) / sizeof(double) * sizeof(double);
    tensors_.emplace(tensor, view);
  }
}

const Tensor& Fixture::at(const std::string& tensor) const {
  const auto found = tensors_.find(tensor);
  if (found != tensors_.end()) return found->second;
  std::string names;
  for (const auto& entry : tensors_) names += " " + entry.first;
  fail(ErrorCode::Format, name_, " has no '", tensor, "', only", names);
}

Tensor FixtureWeights::read(const std::string& name, bool keepBf16) {
  const Tensor& stored = file_.at(name);
  DIT_CHECK(stored.dtype == DType::F32, ErrorCode::Format, name, " is not F32");
  if (!asBf16_) return stored;
  narrow_.clear();
  wide_.clear();
  for (int64_t i = 0; i < stored.count(); i++) {
    narrow_.push_back(floatToBf16(stored.as<float>()[i]));
    wide_.push_back(bf16ToFloat(narrow_.back()));
  }
  if (keepBf16) return {narrow_.data(), DType::BF16, stored.shape};
  return {wide_.data(), DType::F32, stored.shape};
}

Tolerance suggestedTolerance(std::string_view fixture, const std::string& tensor) {
  const Json manifest = readJson(fixturePath("manifest.json"));
  const Json& entry = manifest.at(fixture).at("tensors").at(tensor);
  return {entry.at("tol_rel_l2").number(), entry.at("tol_max_abs").number()};
}

Tolerance difference(const float* got, const float* want, int64_t count) {
  double error = 0, norm = 0, maxAbs = 0;
  for (int64_t i = 0; i < count; i++) {
    const double d = static_cast<double>(got[i]) - want[i];
    error += d * d;
    norm += static_cast<double>(want[i]) * want[i];
    // Not std::max: a NaN has to win.
    if (!(std::abs(d) <= maxAbs)) maxAbs = std::abs(d);
  }
  return {std::sqrt(error / norm), maxAbs};
}

}  // namespace dit::test
