#pragma once

#include <memory>
#include <string>

#include "ops/ops.h"

namespace dit {

struct BackendOptions {
  std::string device = "cpu";  // "cpu", "cuda", "cuda:1"; in tests "cuda:emulated"
  int threads = 0;             // of the process-wide budget; 0: as many as there are cores
};

// Opens a device by name. Throws Device with the reason when it is not to be had here.
std::unique_ptr<Backend> openBackend(const BackendOptions& options);

// How many rows to queue for a round of `rows`, at least as many: a device that records rounds
// (Backend::repeat) does so for a few sizes, the powers of two. Nobody reads what idle rows give.
int64_t rowsFor(const Backend& device, int64_t rows);

}  // namespace dit
