#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "cuda/context.h"

namespace dit::cuda {

// Device memory with an owner, for what outlives an operation: weights.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const Context& context, size_t bytes)
      : data_(context.allocate(bytes)),
        bytes_(bytes),
        device_(context.device),
        frees_(context.frees) {}
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  // Waits for the work under way. Nobody is left to hear of an error. Whichever thread this is, it
  // makes no context on another device.
  ~DeviceMemory() {
    if (!data_) return;
    ++*frees_;
    static_cast<void>(cudaSetDevice(device_));
    static_cast<void>(cudaFree(data_));
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(device_, other.device_);
    std::swap(frees_, other.frees_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  int device_ = 0;
  std::shared_ptr<std::atomic<int64_t>> frees_;
};

}  // namespace dit::cuda
