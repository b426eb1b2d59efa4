#pragma once

#include <string>

#include "core/tensor.h"
#include "ops/arguments.h"

// The words that shape checks are written in.

namespace dit {

// Sets of types, one bit each.
constexpr unsigned bit(DType dtype) { return 1u << static_cast<unsigned>(dtype); }
inline constexpr unsigned kF32 = bit(DType::F32);
inline constexpr unsigned kF64 = bit(DType::F64);
inline constexpr unsigned kI32 = bit(DType::I32);
inline constexpr unsigned kU8 = bit(DType::U8);
inline constexpr unsigned kAct = kF32 | bit(DType::BF16);

// May rows be apart, as those of a slice of columns are?
enum class Rows { Dense, Strided };

// The checks of one operation. Each names the operation, the argument, what it must be and what
// it is: "attention: y must be F32 or BF16 [2, 16, 96], got F32 [2, 16, 95]".
class Checks {
 public:
  explicit Checks(const char* operation) : operation_(operation) {}

  void present(const char* name, const Tensor& tensor) const {
    DIT_CHECK(tensor, ErrorCode::Shape, operation_, ": ", name, " is missing");
  }

  void absent(const char* name, const Tensor& tensor, const char* when) const {
    DIT_CHECK(!tensor, ErrorCode::Shape, operation_, ": ", name, " must be absent ", when, ", got ",
              tensor.shape);
  }

  // A tensor of this rank and any size; `dims` names the dimensions.
  void rank(const char* name, const Tensor& tensor, unsigned types, int rank,
            const char* dims) const {
    present(name, tensor);
    DIT_CHECK(tensor.shape.rank() == rank && tensor.count() > 0 && has(types, tensor),
              ErrorCode::Shape, operation_, ": ", name, " must be ", typeNames(types), " ", dims,
              " and not empty, got ", dtypeName(tensor.dtype), " ", tensor.shape);
    dense(name, tensor);
  }

  void shape(const char* name, const Tensor& tensor, unsigned types, const Shape& expected,
             Rows rows = Rows::Dense) const {
    present(name, tensor);
    DIT_CHECK(tensor.shape == expected && has(types, tensor), ErrorCode::Shape, operation_, ": ",
              name, " must be ", typeNames(types), " ", expected, ", got ", dtypeName(tensor.dtype),
              " ", tensor.shape);
    if (rows == Rows::Dense) {
      dense(name, tensor);
    } else {
      DIT_CHECK(tensor.rowStride >= expected[-1], ErrorCode::Shape, operation_, ": rows of ", name,
                " overlap: ", expected, " with a distance of ", tensor.rowStride);
    }
  }

  // A vector of n values for each of `rows` rows.
  void rowVector(const char* name, const RowVector& vector, int64_t rows, int64_t n) const {
    present(name, vector.table);
    const Tensor& table = vector.table;
    DIT_CHECK(table.shape.rank() == 2 && table.shape[0] > 0, ErrorCode::Shape, operation_, ": ",
              name, " must be a table [E, ", n, "], got ", table.shape);
    shape(name, table, kF32, {table.shape[0], n}, Rows::Strided);
    shape("the index of a row's vector", vector.index, kI32, {rows});
  }

  template <typename... Parts>
  void that(bool condition, Parts&&... message) const {
    DIT_CHECK(condition, ErrorCode::Shape, operation_, ": ", message...);
  }

 private:
  static bool has(unsigned types, const Tensor& tensor) { return types & bit(tensor.dtype); }

  static std::string typeNames(unsigned types) {
    std::string names;
    for (DType dtype :
         {DType::F32, DType::BF16, DType::F16, DType::F64, DType::I64, DType::I32, DType::U8}) {
      if (types & bit(dtype))
        names += (names.empty() ? "" : " or ") + std::string(dtypeName(dtype));
    }
    return names;
  }

  void dense(const char* name, const Tensor& tensor) const {
    DIT_CHECK(tensor.contiguous(), ErrorCode::Shape, operation_, ": ", name,
              " must be contiguous, got rows of ", tensor.shape[-1], " at a distance of ",
              tensor.rowStride);
  }

  const char* operation_;
};

}  // namespace dit
