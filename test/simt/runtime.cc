// The functions of the CUDA runtime over the emulator's memory and machine.
#include <cuda_runtime.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "symbols.h"

struct Graph {
  std::vector<std::function<cudaError_t()>> work;
};

struct Stream {
  std::unique_ptr<Graph> capturing;
  bool invalid = false;  // the capture: something was called that cannot be captured
};

struct Event {};

namespace dit::simt {

namespace {

// After an error of a kernel everything fails with it, as on a real device.
cudaError_t sticky = cudaSuccess;
// Of the last call that failed.
cudaError_t lastError = cudaSuccess;

cudaError_t failed(cudaError_t status) {
  if (status != cudaSuccess) lastError = status;
  return status;
}

// The stream that this thread captures. Meanwhile it may not allocate, free or wait.
thread_local Stream* captured = nullptr;

bool forbidden() {
  if (captured) captured->invalid = true;
  return captured != nullptr;
}

// Threads of the host may have a stream each; the device does one thing at a time.
std::recursive_mutex device;

// Does the work, or records it.
cudaError_t queue(cudaStream_t stream, std::function<cudaError_t()> work) {
  const std::lock_guard lock(device);
  if (sticky != cudaSuccess) return failed(sticky);
  if (stream && stream->capturing) {
    stream->capturing->work.push_back(std::move(work));
    return cudaSuccess;
  }
  return failed(work());
}

// To test what happens then: the launch fails whose number, counted from 1 from when it was set, is
// that of the environment variable DIT_SIMT_FAIL_LAUNCH.
bool launchShallFail() {
  static int64_t launches = 0;
  const char* const number = std::getenv("DIT_SIMT_FAIL_LAUNCH");
  launches = number ? launches + 1 : 0;
  return number && std::atoll(number) == launches;
}

std::unordered_map<const void*, size_t>& sharedLimits() {
  static std::unordered_map<const void*, size_t> limits;
  return limits;
}

constexpr size_t kSharedWithoutAsking = 48 << 10;
constexpr size_t kMostShared = 227 << 10;
constexpr size_t kMostThreads = 1024;

}  // namespace

cudaError_t launchKernel(const cudaLaunchConfig_t& config, const char* kernel,
                         std::function<void()> body) {
  const Dim3 grid = config.gridDim, block = config.blockDim;
  const size_t shared = config.dynamicSmemBytes;
  unsigned cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; i++) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) cluster = attribute.val.clusterDim.x;
  }
  if (grid.count() == 0 || block.count() == 0 || block.count() > kMostThreads || grid.y > 65535 ||
      grid.z > 65535 || shared > kMostShared || grid.x % cluster != 0) {
    return failed(cudaErrorInvalidConfiguration);
  }
  if (std::getenv("DIT_SIMT_TRACE")) {
    std::fprintf(stderr, "simt: launch %s, %zu blocks of %zu threads, %zu bytes shared\n", kernel,
                 grid.count(), block.count(), shared);
  }
  return queue(config.stream, [=, body = std::move(body)] {
    const bool succeeds =
        !launchShallFail() && run(kernel, grid, block, static_cast<int>(cluster), shared, body);
    if (!succeeds) sticky = cudaErrorLaunchFailure;
    return sticky;
  });
}

const char* kernelName(const void* kernel) {
  const std::lock_guard lock(device);
  static std::map<const void*, std::string> names;
  const auto known = names.find(kernel);
  if (known != names.end()) return known->second.c_str();
  return names.emplace(kernel, functionName(kernel)).first->second.c_str();
}

void allowShared(const void* kernel, size_t bytes) {
  const std::lock_guard lock(device);
  sharedLimits()[kernel] = bytes;
}

bool mayShare(const void* kernel, size_t bytes) {
  const std::lock_guard lock(device);
  const auto limit = sharedLimits().find(kernel);
  return bytes <= (limit == sharedLimits().end() ? kSharedWithoutAsking : limit->second);
}

}  // namespace dit::simt

using dit::simt::failed;
using dit::simt::sticky;

