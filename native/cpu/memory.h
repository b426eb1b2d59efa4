#pragma once

#include <cstddef>
#include <utility>

namespace dit::cpu {

// Uninitialised host memory with an owner, aligned to a page. Blocks of 2 MiB and more ask for huge
// pages: weights are read from end to end in every product, and with 4 KiB pages reading 1 GiB
// costs 46 instead of 50 GB/s.
class Block {
 public:
  Block() = default;
  // Throws Oom. A block of 0 bytes has an address too.
  explicit Block(size_t bytes);
  Block(Block&& other) noexcept { swap(other); }
  Block& operator=(Block&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Block();

  void* data() const { return data_; }
  // At least what was asked for.
  size_t bytes() const { return bytes_; }

 private:
  void swap(Block& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Bytes of memory that the machine, and the control group of this process, could still give.
size_t availableMemory();

}  // namespace dit::cpu
