// The border of libdit_cuda.so (ops/cuda_api.h): what is thrown on this side becomes a status.
#include <cstring>

#include "cuda/backend.h"

namespace dit::cuda {

namespace {

// 0, or 1 with `failure` filled in.
template <typename Work>
int guarded(CudaFailure* failure, const Work& work) {
  const auto report = [&](ErrorCode code, const char* message) {
    failure->code = code;
    std::strncpy(failure->message, message, sizeof(failure->message) - 1);
    return 1;
  };
  try {
    work();
    return 0;
  } catch (const Error& error) {
    return report(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return report(ErrorCode::Oom, "the host's memory is exhausted");
  } catch (const std::exception& error) {
    return report(ErrorCode::Internal, error.what());
  }
}

CudaBackend& at(void* backend) { return *static_cast<CudaBackend*>(backend); }

void runOperation(CudaBackend& backend, Operation operation, const void* args) {
  switch (operation) {
#define DIT_RUN(name, Args)                        \
  case Operation::name:                            \
    backend.name(*static_cast<const Args*>(args)); \
    return;
    DIT_OPERATIONS(DIT_RUN)
#undef DIT_RUN
  }
  fail(ErrorCode::Internal, "libdit_cuda.so: no operation ", static_cast<int>(operation));
}

CudaApi makeApi() {
  CudaApi api = {};
  api.hash = DIT_OPS_HASH;
  // Without a driver both calls succeed, and the driver's version is 0.
  if (cudaDriverGetVersion(&api.driverVersion) != cudaSuccess) api.driverVersion = 0;
  if (cudaRuntimeGetVersion(&api.runtimeVersion) != cudaSuccess) api.runtimeVersion = 0;
  api.countDevices = [](int* count, CudaFailure* failure) {
    return guarded(failure, [&] { DIT_CUDA(cudaGetDeviceCount(count)); });
  };
  api.describe = [](int device, CudaDeviceInfo* info, CudaFailure* failure) {
    return guarded(failure, [&] { *info = describe(device); });
  };
  api.open = [](int device, void** backend, CudaFailure* failure) {
    return guarded(failure, [&] { *backend = new CudaBackend(device); });
  };
  api.close = [](void* backend) { delete &at(backend); };
  api.allocate = [](void* backend, size_t bytes, void** memory, CudaFailure* failure) {
    return guarded(failure, [&] { *memory = at(backend).allocate(bytes); });
  };
  api.free = [](void* backend, void* memory, CudaFailure* failure) {
    return guarded(failure, [&] { at(backend).free(memory); });
  };
  api.freeBytes = [](void* backend, size_t* bytes, CudaFailure* failure) {
    return guarded(failure, [&] { *bytes = at(backend).freeBytes(); });
  };
  api.upload = [](void* backend, const Tensor* device, const void* host, CudaFailure* failure) {
    return guarded(failure, [&] { at(backend).upload(*device, host); });
  };
  api.download = [](void* backend, void* host, const Tensor* device, CudaFailure* failure) {
    return guarded(failure, [&] { at(backend).download(host, *device); });
  };
  api.zero = [](void* backend, const Tensor* device, CudaFailure* failure) {
    return guarded(failure, [&] { at(backend).zero(*device); });
  };
  api.beginRecording = [](void* backend, uint64_t key, int* replayed, CudaFailure* failure) {
    return guarded(failure, [&] { *replayed = at(backend).beginRecording(key) ? 1 : 0; });
  };
  api.endRecording = [](void* backend, int succeeded, CudaFailure* failure) {
    return guarded(failure, [&] { at(backend).endRecording(succeeded != 0); });
  };
  api.prepareLinear = [](void* backend, const LinearWeightArgs* args, PreparedWeight** weight,
                         CudaFailure* failure) {
    return guarded(failure, [&] { *weight = at(backend).prepareLinear(*args).release(); });
  };
  api.prepareTrainedLinear = [](void* backend, const TrainedLinearArgs* args,
                                PreparedWeight** weight, CudaFailure* failure) {
    return guarded(failure, [&] { *weight = at(backend).prepareTrainedLinear(*args).release(); });
  };
  api.prepareConv = [](void* backend, const ConvWeightArgs* args, PreparedWeight** weight,
                       CudaFailure* failure) {
    return guarded(failure, [&] { *weight = at(backend).prepareConv(*args).release(); });
  };
  api.run = [](void* backend, Operation operation, const void* args, CudaFailure* failure) {
    return guarded(failure, [&] { runOperation(at(backend), operation, args); });
  };
  return api;
}

}  // namespace

}  // namespace dit::cuda

__attribute__((visibility("default"))) const dit::CudaApi* ditCudaApi() {
  static const dit::CudaApi api = dit::cuda::makeApi();
  return &api;
}
