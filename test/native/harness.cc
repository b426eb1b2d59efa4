#include "harness.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <limits>

namespace dit::test {

namespace {

constexpr size_t kGuard = 256;  // bytes before and after a tensor
constexpr unsigned char kPoison = 0xff;

// FNV-1a: std::hash may differ between builds.
uint64_t hashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

std::vector<char> encode(const Values& values) {
  std::vector<char> bytes(values.v.size() * dtypeSize(values.dtype));
  char* out = bytes.data();
  for (double value : values.v) {
    auto put = [&](auto stored) {
      std::memcpy(out, &stored, sizeof(stored));
      out += sizeof(stored);
    };
    switch (values.dtype) {
      case DType::F32:
        put(static_cast<float>(value));
        break;
      case DType::BF16:
        put(floatToBf16(static_cast<float>(value)));
        break;
      case DType::F64:
        put(value);
        break;
      case DType::I32:
        put(static_cast<int32_t>(value));
        break;
      case DType::I64:
        put(static_cast<int64_t>(value));
        break;
      case DType::U8:
        put(static_cast<uint8_t>(value));
        break;
      case DType::F16:
        fail(ErrorCode::Internal, "no operation has F16 arguments");
    }
  }
  return bytes;
}

template <typename T>
T get(const char* bytes, size_t i) {
  T value;
  std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
  return value;
}

double decode(DType dtype, const char* bytes, size_t i) {
  switch (dtype) {
    case DType::F32:
      return get<float>(bytes, i);
    case DType::BF16:
      return bf16ToFloat(get<uint16_t>(bytes, i));
    case DType::F16:
      return f16ToFloat(get<uint16_t>(bytes, i));
    case DType::F64:
      return get<double>(bytes, i);
    case DType::I32:
      return get<int32_t>(bytes, i);
    case DType::I64:
      return static_cast<double>(get<int64_t>(bytes, i));
    case DType::U8:
      return get<uint8_t>(bytes, i);
  }
  fail(ErrorCode::Internal, "unknown dtype ", static_cast<int>(dtype));
}

Tensor asBytes(void* data, size_t bytes) {
  return {data, DType::U8, {static_cast<int64_t>(bytes)}};
}

}  // namespace

double rounded(DType dtype, double value) {
  char bytes[8];
  const std::vector<char> encoded = encode({dtype, {1}, {value}});
  std::memcpy(bytes, encoded.data(), encoded.size());
  return decode(dtype, bytes, 0);
}

double roundedToTf32(double value) {
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
  float kept;
  std::memcpy(&kept, &bits, sizeof(kept));
  return kept;
}

Values Values::of(DType dtype, Shape shape, std::vector<double> v) {
  DIT_CHECK(shape.count() == static_cast<int64_t>(v.size()), ErrorCode::Internal, v.size(),
            " values for ", shape);
  for (double& value : v) value = rounded(dtype, value);
  return {dtype, shape, std::move(v)};
}

DeviceTensor::DeviceTensor(Backend& backend, DType dtype, Shape shape)
    : backend_(&backend),
      memory_(backend, static_cast<size_t>(shape.count()) * dtypeSize(dtype) + 2 * kGuard),
      tensor_(static_cast<char*>(memory_.data()) + kGuard, dtype, shape) {
  const std::vector<unsigned char> poison(memory_.bytes(), kPoison);
  backend.upload(asBytes(memory_.data(), memory_.bytes()), poison.data());
}

void DeviceTensor::upload(const Values& values) {
  DIT_CHECK(values.dtype == tensor_.dtype && values.shape == tensor_.shape, ErrorCode::Internal,
            "upload of ", values.shape, " to ", tensor_.shape);
  backend_->upload(tensor_, encode(values).data());
}

std::vector<char> DeviceTensor::bytes() const {
  std::vector<char> all(memory_.bytes());
  backend_->download(all.data(), asBytes(memory_.data(), memory_.bytes()));
  const size_t end = kGuard + tensor_.bytes();
  for (size_t i = 0; i < all.size(); i++) {
    if (i == kGuard) i = end;
    DIT_CHECK(static_cast<unsigned char>(all[i]) == kPoison, ErrorCode::Internal,
              "a kernel wrote outside of its tensor ", tensor_.shape, ": byte ",
              static_cast<int64_t>(i) - static_cast<int64_t>(kGuard));
  }
  return {all.begin() + kGuard, all.begin() + static_cast<int64_t>(end)};
}

Values DeviceTensor::download() const {
  const std::vector<char> stored = bytes();
  Values values{tensor_.dtype, tensor_.shape, std::vector<double>(tensor_.count())};
  for (size_t i = 0; i < values.v.size(); i++) {
    values.v[i] = decode(tensor_.dtype, stored.data(), i);
  }
  return values;
}

Test::Test(std::string name, const Options& options)
    : name_(std::move(name)), options_(options), random_(hashName(name_)) {}

Test::~Test() {
  // Before the backend.
  inputs_.clear();
  fence_ = {};
}

Ops& Test::ops() {
  if (!ops_) {
    ops_ = std::make_unique<Ops>(
        openBackend({.device = options_.device, .threads = options_.threads}));
  }
  return *ops_;
}

Values Test::random(DType dtype, Shape shape, double scale, double shift) {
  // Box-Muller: std::normal_distribution differs between standard libraries.
  auto uniform = [&] { return (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53; };
  std::vector<double> v(static_cast<size_t>(shape.count()));
  for (double& value : v) {
    const double radius = std::sqrt(-2 * std::log(uniform()));
    value = shift + scale * radius * std::cos(2 * M_PI * uniform());
  }
  return Values::of(dtype, shape, std::move(v));
}

Values Test::randomIndex(Shape shape, int64_t n) {
  std::vector<double> v(static_cast<size_t>(shape.count()));
  for (double& value : v) value = static_cast<double>(random_() % static_cast<uint64_t>(n));
  return {DType::I32, shape, std::move(v)};
}

Tensor Test::upload(const Values& values) {
  inputs_.emplace_back(backend(), values.dtype, values.shape);
  inputs_.back().upload(values);
  return inputs_.back().tensor();
}

Tensor Test::upload(const std::vector<int32_t>& values) {
  return upload(Values{DType::I32,
                       {static_cast<int64_t>(values.size())},
                       std::vector<double>(values.begin(), values.end())});
}

DeviceTensor Test::output(DType dtype, Shape shape) { return {backend(), dtype, shape}; }

void Test::fail(const char* file, int line, const std::string& message) {
  failures_++;
  std::printf("%s:%d: %s: %s\n", file, line, name_.c_str(), message.c_str());
}

double Test::bench(const std::string& label, double flops, double bytes,
                   const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  auto seconds = [&](int repeats) {
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < repeats; i++) run();
    wait();
    return std::chrono::duration<double>(Clock::now() - begin).count() / repeats;
  };
  seconds(1);
  const double once = seconds(1);
  const int repeats = static_cast<int>(std::clamp(0.02 / once, 1.0, 1000.0));
  if (repeats > 1) seconds(repeats);  // a device's clocks rise
  std::vector<double> times;
  for (int i = 0; i < options_.samples; i++) times.push_back(seconds(repeats));
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  std::printf("%-44s %10.1f us", label.c_str(), median * 1e6);
  if (flops > 0) std::printf(" %8.1f GFLOP/s", flops / median * 1e-9);
  if (bytes > 0) std::printf(" %8.1f GB/s", bytes / median * 1e-9);
  std::printf("   (best %.1f us)\n", times[0] * 1e6);
  std::fflush(stdout);
  if (!options_.json.empty()) {
    std::ofstream(options_.json, std::ios::app)
        << std::setprecision(9) << R"({"side": "dit-native", "case": ")" << name_
        << R"(", "label": ")" << label << R"(", "device": ")" << options_.device
        << R"(", "seconds": )" << median << R"(, "best": )" << times[0] << R"(, "samples": )"
        << times.size() << R"(, "repeats": )" << repeats << R"(, "flops": )" << flops
        << R"(, "bytes": )" << bytes << "}\n";
  }
  return median;
}

