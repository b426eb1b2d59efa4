#pragma once

// The functions of native/cuda/ptx_hopper.cuh and ptx_wgmma.cuh, run by the emulator. What each
// does is written there. Copies and products are delivered as late as they may be: copies when
// nothing else can go on, products at the wait, and until then the registers of a product hold NaN.

#include <cuda.h>

#include <cstdint>

#include "ptx_host.h"

namespace dit::cuda {

void mbarrierInit(uint64_t* barrier, int arrivals);
inline void mbarrierInitFence() {}
void mbarrierArriveExpect(uint64_t* barrier, int bytes);
void mbarrierArrive(uint64_t* barrier);
void mbarrierArriveAt(uint64_t* barrier, int rank);
inline void fenceForProducts() {}
void mbarrierWait(uint64_t* barrier, int parity);

inline void prefetchTensorMap(const CUtensorMap*) {}

void loadBox(void* shared, const CUtensorMap* map, uint64_t* barrier, int rank, int x, int y, int z,
             int w, uint32_t blocks);
inline void loadBox2(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y) {
  loadBox(shared, map, barrier, 2, x, y, 0, 0, 1u << simt::clusterRank());
}
inline void loadBox2(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y,
                     uint16_t blocks) {
  loadBox(shared, map, barrier, 2, x, y, 0, 0, blocks);
}
inline void loadBox4(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y, int z,
                     int w) {
  loadBox(shared, map, barrier, 4, x, y, z, w, 1u << simt::clusterRank());
}

inline int clusterRank() { return simt::clusterRank(); }
inline void clusterSync() { simt::clusterBarrier(); }

enum class Swizzle : int { Bytes128 = 1, Bytes64 = 2, Bytes32 = 3 };

inline uint64_t matrixDescriptor(const void* shared, int leading, int stride, Swizzle swizzle) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(sharedAddress(shared)) | field(static_cast<uint32_t>(leading)) << 16 |
         field(static_cast<uint32_t>(stride)) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

struct WarpgroupProduct {
  float* d;  // of this thread, n / 2
  int n;
  bool tf32;           // else bf16
  bool fromRegisters;  // a
  uint64_t descriptorA, descriptorB;
  uint32_t a[4];
  const uint32_t* held;  // a's registers, where they belong to the product; else null
  bool transposeA, transposeB, accumulate;
};
void queueProduct(const WarpgroupProduct& product);
void wgmmaCommit();
void wgmmaWaitFor(int pending);
inline void wgmmaFence() {}

template <int kPending>
void wgmmaWait() {
  wgmmaWaitFor(kPending);
}
template <int kCount>
void wgmmaTouch(float (&)[kCount]) {}

template <int kTransposeA, int kTransposeB, int kCount>
void wgmmaAsync(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
  queueProduct({.d = d,
                .n = 2 * kCount,
                .tf32 = false,
                .fromRegisters = false,
                .descriptorA = a,
                .descriptorB = b,
                .a = {},
                .held = nullptr,
                .transposeA = kTransposeA != 0,
                .transposeB = kTransposeB != 0,
                .accumulate = accumulate});
}
template <int kTransposeB, int kCount>
void wgmmaAsync(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  queueProduct({.d = d,
                .n = 2 * kCount,
                .tf32 = false,
                .fromRegisters = true,
                .descriptorA = 0,
                .descriptorB = b,
                .a = {a[0], a[1], a[2], a[3]},
                .held = nullptr,
                .transposeA = false,
                .transposeB = kTransposeB != 0,
                .accumulate = accumulate});
}
template <int kCount>
void wgmmaTf32Async(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  queueProduct({.d = d,
                .n = 2 * kCount,
                .tf32 = true,
                .fromRegisters = true,
                .descriptorA = 0,
                .descriptorB = b,
                .a = {a[0], a[1], a[2], a[3]},
                .held = a,
                .transposeA = false,
                .transposeB = false,
                .accumulate = accumulate});
}

template <int kRegisters>
void shrinkRegisters() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void growRegisters() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}

}  // namespace dit::cuda
