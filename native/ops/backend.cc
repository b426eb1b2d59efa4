#include "ops/backend.h"

#include "cpu/backend.h"

namespace dit {

std::unique_ptr<Backend> openBackend(const BackendOptions& options) {
  DIT_CHECK(options.threads >= 0, ErrorCode::Option, "threads must be 0 (all) or more, got ",
            options.threads);
  DIT_CHECK(options.device == "cpu", ErrorCode::Device, "there is no device \"", options.device,
            "\" here; this build has \"cpu\"");
  return std::make_unique<cpu::CpuBackend>(options.threads);
}

}  // namespace dit
