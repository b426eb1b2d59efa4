#pragma once

// The functions of native/cuda/ptx.cuh, run by the emulator. What each does is written there.

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "core/tensor.h"
#include "simt.h"
#include "tensor_core.h"

namespace dit::simt {

// The generation whose kernels run (DIT_CUDA_ARCH).
const TensorCore& tensorCore();

}  // namespace dit::simt

namespace dit::cuda {

inline char* sharedMemory() { return simt::sharedMemory(); }

inline uint32_t sharedAddress(const void* shared) {
  // It begins after what the system keeps for itself, 1 KB.
  return static_cast<uint32_t>(static_cast<const char*>(shared) - simt::sharedMemory()) + 1024;
}

inline void awaitPrevious() { simt::awaitPrevious(); }

// ---------------------------------------------------------------- numbers

inline float exp2Approx(float x) { return simt::exp2Approximate(x); }
inline float reciprocalApprox(float x) { return simt::reciprocalApproximate(x); }
inline float tanhApprox(float x) { return simt::tanhApproximate(x); }
inline uint32_t packBf16(float low, float high) {
  return floatToBf16(low) | static_cast<uint32_t>(floatToBf16(high)) << 16;
}
inline uint32_t toTf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & ~0x1fffu : bits;
}

// ---------------------------------------------------------------- shared memory <-> registers

void loadMatrices(uint32_t* registers, int count, const void* row, bool transposed);

inline void loadMatrix4(uint32_t (&r)[4], const void* row) { loadMatrices(r, 4, row, false); }
inline void loadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  loadMatrices(r, 4, row, true);
}
inline void loadMatrix2(uint32_t (&r)[2], const void* row) { loadMatrices(r, 2, row, false); }
inline void loadMatrix2Transposed(uint32_t (&r)[2], const void* row) {
  loadMatrices(r, 2, row, true);
}

// ---------------------------------------------------------------- matrix products of a warp

void multiplyBf16(float (&d)[4], const uint32_t* a, const uint32_t* b, int k);
void mmaTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

inline void mmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiplyBf16(d, a, b, 16);
}
inline void mmaBf16K8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  multiplyBf16(d, a, &b, 8);
}

// ---------------------------------------------------------------- copies that run by themselves

void copyAsync(void* shared, const void* global, size_t bytes, bool valid);
void copyAsyncCommit();
void copyAsyncWaitFor(int pending);

inline void copyAsync16(void* shared, const void* global, bool valid) {
  copyAsync(shared, global, 16, valid);
}
inline void copyAsync4(void* shared, const void* global, bool valid) {
  copyAsync(shared, global, 4, valid);
}
template <int kPending>
void copyAsyncWait() {
  copyAsyncWaitFor(kPending);
}

}  // namespace dit::cuda
