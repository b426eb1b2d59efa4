#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/context.h"

namespace dit::cuda {

// A matrix as Hopper's copies see it: `rows` rows of `columns` numbers, BF16 or F32, `stride`
// numbers apart, read in boxes of boxRows x 128 bytes, which is the swizzle's width. What of a box
// lies outside reads as 0. The data and the rows are aligned to 16 bytes.
CUtensorMap matrixMap(const void* data, DType type, int64_t rows, int64_t columns, int64_t stride,
                      int boxRows);

constexpr int kBoxColumns = 64;  // of bf16

// What attention has of each token, [R, T, heads d] in bf16 (of qkv, q, k and v count as heads),
// read in boxes of `boxTokens` tokens of one head and `columns` numbers: 64, swizzled by 128 bytes,
// or 16, swizzled by 32. Numbers beyond d read as 0, not as the next head's. d is a multiple of 8.
CUtensorMap headsMap(const void* data, int64_t rows, int64_t tokens, int64_t heads, int64_t d,
                     int boxTokens, int columns);

// Images [N, H, W, C] in bf16, read in boxes of 64 channels of boxWidth x boxHeight pixels of one
// image, swizzled by 128 bytes. Pixels outside of the image read as 0. C is a multiple of 8.
CUtensorMap imageMap(const void* data, int64_t images, int64_t height, int64_t width,
                     int64_t channels, int boxWidth, int boxHeight);

}  // namespace dit::cuda
