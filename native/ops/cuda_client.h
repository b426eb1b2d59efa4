#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/cuda_api.h"

// The CUDA backend as the rest of the program sees it: libdit_cuda.so, which lies beside the binary
// that this code is in and is opened when a CUDA device is asked for.

namespace dit {

// "cuda", "cuda:1", or, for tests, "cuda:emulated".
bool isCudaDevice(const std::string& device);

// Throws Device with the reason when it is not to be had here.
std::unique_ptr<Backend> openCudaBackend(const std::string& device);

// What can be used, and why the rest cannot.
struct CudaDevices {
  std::vector<CudaDeviceInfo> devices;  // cuda:0, cuda:1, ..
  int driverVersion = 0, runtimeVersion = 0;
  std::string problem;  // empty where there are devices
};
CudaDevices listCudaDevices();

}  // namespace dit
