#include "cuda/tuning.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string_view>

#include "core/error.h"
#include "cuda/linear_candidates.h"

namespace dit::cuda {

namespace {

int linearCandidate(std::string_view name) {
#ifdef DIT_CUDA_CANDIDATES
  std::string all;
  for (int i = 0; i < static_cast<int>(std::size(kLinearCandidates)); i++) {
    const std::string each = kLinearCandidates[i].name();
    if (name == each) return i;
    all += (i > 0 ? ", " : "") + each;
  }
  fail(ErrorCode::Option, "DIT_CUDA_TUNING: linear: expected one of ", all, "; got ", name);
#else
  fail(ErrorCode::Option, "DIT_CUDA_TUNING: linear=", name,
       ": this library was built without candidates (-DDIT_CUDA_CANDIDATES=ON)");
#endif
}

}  // namespace

Tuning tuningOf(const char* text) {
  Tuning tuning;
  std::string_view left = text ? text : "";
  while (!left.empty()) {
    const size_t comma = std::min(left.find(','), left.size());
    const std::string_view choice = left.substr(0, comma);
    left.remove_prefix(std::min(comma + 1, left.size()));
    constexpr std::string_view kLinear = "linear=";
    if (choice == "launch=dependent") {
      tuning.dependentLaunches = true;
    } else if (choice.starts_with(kLinear)) {
      tuning.linear = linearCandidate(choice.substr(kLinear.size()));
    } else {
      fail(ErrorCode::Option,
           "DIT_CUDA_TUNING: expected linear=<candidate> or launch=dependent, got ", choice);
    }
  }
  return tuning;
}

}  // namespace dit::cuda
