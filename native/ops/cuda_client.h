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

// Why no device can be looked for: there is no library or no driver; empty where one can. Does not
// start the driver.
std::string cudaObstacle();

// What can be used, and why the rest cannot. Starts the driver.
struct CudaDevice {
  CudaDeviceInfo info;
  std::string problem;  // why it cannot be used; empty where it can
};
struct CudaDevices {
  std::vector<CudaDevice> devices;  // cuda:0, cuda:1, ..
  std::string problem;              // why there are none; empty where there are some
};
CudaDevices listCudaDevices();

}  // namespace dit
