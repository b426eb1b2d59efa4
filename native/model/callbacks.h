#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/tensor.h"

namespace dit {

// Called between layers: throws to stop the work (cancellation).
using Checkpoint = std::function<void()>;

// Called while weights are prepared: numbers done and in all.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;

// What happened on the way, for tests and for people who look inside: (name, values).
using Probe = std::function<void(const std::string& name, const Tensor& value)>;

}  // namespace dit
