#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/context.h"

namespace dit::cuda {

// A matrix as Hopper's copies see it: `rows` rows of `columns` numbers of bf16, `stride` numbers
// apart, read in boxes of boxRows x 64 numbers, so 128 bytes a row, which is the swizzle's width.
// What of a box lies outside reads as 0. The data is aligned to 16 bytes, the stride is a multiple
// of 8.
CUtensorMap matrixMap(const void* data, int64_t rows, int64_t columns, int64_t stride, int boxRows);

constexpr int kBoxColumns = 64;

}  // namespace dit::cuda
