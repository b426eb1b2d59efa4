#include "cuda/runtime.h"

namespace dit::cuda {

namespace {

// After these every further call fails with the same error, for as long as the process lives.
bool sticky(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorContained:
    case cudaErrorDevicesUnavailable:
      return true;
    default:
      return false;
  }
}

}  // namespace

void throwCudaError(cudaError_t status, const char* call, const char* file, int line) {
  const ErrorCode code = status == cudaErrorMemoryAllocation ? ErrorCode::Oom
                         : sticky(status)                    ? ErrorCode::DeviceLost
                                                             : ErrorCode::Device;
  // What failed is told here; a later call must not find it again.
  const cudaError_t ignored = cudaGetLastError();
  static_cast<void>(ignored);
  const char* const advice =
      code == ErrorCode::DeviceLost
          ? "; the device cannot be used any more in this process: start it anew"
          : "";
  fail(code, "CUDA: ", cudaGetErrorName(status), ": ", cudaGetErrorString(status), " in ", call,
       " (", file, ":", line, ")", advice);
}

}  // namespace dit::cuda
