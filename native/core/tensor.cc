#include "core/tensor.h"

#include <cmath>

namespace dit {

size_t dtypeSize(DType dtype) {
  switch (dtype) {
    case DType::F64:
    case DType::I64:
      return 8;
    case DType::F32:
    case DType::I32:
      return 4;
    case DType::BF16:
    case DType::F16:
      return 2;
    case DType::U8:
      return 1;
  }
  fail(ErrorCode::Internal, "unknown dtype ", static_cast<int>(dtype));
}

const char* dtypeName(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return "F32";
    case DType::BF16:
      return "BF16";
    case DType::F16:
      return "F16";
    case DType::F64:
      return "F64";
    case DType::I64:
      return "I64";
    case DType::I32:
      return "I32";
    case DType::U8:
      return "U8";
  }
  return "?";
}

Shape::Shape(std::initializer_list<int64_t> dims) {
  for (int64_t size : dims) append(size);
}

void Shape::append(int64_t size) {
  DIT_CHECK(rank_ < kMaxRank, ErrorCode::Shape, "a tensor has at most ", kMaxRank, " dimensions");
  DIT_CHECK(size >= 0, ErrorCode::Shape, "a dimension cannot be negative, got ", size);
  dims_[rank_++] = size;
}

int64_t Shape::count() const {
  int64_t n = 1;
  for (int i = 0; i < rank_; i++) n *= dims_[i];
  return n;
}

bool Shape::operator==(const Shape& other) const {
  if (rank_ != other.rank_) return false;
  for (int i = 0; i < rank_; i++) {
    if (dims_[i] != other.dims_[i]) return false;
  }
  return true;
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int i = 0; i < shape.rank(); i++) out << (i ? ", " : "") << shape[i];
  return out << ']';
}

Tensor Tensor::slice(int64_t begin, int64_t n) const {
  DIT_CHECK(contiguous() && shape.rank() >= 1, ErrorCode::Internal, "slice of a view of columns");
  DIT_CHECK(begin >= 0 && n >= 0 && begin + n <= shape[0], ErrorCode::Internal, "slice [", begin,
            ", ", begin + n, ") of ", shape);
  Shape sliced{n};
  int64_t inner = 1;
  for (int i = 1; i < shape.rank(); i++) {
    sliced.append(shape[i]);
    inner *= shape[i];
  }
  return {static_cast<char*>(data) + begin * inner * static_cast<int64_t>(dtypeSize(dtype)), dtype,
          sliced};
}

Tensor Tensor::columns(int64_t begin, int64_t n) const {
  DIT_CHECK(shape.rank() >= 1 && begin >= 0 && n >= 0 && begin + n <= shape[-1],
            ErrorCode::Internal, "columns [", begin, ", ", begin + n, ") of ", shape);
  Shape narrow;
  for (int i = 0; i + 1 < shape.rank(); i++) narrow.append(shape[i]);
  narrow.append(n);
  Tensor view(static_cast<char*>(data) + begin * static_cast<int64_t>(dtypeSize(dtype)), dtype,
              narrow);
  view.rowStride = rowStride;
  return view;
}

Tensor Tensor::reshape(Shape other) const {
  DIT_CHECK(contiguous(), ErrorCode::Internal, "reshape of a view of columns");
  DIT_CHECK(other.count() == count(), ErrorCode::Internal, "reshape of ", shape, " to ", other);
  return {data, dtype, other};
}

float f16ToFloat(uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1f;
  const int mantissa = bits & 0x3ff;
  float magnitude;
  if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else if (exponent == 31) {
    magnitude = mantissa ? NAN : INFINITY;
  } else {
    magnitude = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return (bits & 0x8000) ? -magnitude : magnitude;
}

}  // namespace dit
