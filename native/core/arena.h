#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace dit {

// Makes tensors one after another in one block of memory that the caller owns. Nothing is freed
// singly: a phase of work remembers `mark()` and returns to it with `release()`.
//
// A default-constructed arena only measures: its tensors have no data, and `peak()` says how large
// the block must be. Code that lays out its memory runs once to measure and once for real.
class Arena {
 public:
  static constexpr size_t kAlignment = 256;

  Arena() = default;
  Arena(void* base, size_t capacity)
      : base_(static_cast<char*>(base)), capacity_(capacity), measuring_(false) {}

  Tensor make(DType dtype, Shape shape) {
    const size_t bytes = static_cast<size_t>(shape.count()) * dtypeSize(dtype);
    const size_t begin = (used_ + kAlignment - 1) / kAlignment * kAlignment;
    DIT_CHECK(measuring_ || begin + bytes <= capacity_, ErrorCode::Internal, "arena of ", capacity_,
              " bytes is too small for ", shape, " at ", begin);
    used_ = begin + bytes;
    peak_ = used_ > peak_ ? used_ : peak_;
    return {measuring_ ? nullptr : base_ + begin, dtype, shape};
  }

  size_t mark() const { return used_; }
  void release(size_t mark) { used_ = mark; }
  size_t peak() const { return peak_; }
  bool measuring() const { return measuring_; }

 private:
  char* base_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
  size_t peak_ = 0;
  bool measuring_ = true;
};

}  // namespace dit
