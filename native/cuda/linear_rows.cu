// Matrices whose rows begin at multiples of 16 bytes, as the products read them: copies of weights,
// and of operands with an odd number of channels. One block per row, a thread per number.
#include "cuda/dispatch.h"
#include "cuda/linear.h"

namespace dit::cuda {

namespace {

constexpr int kThreads = 128;
constexpr size_t kScratchAlignment = 256;

template <typename From, typename To>
__global__ void __launch_bounds__(kThreads)
    copyRowsKernel(const From* from, int64_t fromStride, To* to, int64_t toStride, int64_t n,
                   bool roundToTf32) {
  awaitPrevious();
  const int64_t row = blockIdx.x;
  from += row * fromStride;
  to += row * toStride;
  for (int64_t i = static_cast<int>(threadIdx.x); i < toStride; i += kThreads) {
    float x = i < n ? toFloat(from[i]) : 0.0f;
    if (roundToTf32) x = __uint_as_float(toTf32(x));
    to[i] = fromFloat<To>(x);
  }
}

// Tiles of 32 x 32 go through shared memory, so that both sides are read and written along rows.
constexpr int kSide = 32, kPitch = kSide + 1;

__global__ void __launch_bounds__(kThreads)
    copyTransposedKernel(const float* from, int64_t n, int64_t k, float* to, int64_t stride) {
  awaitPrevious();
  float* const tile = reinterpret_cast<float*>(sharedMemory());  // [kSide, kPitch]
  const int64_t across = (k + kSide - 1) / kSide;
  const int64_t row = blockIdx.x / across * kSide, column = blockIdx.x % across * kSide;
  const int x = static_cast<int>(threadIdx.x) % kSide,
            first = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int y = first; y < kSide; y += kThreads / kSide) {
    const bool inside = row + y < n && column + x < k;
    tile[y * kPitch + x] = inside ? from[(row + y) * k + column + x] : 0.0f;
  }
  __syncthreads();
#pragma unroll
  for (int y = first; y < kSide; y += kThreads / kSide) {
    if (column + y < k && row + x < n) {
      to[(column + y) * stride + row + x] = __uint_as_float(toTf32(tile[x * kPitch + y]));
    }
  }
}

}  // namespace

void copyTransposed(const Context& context, const float* from, int64_t n, int64_t k, float* to,
                    int64_t stride) {
  launch(context, copyTransposedKernel,
         dim3(static_cast<unsigned>(divideUp(n, kSide) * divideUp(k, kSide))), dim3(kThreads),
         kSide * kPitch * sizeof(float), from, n, k, to, stride);
}

void copyRows(const Context& context, const Tensor& from, void* to, DType type, bool toTf32) {
  withType(from.dtype, [&]<typename From>(From) {
    withType(type, [&]<typename To>(To) {
      launch(context, copyRowsKernel<From, To>, dim3(static_cast<unsigned>(from.shape[0])),
             dim3(kThreads), 0, from.as<From>(), from.rowStride, static_cast<To*>(to),
             alignedStride(from.shape[1], type), from.shape[1], toTf32);
    });
  });
}

AlignedRows::AlignedRows(const void* data, DType type, int64_t rows, int64_t n)
    : matrix_(const_cast<void*>(data), type, {rows, n}) {
  const size_t row = static_cast<size_t>(n) * dtypeSize(type);
  if ((reinterpret_cast<uintptr_t>(data) | row) % 16 == 0) return;
  const size_t bytes = static_cast<size_t>(rows * alignedStride(n, type)) * dtypeSize(type);
  bytes_ = (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

char* AlignedRows::copyTo(const Context& context, char* room) {
  if (bytes_ == 0) return room;
  copyRows(context, matrix_, room, matrix_.dtype, /*toTf32=*/false);
  matrix_.data = room;
  matrix_.rowStride = alignedStride(matrix_.shape[1], matrix_.dtype);
  return room + bytes_;
}

}  // namespace dit::cuda
