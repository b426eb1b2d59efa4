#pragma once

// What attention and its derivative share beside the products: rows of a head between global and
// shared memory, the sum over parts of a wide head, the choice of a kernel by the head's dimension.

#include <initializer_list>
#include <type_traits>

#include "core/error.h"
#include "cuda/attention_products.cuh"
#include "cuda/context.h"

namespace dit::cuda {

// How a kernel divides its work. A head of more than 128 numbers is split: kSplit warps have the
// same 16 tokens, and of every sum over the head's dimension, and of every result, kChunk numbers
// each. Dimensions between are filled up with zeros in shared memory.
template <typename ProductType, int kChunkColumns, int kSplitWarps, int kGroupRows, int kTileRows,
          int kStageCount>
struct AttentionShape {
  using Product = ProductType;
  using Element = typename Product::Element;
  static constexpr int kChunk = kChunkColumns;
  static constexpr int kSplit = kSplitWarps;
  static constexpr int kGroups = kGroupRows;   // of 16 own tokens
  static constexpr int kTile = kTileRows;      // tokens of a step
  static constexpr int kStages = kStageCount;  // of tiles: 2 while the next one is on its way

  static constexpr int kOwn = 16 * kGroups;
  static constexpr int kColumns = kChunk * kSplit;
  static constexpr int kThreads = 32 * kSplit * kGroups;
  static constexpr int kPitch = rowBytes(kColumns, sizeof(Element));
  static constexpr int kBlocks = kChunk / 8;  // of a result's columns, in a warp
  static constexpr int kTiles = kTile / 8;
  static constexpr int kOwnBytes = kOwn * kPitch;
  static constexpr int kTileBytes = kTile * kPitch;
  static constexpr int kExchangeBytes = kSplit > 1 ? kGroups* kSplit* kTile * 16 * 4 : 0;
};

// Calls work(shape) with Shape<Product, kChunk, kSplit> for heads of d numbers.
template <template <typename, int, int> typename Shape, typename Product, typename Work>
void withHeadDimension(int64_t d, const Work& work) {
  if (d == 72) return work(Shape<Product, 72, 1>{});
  if (d <= 32) return work(Shape<Product, 32, 1>{});
  if (d <= 64) return work(Shape<Product, 64, 1>{});
  if (d <= 96) return work(Shape<Product, 96, 1>{});
  if (d <= 128) return work(Shape<Product, 128, 1>{});
  DIT_CHECK(d <= 512, ErrorCode::Shape, "attention: heads of ", d, " numbers, at most 512 on CUDA");
  work(Shape<Product, 128, 4>{});
}

template <template <typename, int, int> typename Shape, typename Work>
void withAttentionShape(DType type, bool tf32, int64_t d, const Work& work) {
  if (type == DType::BF16) return withHeadDimension<Shape, Bf16Product>(d, work);
  if (tf32) return withHeadDimension<Shape, Tf32Product>(d, work);
  withHeadDimension<Shape, Fp32Product>(d, work);
}

// Whether rows of c numbers, of which d belong to a head, can be read 16 bytes at a time.
inline bool inVectors(int64_t c, int64_t d, int64_t size, std::initializer_list<const void*> rows) {
  bool aligned = c * size % 16 == 0 && d * size % 16 == 0;
  for (const void* at : rows) aligned &= reinterpret_cast<uintptr_t>(at) % 16 == 0;
  return aligned;
}

// The tokens of one head in a tensor.
template <typename T>
struct HeadRows {
  T* at;
  int stride;  // numbers from token to token
  int tokens;
  int d;
  bool vectors;  // 16 bytes at a time

  __device__ __forceinline__ int64_t offset(int token) const {
    return static_cast<int64_t>(token) * stride;
  }
};

// ---------------------------------------------------------------- global -> shared

// Tokens [first, first + kRows) as rows of a tile, zeros beyond the last token and the last number.
// The copies of all threads have to be waited for.
template <typename Shape, int kRows>
__device__ __forceinline__ void loadTile(char* tile,
                                         const HeadRows<const typename Shape::Element>& rows,
                                         int first) {
  using T = typename Shape::Element;
  constexpr int kPiece = 16 / sizeof(T), kPieces = Shape::kColumns / kPiece;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += Shape::kThreads) {
    const int row = i / kPieces, column = i % kPieces * kPiece;
    const bool inside = first + row < rows.tokens;
    const T* const from = rows.at + (inside ? rows.offset(first + row) : 0);
    char* const to = tile + row * Shape::kPitch + column * static_cast<int>(sizeof(T));
    if (rows.vectors) {
      const bool valid = inside && column < rows.d;
      copyAsync16(to, from + (valid ? column : 0), valid);
    } else {
      for (int j = 0; j < kPiece; j++) {
        const bool valid = inside && column + j < rows.d;
        reinterpret_cast<T*>(to)[j] = valid ? from[column + j] : fromFloat<T>(0.0f);
      }
    }
  }
}

