#pragma once

#include <cstddef>
#include <utility>

#include "cuda/runtime.h"

namespace dit::cuda {

// Device memory with an owner.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) { DIT_CUDA(cudaMalloc(&data_, bytes)); }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  // Waits for the work under way. Nobody is left to hear of an error.
  ~DeviceMemory() {
    if (data_) static_cast<void>(cudaFree(data_));
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace dit::cuda
