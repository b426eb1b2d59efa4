#pragma once

#include "cpu/simd/vec.h"
#include "ops/arguments.h"

namespace dit::cpu::DIT_ISA {

// The values of a row.
DIT_INLINE const float* vectorOf(const RowVector& vector, int64_t row) {
  return vector.table.as<float>() + vector.index.as<int32_t>()[row] * vector.table.rowStride;
}

}  // namespace dit::cpu::DIT_ISA
