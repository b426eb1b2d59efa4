#include "ops/cuda_client.h"

#include <dlfcn.h>

#include <charconv>

namespace dit {

namespace {

constexpr char kPrefix[] = "cuda";
constexpr char kEmulated[] = "cuda:emulated";

// The folder of the file that this code is in: the addon, or a program of the tests.
std::string ownFolder() {
  Dl_info info = {};
  const int found = dladdr(reinterpret_cast<void*>(&isCudaDevice), &info);
  DIT_CHECK(found != 0 && info.dli_fname, ErrorCode::Internal, "dladdr does not know this code");
  const std::string file = info.dli_fname;
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

// The library stays open for as long as the process lives: the CUDA runtime in it cannot be
// unloaded safely.
const CudaApi& openLibrary(const char* name) {
  const std::string file = ownFolder() + "/" + name;
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    const char* const reason = dlerror();
    fail(ErrorCode::Device,
         "this build has no CUDA, or the package is incomplete: ", reason ? reason : file.c_str());
  }
  using Function = const CudaApi* (*)();
  const auto function = reinterpret_cast<Function>(dlsym(library, "ditCudaApi"));
  DIT_CHECK(function, ErrorCode::Device, file, " is no library of dit-native");
  const CudaApi& api = *function();
  DIT_CHECK(std::string(api.hash) == DIT_OPS_HASH, ErrorCode::Device, file,
            " belongs to another version of dit-native: reinstall the package");
  return api;
}

const CudaApi& openLibraryFor(const std::string& device) {
  return openLibrary(device == kEmulated ? "libdit_cuda_emulated.so" : "libdit_cuda.so");
}

std::string versionText(int version) {
  return detail::concat(version / 1000, ".", version % 1000 / 10);
}

// Why no device can be looked for; empty where one can.
std::string obstacleOf(const CudaApi& api) {
  return api.driverVersion == 0 ? "no NVIDIA driver was found (libcuda.so.1)" : "";
}

// Why there is no device, when the runtime finds none; empty where it finds some.
std::string whyNone(const CudaApi& api, int* count) {
  if (const std::string obstacle = obstacleOf(api); !obstacle.empty()) return obstacle;
  CudaFailure failure;
  if (api.countDevices(count, &failure) != 0) {
    if (failure.code == ErrorCode::DeviceLost) fail(failure.code, failure.message);
    const int needed = api.runtimeVersion / 1000 * 1000;
    return api.driverVersion < needed ? "the NVIDIA driver is too old: it supports CUDA " +
                                            versionText(api.driverVersion) + ", at least " +
                                            versionText(needed) + " is needed"
                                      : failure.message;
  }
  return *count == 0 ? "the NVIDIA driver sees no device" : "";
}

int ordinalOf(const std::string& device) {
  if (device == kPrefix || device == kEmulated) return 0;
  const char* const begin = device.c_str() + sizeof(kPrefix);  // after the colon
  const char* const end = device.c_str() + device.size();
  int ordinal = -1;
  const auto [rest, error] = std::from_chars(begin, end, ordinal);
  DIT_CHECK(
      device[sizeof(kPrefix) - 1] == ':' && error == std::errc() && rest == end && ordinal >= 0,
      ErrorCode::Option, "device: expected 'cpu', 'cuda' or such as 'cuda:1', got '", device, "'");
  return ordinal;
}

// Forwards every call across the border.
class CudaClient final : public Backend {
 public:
  CudaClient(const CudaApi& api, std::string name, int device) : api_(api), name_(std::move(name)) {
    check([&](CudaFailure* failure) { return api_.open(device, &backend_, failure); });
  }
  ~CudaClient() override { api_.close(backend_); }

  std::string name() const override { return name_; }
  bool supports(Precision) const override { return true; }

