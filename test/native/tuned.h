#pragma once

#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "cuda/linear_candidates.h"
#include "harness.h"

// What may be tried out on a device (native/cuda/tuning.h): for tests that it changes no bit, and
// for timings of it.

namespace dit::test {

// For as long as it lives, devices are opened with these choices.
class Tuned {
 public:
  explicit Tuned(const std::string& choices) { setenv("DIT_CUDA_TUNING", choices.c_str(), 1); }
  ~Tuned() { unsetenv("DIT_CUDA_TUNING"); }
  Tuned(const Tuned&) = delete;
  Tuned& operator=(const Tuned&) = delete;
};

// Whether the device's library has linear_candidates.h's kernels. Another one refuses the choice.
inline bool hasCandidates(const std::string& device) {
#ifdef DIT_CUDA_CANDIDATES
  if (device.starts_with("cuda")) return true;
#endif
  return device == "cuda:emulated";
}

// Opens the device anew with each of the choices and calls time(test), whose benchmarks are
// recorded as of the case "<case>/<choice>"; first and last as it is without a choice,
// "/production" and
// "/again", so that a drift shows.
inline void benchVariants(Test& test, const std::vector<std::string>& choices,
                          const std::function<void(Test&)>& time) {
  const auto with = [&](const std::string& choice, const std::string& name) {
    std::printf("%s\n", name.c_str());
    const Tuned tuned(choice);
    Test other(test.name() + "/" + name, test.options());
    time(other);
  };
  with("", "production");
  for (const std::string& choice : choices) with(choice, choice);
  with("", "again");
}

}  // namespace dit::test
