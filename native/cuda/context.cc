#include "cuda/context.h"

namespace dit::cuda {

// What was handed out before stays allocated: a recording may refer to it, and the work under way.
// Sizes at least double, so all of it together is at most twice the largest.
void* Context::scratch(size_t bytes) {
  if (scratch_.empty() || scratch_.back().second < bytes) {
    const size_t size =
        std::max(bytes, scratch_.empty() ? size_t{1} << 20 : 2 * scratch_.back().second);
    void* memory = nullptr;
    DIT_CUDA(cudaMalloc(&memory, size));
    scratch_.emplace_back(memory, size);
  }
  return scratch_.back().first;
}

Context::~Context() {
  // Nobody is left to hear of an error: the backend has waited for the stream and reported it.
  for (const auto& [memory, size] : scratch_) static_cast<void>(cudaFree(memory));
}

}  // namespace dit::cuda
