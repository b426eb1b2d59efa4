#include "ops/backend.h"

#include <bit>

#include "cpu/backend.h"
#include "ops/cuda_client.h"

namespace dit {

std::unique_ptr<Backend> openBackend(const BackendOptions& options) {
  DIT_CHECK(options.threads >= 0, ErrorCode::Option, "threads must be 0 (all) or more, got ",
            options.threads);
  if (isCudaDevice(options.device)) return openCudaBackend(options.device);
  DIT_CHECK(options.device == "cpu", ErrorCode::Device, "there is no device \"", options.device,
            "\"; expected 'cpu', 'cuda' or such as 'cuda:1'");
  return std::make_unique<cpu::CpuBackend>(options.threads);
}

int64_t rowsFor(const Backend& device, int64_t rows) {
  if (!isCudaDevice(device.name())) return rows;
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
}

}  // namespace dit
