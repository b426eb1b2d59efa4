#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "core/tensor.h"

namespace dit {

// Makes tensors from both ends of one block of memory that the caller owns: for a network that
// turns one large activation into the next. The input lies at one end, the output and what is
// needed on the way at the other; then the input's end is cleared and the ends change roles. The
// block need never be larger than the largest sum of what is alive at one time.
//
// A default-constructed arena only measures: its tensors have no data, and `peak()` says how large
// the block must be. The code that lays out its memory runs once to measure and once for real.
class TwoEndedArena {
 public:
  static constexpr size_t kAlignment = 256;

  TwoEndedArena() = default;
  TwoEndedArena(void* base, size_t capacity)
      : base_(static_cast<char*>(base)), capacity_(capacity), measuring_(false) {}

  // `end` is 0 or 1.
  Tensor make(int end, DType dtype, const Shape& shape) {
    const size_t need = static_cast<size_t>(shape.count()) * dtypeSize(dtype);
    const size_t bytes = (need + kAlignment - 1) / kAlignment * kAlignment;
    const size_t begin = end == 0 ? used_[0] : capacity_ - used_[1] - bytes;
    used_[end] += bytes;
    peak_ = std::max(peak_, used_[0] + used_[1]);
    DIT_CHECK(measuring_ || peak_ <= capacity_, ErrorCode::Internal, "arena of ", capacity_,
              " bytes is too small for ", shape, ": ", used_[0], " and ", used_[1], " are in use");
    return {measuring_ ? nullptr : base_ + begin, dtype, shape};
  }

  size_t mark(int end) const { return used_[end]; }
  void release(int end, size_t mark) { used_[end] = mark; }
  size_t peak() const { return peak_; }
  bool measuring() const { return measuring_; }

 private:
  char* base_ = nullptr;
  size_t capacity_ = 0;
  std::array<size_t, 2> used_{};
  size_t peak_ = 0;
  bool measuring_ = true;
};

}  // namespace dit