// A download waits for a device that works on its own.
void Test::wait() {
  if (!ops_) return;
  if (!fence_.data()) {
    fence_ = DeviceBuffer(backend(), 1);
    const char byte = 0;
    backend().upload(asBytes(fence_.data(), 1), &byte);
  }
  char byte;
  backend().download(&byte, asBytes(fence_.data(), 1));
}

std::vector<Case>& registry() {
  static std::vector<Case> cases;
  return cases;
}

void addCase(CaseKind kind, std::string name, std::function<void(Test& test)> run) {
  registry().push_back({std::move(name), kind, std::move(run)});
}

double relativeL2(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); i++) {
    if (!std::isfinite(got[i])) return std::numeric_limits<double>::infinity();
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

namespace {

// The largest relative error of rounding to nearest.
double unitRoundoff(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return 0x1p-24;
    case DType::BF16:
      return 0x1p-9;
    case DType::F64:
      return 0x1p-53;
    default:
      return 0;
  }
}

}  // namespace

std::string compare(const Values& got, const std::vector<double>& want,
                    const std::vector<double>& naive) {
  if (got.v.size() != want.size() || naive.size() != want.size()) {
    return detail::concat("got ", got.v.size(), " values, the oracle ", want.size(), " and ",
                          naive.size());
  }
  std::vector<double> stored(naive);
  for (double& value : stored) value = rounded(got.dtype, value);
  const double naiveError = relativeL2(stored, want);
  // A naive run of few numbers can be right by luck. But a result that is rounded correctly may be
  // off by the unit roundoff of its type, and no less is asked of one that has to be rounded.
  const double allowed = naiveError > 0 ? std::max(2 * naiveError, unitRoundoff(got.dtype)) : 0;
  const double error = relativeL2(got.v, want);
  if (!std::isfinite(allowed)) return "the naive run is not finite";
  if (error <= allowed) return "";
  size_t worst = 0;
  for (size_t i = 0; i < want.size(); i++) {
    const double here = std::abs(got.v[i] - want[i]);
    if (!(here <= std::abs(got.v[worst] - want[worst]))) worst = i;
    if (!std::isfinite(got.v[i])) break;
  }
  return detail::concat("relative L2 error ", error, ", allowed ", allowed, "; worst at ", worst,
                        " of ", got.shape, ": got ", got.v[worst], ", expected ", want[worst]);
}

std::string expectError(Test& test, const char* file, int line, ErrorCode code,
                        const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    if (error.code() == code) return error.what();
    test.fail(file, line,
              detail::concat("expected ", errorCodeName(code), ", got ",
                             errorCodeName(error.code()), ": ", error.what()));
    return "";
  }
  test.fail(file, line, detail::concat("expected ", errorCodeName(code), ", nothing was thrown"));
  return "";
}

}  // namespace dit::test
