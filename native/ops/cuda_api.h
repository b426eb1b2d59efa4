#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

// The border between this program and libdit_cuda.so, which is opened only when a CUDA device is
// asked for. Both sides are built from the same headers: `hash` proves it. Status codes cross,
// never exceptions, since each side has its own C++ runtime.

namespace dit {

enum class Operation : int {
#define DIT_NAME(name, Args) name,
  DIT_OPERATIONS(DIT_NAME)
#undef DIT_NAME
};

// What went wrong in a call that did not return 0: an ErrorCode and its message.
struct CudaFailure {
  ErrorCode code = ErrorCode::Internal;
  char message[1000] = {};
};

struct CudaDeviceInfo {
  char name[256] = {};       // "NVIDIA H100 80GB HBM3"
  char arch[16] = {};        // which kernels run on it: "sm_80", "sm_90a"
  int major = 0, minor = 0;  // compute capability
  int64_t memoryBytes = 0;
};

struct CudaApi {
  const char* hash;   // of the headers in native/core and native/ops that both sides include
  int driverVersion;  // 13000 for CUDA 13.0; 0: no driver
  int runtimeVersion;

  // The following return 0, or fill in `failure`.
  int (*countDevices)(int* count, CudaFailure* failure);
  int (*describe)(int device, CudaDeviceInfo* info, CudaFailure* failure);
  int (*open)(int device, void** backend, CudaFailure* failure);
  void (*close)(void* backend);

  int (*allocate)(void* backend, size_t bytes, void** memory, CudaFailure* failure);
  int (*free)(void* backend, void* memory, CudaFailure* failure);
  int (*freeBytes)(void* backend, size_t* bytes, CudaFailure* failure);
  int (*upload)(void* backend, const Tensor* device, const void* host, CudaFailure* failure);
  int (*download)(void* backend, void* host, const Tensor* device, CudaFailure* failure);
  int (*zero)(void* backend, const Tensor* device, CudaFailure* failure);
  // See Backend::repeat. Where the work was not replayed it has to be run, and `endRecording` to be
  // called after it, with `succeeded` 0 when it has thrown.
  int (*beginRecording)(void* backend, uint64_t key, int* replayed, CudaFailure* failure);
  int (*endRecording)(void* backend, int succeeded, CudaFailure* failure);

  int (*prepareLinear)(void* backend, const LinearWeightArgs* args, PreparedWeight** weight,
                       CudaFailure* failure);
  int (*prepareTrainedLinear)(void* backend, const TrainedLinearArgs* args, PreparedWeight** weight,
                              CudaFailure* failure);
  int (*prepareConv)(void* backend, const ConvWeightArgs* args, PreparedWeight** weight,
                     CudaFailure* failure);
  // `args`: of the operation's own type.
  int (*run)(void* backend, Operation operation, const void* args, CudaFailure* failure);
};

}  // namespace dit

// The one function that libdit_cuda.so exports.
extern "C" const dit::CudaApi* ditCudaApi();
