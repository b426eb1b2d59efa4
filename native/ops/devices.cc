#include "ops/devices.h"

#include <unistd.h>

#include <fstream>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "ops/backend.h"

namespace dit {
namespace {

// The processor's name as Linux tells it; empty where it does not (as on ARM).
std::string processorName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "";
}

DeviceInfo cpuDevice() {
  DeviceInfo cpu;
  cpu.device = "cpu";
  cpu.name = processorName();
  cpu.isa = cpu::kernels().isa;
  const auto backend = openBackend({.device = "cpu"});
  for (const Precision precision : {Precision::F32, Precision::TF32, Precision::BF16}) {
    if (backend->supports(precision)) cpu.precisions.push_back(precision);
  }
  cpu.memoryBytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  cpu.threads = cpu::threads();
  return cpu;
}

}  // namespace

std::vector<DeviceInfo> listDevices() { return {cpuDevice()}; }

}  // namespace dit