  void* allocate(size_t bytes) override {
    void* memory = nullptr;
    check([&](CudaFailure* f) { return api_.allocate(backend_, bytes, &memory, f); });
    return memory;
  }
  // Called by destructors. A device that cannot free memory is lost, and the next call says so.
  void free(void* memory) override {
    CudaFailure failure;
    static_cast<void>(api_.free(backend_, memory, &failure));
  }
  size_t freeBytes() const override {
    size_t bytes = 0;
    check([&](CudaFailure* f) { return api_.freeBytes(backend_, &bytes, f); });
    return bytes;
  }
  void upload(const Tensor& device, const void* host) override {
    check([&](CudaFailure* f) { return api_.upload(backend_, &device, host, f); });
  }
  void download(void* host, const Tensor& device) override {
    check([&](CudaFailure* f) { return api_.download(backend_, host, &device, f); });
  }
  void zero(const Tensor& device) override {
    check([&](CudaFailure* f) { return api_.zero(backend_, &device, f); });
  }

  void repeat(uint64_t key, const std::function<void()>& work) override {
    int replayed = 0;
    check([&](CudaFailure* f) { return api_.beginRecording(backend_, key, &replayed, f); });
    if (replayed) return;
    try {
      work();
    } catch (...) {
      CudaFailure failure;  // what was thrown says more
      static_cast<void>(api_.endRecording(backend_, /*succeeded=*/0, &failure));
      throw;
    }
    check([&](CudaFailure* f) { return api_.endRecording(backend_, /*succeeded=*/1, f); });
  }

  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) override {
    return prepare(api_.prepareLinear, args);
  }
  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) override {
    return prepare(api_.prepareTrainedLinear, args);
  }
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) override {
    return prepare(api_.prepareConv, args);
  }

#define DIT_FORWARD(name, Args)                                                           \
  void name(const Args& args) override {                                                  \
    check([&](CudaFailure* f) { return api_.run(backend_, Operation::name, &args, f); }); \
  }
  DIT_OPERATIONS(DIT_FORWARD)
#undef DIT_FORWARD

 private:
  // A device that is lost stays lost, and nothing more is asked of it.
  template <typename Call>
  void check(const Call& call) const {
    if (!lost_.empty()) fail(ErrorCode::DeviceLost, lost_);
    CudaFailure failure;
    if (call(&failure) == 0) return;
    if (failure.code == ErrorCode::DeviceLost) lost_ = failure.message;
    fail(failure.code, failure.message);
  }

  template <typename Prepare, typename Args>
  std::unique_ptr<PreparedWeight> prepare(Prepare prepare, const Args& args) {
    PreparedWeight* weight = nullptr;
    check([&](CudaFailure* f) { return prepare(backend_, &args, &weight, f); });
    return std::unique_ptr<PreparedWeight>(weight);
  }

  const CudaApi& api_;
  std::string name_;
  void* backend_ = nullptr;
  mutable std::string lost_;  // the message of the error that lost the device
};

}  // namespace

bool isCudaDevice(const std::string& device) { return device.starts_with(kPrefix); }

std::unique_ptr<Backend> openCudaBackend(const std::string& device) {
  const int ordinal = ordinalOf(device);
  const CudaApi& api = openLibraryFor(device);
  int count = 0;
  const std::string problem = whyNone(api, &count);
  DIT_CHECK(problem.empty(), ErrorCode::Device, device, ": ", problem);
  DIT_CHECK(ordinal < count, ErrorCode::Device, "there is no ", device,
            ", the last is cuda:", count - 1);
  const std::string name = device == kEmulated ? device : detail::concat(kPrefix, ":", ordinal);
  return std::make_unique<CudaClient>(api, name, ordinal);
}

std::string cudaObstacle() {
  try {
    return obstacleOf(openLibraryFor(kPrefix));
  } catch (const Error& error) {
    return error.what();
  }
}

CudaDevices listCudaDevices() {
  CudaDevices found;
  try {
    const CudaApi& api = openLibraryFor(kPrefix);
    int count = 0;
    found.problem = whyNone(api, &count);
    for (int i = 0; found.problem.empty() && i < count; i++) {
      CudaDevice device;
      CudaFailure failure;
      if (api.describe(i, &device.info, &failure) != 0) device.problem = failure.message;
      found.devices.push_back(device);
    }
  } catch (const Error& error) {
    found.problem = error.what();
  }
  return found;
}

}  // namespace dit
