#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <ostream>

#include "core/error.h"

namespace dit {

enum class DType : uint8_t { F32, BF16, F16, F64, I64, I32, U8 };

size_t dtypeSize(DType dtype);
const char* dtypeName(DType dtype);

// The sizes of up to five dimensions, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i < 0 ? i + rank_ : i]; }
  // Number of elements; 1 for rank 0.
  int64_t count() const;
  bool operator==(const Shape& other) const;

  void append(int64_t size);

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape);

// A view: memory of a device that somebody else owns (an arena, a mapped file, a caller), with a
// type and a shape. Row-major; `rowStride` is the distance, in elements, between neighbours of
// the second-to-last dimension, larger than the last dimension where the view is a slice of
// columns.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::F32;
  Shape shape;
  int64_t rowStride = 0;

  Tensor() = default;
  Tensor(void* data, DType dtype, Shape shape)
      : data(data), dtype(dtype), shape(shape), rowStride(shape.rank() ? shape[-1] : 1) {}

  explicit operator bool() const { return data != nullptr; }
  bool contiguous() const { return shape.rank() == 0 || rowStride == shape[-1]; }
  int64_t count() const { return shape.count(); }
  size_t bytes() const { return static_cast<size_t>(count()) * dtypeSize(dtype); }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  // Rows [begin, begin + n) of the outermost dimension. Contiguous tensors only.
  Tensor slice(int64_t begin, int64_t n) const;
  // Columns [begin, begin + n) of the last dimension: the same memory, the same rowStride.
  Tensor columns(int64_t begin, int64_t n) const;
  // The same elements under another shape. Contiguous tensors only.
  Tensor reshape(Shape other) const;
};

// Static, as in rng.h. bfloat16 is the upper half of a float; rounding is to nearest, ties to even;
// NaN stays NaN.
static inline float bf16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return value;
}

static inline uint16_t floatToBf16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// IEEE half precision to float, exact.
float f16ToFloat(uint16_t bits);

}  // namespace dit
