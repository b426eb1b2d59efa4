#include "cuda/backend.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

// A tensor as rows of bytes: one row where it is dense.
struct Bytes {
  size_t width, height, pitch;
};

Bytes bytesOf(const Tensor& tensor) {
  if (tensor.contiguous()) return {tensor.bytes(), 1, tensor.bytes()};
  const size_t size = dtypeSize(tensor.dtype);
  const int64_t n = tensor.shape[-1];
  return {static_cast<size_t>(n) * size, static_cast<size_t>(n > 0 ? tensor.count() / n : 0),
          static_cast<size_t>(tensor.rowStride) * size};
}

}  // namespace

const char* archName(Arch arch) { return arch == Arch::Sm90a ? "sm_90a" : "sm_80"; }

Arch archOf(int major, int minor) {
  DIT_CHECK(major >= 8, ErrorCode::Device, "compute capability ", major, ".", minor,
            " is older than 8.0 (Ampere): there are no kernels for it");
  const Arch best = major == 9 ? Arch::Sm90a : Arch::Sm80;
  const char* const chosen = std::getenv("DIT_CUDA_ARCH");
  if (!chosen || !*chosen) return best;
  for (const Arch arch : {Arch::Sm80, Arch::Sm90a}) {
    if (std::strcmp(chosen, archName(arch)) != 0) continue;
    DIT_CHECK(arch <= best, ErrorCode::Option, "DIT_CUDA_ARCH: this device cannot run ", chosen);
    return arch;
  }
  fail(ErrorCode::Option, "DIT_CUDA_ARCH: expected sm_80 or sm_90a, got ", chosen);
}

CudaDeviceInfo describe(int device) {
  cudaDeviceProp properties;
  DIT_CUDA(cudaGetDeviceProperties(&properties, device));
  CudaDeviceInfo info;
  std::snprintf(info.name, sizeof(info.name), "%s", properties.name);
  std::snprintf(info.arch, sizeof(info.arch), "%s",
                archName(archOf(properties.major, properties.minor)));
  info.major = properties.major;
  info.minor = properties.minor;
  info.memoryBytes = static_cast<int64_t>(properties.totalGlobalMem);
  return info;
}