// Rounds to TF32 what this thread has loaded, so that it is done once and not by every warp. After
// the wait for its copies, before the barrier that shows them to others.
template <typename Shape, int kRows>
__device__ __forceinline__ void roundTile(char* tile) {
  if constexpr (std::is_same_v<typename Shape::Product, Tf32Product>) {
    constexpr int kPieces = Shape::kColumns / 4;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += Shape::kThreads) {
      uint4* const at =
          reinterpret_cast<uint4*>(tile + i / kPieces * Shape::kPitch + i % kPieces * 16);
      const float4 x = *reinterpret_cast<const float4*>(at);
      *at = {toTf32(x.x), toTf32(x.y), toTf32(x.z), toTf32(x.w)};
    }
  }
}

// Numbers [first, first + kRows) of a vector of n, zeros beyond.
template <int kRows>
__device__ __forceinline__ void loadVector(float* to, const float* from, int first, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < kRows) {
    const bool valid = first + i < n;
    copyAsync4(to + i, from + (valid ? first + i : 0), valid);
  }
}

// ---------------------------------------------------------------- registers -> global

// A warp's results as tokens first .. first + 15, numbers firstColumn .. of a head: through
// `stage`, 16 rows of shared memory of the warp's own, so that global memory is written 16 bytes at
// a time.
template <typename Shape>
__device__ __forceinline__ void storeRows(const float (&x)[Shape::kBlocks][4],
                                          const float (&factor)[2], char* stage,
                                          const HeadRows<typename Shape::Element>& rows, int first,
                                          int firstColumn) {
  using T = typename Shape::Element;
  constexpr int kSize = sizeof(T), kPiece = 16 / kSize, kPieces = Shape::kChunk / kPiece;
  const Lane lane;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < Shape::kBlocks; n++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      char* const to = stage + (lane.g + 8 * half) * Shape::kPitch + (n * 8 + lane.q * 2) * kSize;
      const float low = x[n][2 * half] * factor[half], high = x[n][2 * half + 1] * factor[half];
      if constexpr (kSize == 2) {
        *reinterpret_cast<uint32_t*>(to) = packBf16(low, high);
      } else {
        *reinterpret_cast<float2*>(to) = make_float2(low, high);
      }
    }
  }
  __syncwarp();
  for (int i = lane.lane; i < 16 * kPieces; i += 32) {
    const int row = i / kPieces, column = i % kPieces * kPiece;
    if (first + row >= rows.tokens) break;
    const char* const from = stage + row * Shape::kPitch + column * kSize;
    T* const to = rows.at + rows.offset(first + row) + firstColumn + column;
    if (rows.vectors) {
      if (firstColumn + column < rows.d) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      }
    } else {
      for (int j = 0; j < kPiece && firstColumn + column + j < rows.d; j++) {
        to[j] = reinterpret_cast<const T*>(from)[j];
      }
    }
  }
}

// ---------------------------------------------------------------- among warps

// The sum of s of the warps that share 16 tokens, part after part, in all of them. All warps of the
// block call it.
template <typename Shape>
__device__ __forceinline__ void sumParts(float (&s)[Shape::kTiles][4], float* exchange, int group,
                                         int part) {
  if constexpr (Shape::kSplit > 1) {
    constexpr int kCount = Shape::kTiles * 4;
    float* const at = exchange + group * Shape::kSplit * kCount * 32 + Lane{}.lane;
#pragma unroll
    for (int i = 0; i < kCount; i++) at[(part * kCount + i) * 32] = s[i / 4][i % 4];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      float sum = at[i * 32];
#pragma unroll
      for (int j = 1; j < Shape::kSplit; j++) sum += at[(j * kCount + i) * 32];
      s[i / 4][i % 4] = sum;
    }
    __syncthreads();
  }
}

}  // namespace dit::cuda
