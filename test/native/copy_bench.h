#pragma once

#include <cstring>

#include "cpu/parallel.h"
#include "harness.h"

namespace dit::test {

// The rate of memory: all threads copy 64 MB, more than the caches hold. What one pass over memory
// can reach, beside the operations that are one.
inline void benchCopy(Test& test) {
  constexpr int64_t kRuns = 64, kFloats = 1 << 18;
  const DeviceTensor from = test.output(DType::F32, {kRuns, kFloats});
  const DeviceTensor to = test.output(DType::F32, {kRuns, kFloats});
  cpu::setThreads(test.options().threads);
  test.bench("copy", 0, 2.0 * static_cast<double>(from.tensor().bytes()), [&] {
    cpu::parallelFor(kRuns, [&](int64_t i) {
      std::memcpy(to.tensor().as<float>() + i * kFloats, from.tensor().as<float>() + i * kFloats,
                  kFloats * sizeof(float));
    });
  });
}

}  // namespace dit::test