CudaBackend::CudaBackend(int device) {
  int count = 0;
  DIT_CUDA(cudaGetDeviceCount(&count));
  DIT_CHECK(device >= 0 && device < count, ErrorCode::Device, "there is no CUDA device ", device,
            ", only ", count, " from 0");
  context_.device = device;
  use();
  cudaDeviceProp properties;
  DIT_CUDA(cudaGetDeviceProperties(&properties, device));
  context_.arch = archOf(properties.major, properties.minor);
  context_.multiprocessors = properties.multiProcessorCount;
  context_.sharedPerBlock = properties.sharedMemPerBlockOptin;
  DIT_CUDA(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
  for (cudaEvent_t& event : paces_) {
    DIT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
}

// Errors were reported by what failed; here there is nobody left to tell.
CudaBackend::~CudaBackend() {
  static_cast<void>(cudaSetDevice(context_.device));
  static_cast<void>(cudaStreamSynchronize(context_.stream));
  for (const auto& [key, recorded] : recordings_) {
    if (recorded.graph) static_cast<void>(cudaGraphExecDestroy(recorded.graph));
  }
  for (cudaEvent_t event : paces_) static_cast<void>(cudaEventDestroy(event));
  static_cast<void>(cudaStreamDestroy(context_.stream));
}

// The current device is a matter of the thread, and the backend may be used by another one each
// time.
void CudaBackend::use() const { DIT_CUDA(cudaSetDevice(context_.device)); }

std::string CudaBackend::name() const { return "cuda:" + std::to_string(context_.device); }

bool CudaBackend::supports(Precision) const { return true; }

// ---------------------------------------------------------------- memory

void* CudaBackend::allocate(size_t bytes) {
  use();
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    const cudaError_t told = cudaGetLastError();  // and cleared: the model stays usable
    static_cast<void>(told);
    fail(ErrorCode::Oom, name(), ": ", bytes >> 20, " MiB were asked for, ", freeBytes() >> 20,
         " MiB are free");
  }
  DIT_CUDA(status);
  return memory;
}

void CudaBackend::free(void* memory) {
  use();
  // A recording may refer to it. cudaFree waits for the work under way.
  forgetRecordings();
  DIT_CUDA(cudaFree(memory));
}

size_t CudaBackend::freeBytes() const {
  use();
  size_t free = 0, total = 0;
  DIT_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

// From pageable memory, which CUDA has read when the call returns.
void CudaBackend::upload(const Tensor& device, const void* host) {
  use();
  const Bytes bytes = bytesOf(device);
  if (bytes.width == 0 || bytes.height == 0) return;
  DIT_CUDA(cudaMemcpy2DAsync(device.data, bytes.pitch, host, bytes.width, bytes.width, bytes.height,
                             cudaMemcpyHostToDevice, context_.stream));
}

void CudaBackend::download(void* host, const Tensor& device) {
  use();
  const Bytes bytes = bytesOf(device);
  if (bytes.width == 0 || bytes.height == 0) return;
  DIT_CUDA(cudaMemcpy2DAsync(host, bytes.width, device.data, bytes.pitch, bytes.width, bytes.height,
                             cudaMemcpyDeviceToHost, context_.stream));
  DIT_CUDA(cudaStreamSynchronize(context_.stream));
}

void CudaBackend::zero(const Tensor& device) {
  use();
  const Bytes bytes = bytesOf(device);
  if (bytes.width == 0 || bytes.height == 0) return;
  DIT_CUDA(
      cudaMemset2DAsync(device.data, bytes.pitch, 0, bytes.width, bytes.height, context_.stream));
}

// ---------------------------------------------------------------- recordings

CudaBackend::Recording CudaBackend::beginRecording(uint64_t key) {
  use();
  const auto [at, isNew] = recordings_.try_emplace(key);
  if (at->second.graph) {
    pace();
    DIT_CUDA(cudaGraphLaunch(at->second.graph, context_.stream));
    return Recording::Replayed;
  }
  // The first time it only runs, so that scratch memory has its size when it is recorded.
  if (isNew) return Recording::Run;
  recording_ = key;
  DIT_CUDA(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal));
  return Recording::Record;
}

void CudaBackend::endRecording(bool keep) {
  use();
  cudaGraph_t graph = nullptr;
  const cudaError_t status = cudaStreamEndCapture(context_.stream, &graph);
  if (!keep) {
    // The work has thrown, and what it threw is what the caller is told.
    if (graph) DIT_CUDA(cudaGraphDestroy(graph));
    return;
  }
  DIT_CUDA(status);
  Recorded& recorded = recordings_[recording_];
  DIT_CUDA(cudaGraphInstantiate(&recorded.graph, graph, 0));
  DIT_CUDA(cudaGraphDestroy(graph));
  DIT_CUDA(cudaGraphLaunch(recorded.graph, context_.stream));
}

// The host may be one replay ahead of the device, not more: a cancelled lane is seen in time.
void CudaBackend::pace() {
  cudaEvent_t& event = paces_[replays_ % 2];
  if (replays_ >= 2) DIT_CUDA(cudaEventSynchronize(event));
  DIT_CUDA(cudaEventRecord(event, context_.stream));
  replays_++;
}

void CudaBackend::forgetRecordings() {
  for (const auto& [key, recorded] : recordings_) {
    if (recorded.graph) DIT_CUDA(cudaGraphExecDestroy(recorded.graph));
  }
  recordings_.clear();
}

// ---------------------------------------------------------------- operations

std::unique_ptr<PreparedWeight> CudaBackend::prepareLinear(const LinearWeightArgs& args) {
  use();
  return cuda::prepareLinear(context_, args);
}

std::unique_ptr<PreparedWeight> CudaBackend::prepareTrainedLinear(const TrainedLinearArgs& args) {
  use();
  return cuda::prepareTrainedLinear(context_, args);
}

std::unique_ptr<PreparedWeight> CudaBackend::prepareConv(const ConvWeightArgs& args) {
  use();
  return cuda::prepareConv(context_, args);
}

#define DIT_FORWARD(name, Args)              \
  void CudaBackend::name(const Args& args) { \
    use();                                   \
    cuda::name(context_, args);              \
  }
DIT_OPERATIONS(DIT_FORWARD)
#undef DIT_FORWARD

}  // namespace dit::cuda
