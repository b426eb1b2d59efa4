#include "cuda/staging.h"

#include <cstring>

namespace dit::cuda {

const void* Staging::hold(const void* host, size_t bytes, cudaStream_t stream) {
  DIT_CHECK(bytes <= kMost, ErrorCode::Internal, "CUDA: a copy of ", bytes, " bytes, at most ",
            kMost, " are staged");
  if (!memory_) {
    for (cudaEvent_t& event : read_) {
      if (!event) DIT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    }
    void* memory = nullptr;
    DIT_CUDA(cudaMallocHost(&memory, 2 * kHalf));
    memory_ = static_cast<char*>(memory);
  }
  if (used_ + bytes > kHalf) {
    DIT_CUDA(cudaEventRecord(read_[half_], stream));
    half_ = 1 - half_;
    used_ = 0;
    // Passed long ago, unless the stream is a whole half behind. The first time it was not recorded
    // yet, which counts as passed.
    DIT_CUDA(cudaEventSynchronize(read_[half_]));
  }
  char* const at = memory_ + static_cast<size_t>(half_) * kHalf + used_;
  std::memcpy(at, host, bytes);
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return at;
}

// Errors were reported by what failed; here there is nobody left to tell.
Staging::~Staging() {
  for (cudaEvent_t event : read_) {
    if (event) static_cast<void>(cudaEventDestroy(event));
  }
  if (memory_) static_cast<void>(cudaFreeHost(memory_));
}

}  // namespace dit::cuda
