#include "ops/devices.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <iterator>

#include "core/rng.h"
#include "cpu/kernels.h"
#include "ops/backend.h"
#include "ops/cuda_client.h"

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

constexpr std::array kPrecisions = {Precision::F32, Precision::TF32, Precision::BF16};

}  // namespace

DeviceInfo cpuDevice() {
  DeviceInfo cpu;
  cpu.device = "cpu";
  cpu.name = processorName();
  cpu.kernels = cpu::kernels().isa;
  const auto backend = openBackend({.device = "cpu"});
  std::copy_if(kPrecisions.begin(), kPrecisions.end(), std::back_inserter(cpu.precisions),
               [&](Precision precision) { return backend->supports(precision); });
  cpu.memoryBytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return cpu;
}

std::vector<DeviceInfo> cudaDevices() {
  const CudaDevices found = listCudaDevices();
  if (!found.problem.empty()) return {{.device = "cuda", .problem = found.problem}};
  std::vector<DeviceInfo> devices;
  for (const auto& [info, problem] : found.devices) {
    DeviceInfo device;
    device.device = "cuda:" + std::to_string(devices.size());
    device.problem = problem;
    if (problem.empty()) {
      device.name = info.name;
      device.kernels = info.arch;
      device.computeCapability = std::to_string(info.major) + "." + std::to_string(info.minor);
      device.precisions.assign(kPrecisions.begin(), kPrecisions.end());
      device.memoryBytes = info.memoryBytes;
    }
    devices.push_back(std::move(device));
  }
  return devices;
}

void tryDevice(const std::string& device) {
  constexpr uint64_t kSeed = 1;
  constexpr int64_t kCount = 1024;
  constexpr float kTolerance = 1e-4f;  // of log and cos, in numbers up to about 5
  Ops ops(openBackend({.device = device}));
  const DeviceBuffer memory(ops.backend(), kCount * sizeof(float));
  const Tensor y(memory.data(), DType::F32, {kCount});
  ops.noise({.seed = kSeed, .y = y});
  std::vector<float> got(kCount), expected(kCount);
  ops.backend().download(got.data(), y);
  for (int64_t i = 0; i < kCount; i += 4) {
    normal4(kSeed, NoiseStream::Latent, 0, static_cast<uint64_t>(i / 4), expected.data() + i);
  }
  for (int64_t i = 0; i < kCount; i++) {
    DIT_CHECK(std::abs(got[i] - expected[i]) <= kTolerance, ErrorCode::Device, device,
              ": it calculates wrongly: expected ", expected[i], ", got ", got[i]);
  }
}

}  // namespace dit
