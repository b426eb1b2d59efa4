#pragma once

#include <cuda_runtime.h>

#include "core/error.h"

// Every CUDA call stands in DIT_CUDA, which throws dit::Error with the call, file and line.

namespace dit::cuda {

// Throws: Oom for exhausted memory; DeviceLost for errors after which nothing works any more
// ("sticky": an illegal address, a failed launch, a lost device); else Device.
[[noreturn]] void throwCudaError(cudaError_t status, const char* call, const char* file, int line);

}  // namespace dit::cuda

#define DIT_CUDA(call)                                                        \
  do {                                                                        \
    const cudaError_t ditStatus = (call);                                     \
    if (ditStatus != cudaSuccess)                                             \
      ::dit::cuda::throwCudaError(ditStatus, #call, __FILE_NAME__, __LINE__); \
  } while (false)
