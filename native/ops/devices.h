#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace dit {

// A device that openBackend can open on this machine.
struct DeviceInfo {
  std::string device;  // "cpu"
  std::string name;    // of the processor
  std::string isa;     // the instruction set that the kernels use
  std::vector<Precision> precisions;
  int64_t memoryBytes = 0;
  int threads = 0;  // that work may use at most
};

std::vector<DeviceInfo> listDevices();

}  // namespace dit
