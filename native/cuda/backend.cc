#include "cuda/backend.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

// A tensor as rows of bytes: one row where it is dense, of any length. CUDA refuses a pitch of 2 GB
// and more, which the gradients of XL/2 would have, so one row is not copied as a matrix.
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
  context_.tuning = tuningOf(std::getenv("DIT_CUDA_TUNING"));
  // Kernels for others than Hopper do not wait for one another by themselves.
  DIT_CHECK(!context_.tuning.dependentLaunches || properties.major == 9, ErrorCode::Option,
            "DIT_CUDA_TUNING: launch=dependent needs a Hopper GPU (compute capability 9)");
  try {
    DIT_CUDA(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
    for (cudaEvent_t& event : replayed_) {
      DIT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    }
  } catch (const Error&) {
    end();
    throw;
  }
}

CudaBackend::~CudaBackend() { end(); }

// Errors were reported by what failed; here there is nobody left to tell.
void CudaBackend::end() noexcept {
  static_cast<void>(cudaSetDevice(context_.device));
  if (context_.stream) static_cast<void>(cudaStreamSynchronize(context_.stream));
  forgetRecordings();
  for (cudaEvent_t event : replayed_) {
    if (event) static_cast<void>(cudaEventDestroy(event));
  }
  if (context_.stream) static_cast<void>(cudaStreamDestroy(context_.stream));
}

// The current device is a matter of the thread, and the backend may be used by another one each
// time. Cheap where it is the current one already.
void CudaBackend::use() const { DIT_CUDA(cudaSetDevice(context_.device)); }

void CudaBackend::useOutsideOfRecordings(const char* call) const {
  DIT_CHECK(!underWay_, ErrorCode::Internal, call, " within work that is repeated");
  use();
}

std::string CudaBackend::name() const { return "cuda:" + std::to_string(context_.device); }

bool CudaBackend::supports(Precision) const { return true; }

// ---------------------------------------------------------------- memory

void* CudaBackend::allocate(size_t bytes) {
  useOutsideOfRecordings("allocate");
  return context_.allocate(bytes);
}

// cudaFree waits for the work under way.
void CudaBackend::free(void* memory) {
  ++*context_.frees;
  use();
  DIT_CUDA(cudaFree(memory));
}

size_t CudaBackend::freeBytes() const {
  use();
  size_t free = 0, total = 0;
  DIT_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

void CudaBackend::upload(const Tensor& device, const void* host) {
  useOutsideOfRecordings("upload");
  const Bytes bytes = bytesOf(device);
  context_.upload(device.data, bytes.pitch, host, bytes.width, bytes.height);
}

void CudaBackend::download(void* host, const Tensor& device) {
  useOutsideOfRecordings("download");
  const Bytes bytes = bytesOf(device);
  if (bytes.width == 0 || bytes.height == 0) return;
  if (bytes.height == 1) {
    DIT_CUDA(
        cudaMemcpyAsync(host, device.data, bytes.width, cudaMemcpyDeviceToHost, context_.stream));
  } else {
    DIT_CUDA(cudaMemcpy2DAsync(host, bytes.width, device.data, bytes.pitch, bytes.width,
                               bytes.height, cudaMemcpyDeviceToHost, context_.stream));
  }
  DIT_CUDA(cudaStreamSynchronize(context_.stream));
}

void CudaBackend::zero(const Tensor& device) {
  use();
  const Bytes bytes = bytesOf(device);
  if (bytes.width == 0 || bytes.height == 0) return;
  if (bytes.height == 1) {
    DIT_CUDA(cudaMemsetAsync(device.data, 0, bytes.width, context_.stream));
  } else {
    DIT_CUDA(
        cudaMemset2DAsync(device.data, bytes.pitch, 0, bytes.width, bytes.height, context_.stream));
  }
}

// ---------------------------------------------------------------- recordings

bool CudaBackend::beginRecording(uint64_t key) {
  useOutsideOfRecordings("repeat");
  if (const int64_t frees = *context_.frees; frees != freesOfRecordings_) {
    forgetRecordings();
    freesOfRecordings_ = frees;
  }
  const auto known = recordings_.find(key);
  if (known != recordings_.end() && known->second) {
    replay(known->second);
    return true;
  }
  // The first time it only runs, so that scratch memory has its size when it is recorded: nothing
  // can be allocated then.
  const bool capture = known != recordings_.end();
  if (capture) {
    DIT_CUDA(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal));
  }
  underWay_ = {key, capture};
  return false;
}

void CudaBackend::endRecording(bool succeeded) {
  DIT_CHECK(underWay_, ErrorCode::Internal, "endRecording without beginRecording");
  const UnderWay work = *std::exchange(underWay_, std::nullopt);
  if (!work.captured) {
    if (succeeded) recordings_.emplace(work.key, nullptr);
    return;
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaError_t status = cudaStreamEndCapture(context_.stream, &graph);
  if (succeeded && status == cudaSuccess) status = cudaGraphInstantiate(&executable, graph, 0);
  if (graph) static_cast<void>(cudaGraphDestroy(graph));
  if (!succeeded) {
    // What the work threw is what the caller is told; the capture it left behind may be an error,
    // too, which is cleared.
    static_cast<void>(cudaGetLastError());
    return;
  }
  if (status != cudaSuccess) {
    throwCudaError(status, "recording a CUDA graph", __FILE_NAME__, __LINE__);
  }
  recordings_[work.key] = executable;
  replay(executable);
}

// The host may be one replay ahead of the device, not more: a lane that is cancelled is seen in
// time.
void CudaBackend::replay(cudaGraphExec_t graph) {
  const cudaEvent_t event = replayed_[replays_ % 2];
  DIT_CUDA(cudaEventSynchronize(event));  // the replay before the last
  DIT_CUDA(cudaGraphLaunch(graph, context_.stream));
  DIT_CUDA(cudaEventRecord(event, context_.stream));
  replays_++;
}

void CudaBackend::forgetRecordings() noexcept {
  for (const auto& [key, graph] : recordings_) {
    if (graph) static_cast<void>(cudaGraphExecDestroy(graph));
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
