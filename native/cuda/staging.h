#pragma once

#include <cstddef>

#include "cuda/runtime.h"

namespace dit::cuda {

// Pinned host memory that small copies to the device go through. A copy from there is queued like
// a kernel; one from pageable memory may make CUDA wait for the stream first, or read the memory
// later than it may.
class Staging {
 public:
  // Copies of at most so many bytes.
  static constexpr size_t kMost = 256 << 10;

  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // Pinned memory that holds what `host` does, to be copied from by the next work on the stream.
  const void* hold(const void* host, size_t bytes, cudaStream_t stream);

 private:
  // One half is filled while the stream reads the other.
  static constexpr size_t kHalf = 4 * kMost;
  static constexpr size_t kAlignment = 256;

  char* memory_ = nullptr;    // both halves; from the first use on
  cudaEvent_t read_[2] = {};  // of a half: the stream has read it
  int half_ = 0;              // that is filled
  size_t used_ = 0;           // of it
};

}  // namespace dit::cuda