unsigned __ballot_sync(unsigned mask, int predicate) {
  struct Vote {
    bool yes;
    unsigned result;
  } mine = {predicate != 0, 0};
  dit::simt::warpOperation(mask, "a vote", &mine, [](void* const arguments[]) {
    unsigned result = 0;
    for (int lane = 0; lane < dit::simt::kWarp; lane++) {
      const auto* const vote = static_cast<const Vote*>(arguments[lane]);
      if (vote && vote->yes) result |= 1u << lane;
    }
    for (int lane = 0; lane < dit::simt::kWarp; lane++) {
      if (arguments[lane]) static_cast<Vote*>(arguments[lane])->result = result;
    }
  });
  return mine.result;
}

void __syncwarp(unsigned mask) {
  dit::simt::warpOperation(mask, "__syncwarp", nullptr, [](void* const[]) {});
}

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "an error";
  }
}

const char* cudaGetErrorString(cudaError_t status) {
  const std::string& fault = dit::simt::lastFault();
  if (status == cudaErrorLaunchFailure && !fault.empty()) return fault.c_str();
  return cudaGetErrorName(status);
}

cudaError_t cudaGetLastError() { return std::exchange(dit::simt::lastError, cudaSuccess); }

cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, failed(sticky); }

// Few multiprocessors, so that blocks of a persistent kernel have several tiles each.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return failed(cudaErrorInvalidDevice);
  *properties = {.name = "emulated",
                 .major = 9,
                 .minor = 0,
                 .multiProcessorCount = 3,
                 .totalGlobalMem = dit::simt::kDeviceBytes,
                 .sharedMemPerBlockOptin = dit::simt::kMostShared};
  return failed(sticky);
}

cudaError_t cudaSetDevice(int device) {
  return failed(device == 0 ? sticky : cudaErrorInvalidDevice);
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (dit::simt::forbidden()) return failed(cudaErrorStreamCaptureUnsupported);
  const std::lock_guard lock(dit::simt::device);
  if (sticky != cudaSuccess) return failed(sticky);
  *memory = dit::simt::allocate(bytes);
  return failed(*memory ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* memory) {
  if (dit::simt::forbidden()) return failed(cudaErrorStreamCaptureUnsupported);
  const std::lock_guard lock(dit::simt::device);
  if (memory && !dit::simt::release(memory)) {
    std::fprintf(stderr, "simt: memory was written to beyond its end, or is no allocation\n");
    sticky = cudaErrorIllegalAddress;
  }
  return failed(sticky);
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return failed(*memory ? sticky : cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return failed(sticky);
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = dit::simt::kDeviceBytes;
  *free = *total - dit::simt::allocatedBytes();
  return failed(sticky);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t toPitch, const void* from, size_t fromPitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  return dit::simt::queue(stream, [=] {
    for (size_t i = 0; i < height; i++) {
      std::memcpy(static_cast<char*>(to) + i * toPitch,
                  static_cast<const char*>(from) + i * fromPitch, width);
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemset2DAsync(memory, bytes, value, bytes, 1, stream);
}

cudaError_t cudaMemset2DAsync(void* memory, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  return dit::simt::queue(stream, [=] {
    for (size_t i = 0; i < height; i++) {
      std::memset(static_cast<char*>(memory) + i * pitch, value, width);
    }
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new Stream();
  return failed(sticky);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return failed(sticky);
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return failed(dit::simt::forbidden() ? cudaErrorStreamCaptureUnsupported : sticky);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->capturing) return failed(cudaErrorInvalidValue);
  stream->capturing = std::make_unique<Graph>();
  stream->invalid = false;
  dit::simt::captured = stream;
  return failed(sticky);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!stream->capturing) return failed(cudaErrorInvalidValue);
  dit::simt::captured = nullptr;
  const std::unique_ptr<Graph> recorded = std::move(stream->capturing);
  *graph = nullptr;
  if (stream->invalid) return failed(cudaErrorStreamCaptureInvalidated);
  *graph = new Graph(*recorded);
  return failed(sticky);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new Graph(*graph);
  return failed(sticky);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : executable->work) {
    const cudaError_t status = dit::simt::queue(stream, work);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return failed(sticky);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return cudaGraphDestroy(executable);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new Event();
  return failed(sticky);
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return failed(sticky); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return failed(sticky); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return failed(sticky);
}
