#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace dit {

// A device of this machine, or why it cannot be used.
struct DeviceInfo {
  std::string device;   // "cpu", "cuda:0"; "cuda" where there is none
  std::string problem;  // why it cannot be used; empty where it can
  std::string name;     // of the processor
  // Which kernels it uses. The CPU's: "generic", "avx2", "avx512", "avx512bf16"; a GPU's: "sm_80",
  // "sm_90a".
  std::string kernels;
  std::string computeCapability;  // of a GPU, "9.0"
  std::vector<Precision> precisions;
  int64_t memoryBytes = 0;
};

DeviceInfo cpuDevice();

// The GPUs, or one entry that says why there are none. Starts NVIDIA's driver, which may hang or
// end the process where it is damaged; `cudaObstacle` (cuda_client.h) does not.
std::vector<DeviceInfo> cudaDevices();

// Opens the device and compares what one small operation gives with what it must be. Throws Device
// with the reason when it cannot be used.
void tryDevice(const std::string& device);

}  // namespace dit
