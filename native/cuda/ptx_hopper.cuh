#pragma once

// The instructions of Hopper (sm_90a): barriers in shared memory, copies of boxes of tensors by the
// tensor memory accelerator (TMA), and products of warpgroups. As in ptx.cuh, the emulator has the
// same functions.

#include "cuda/ptx.cuh"
#include "cuda/ptx_wgmma.cuh"

#ifdef DIT_SIMT
#include "ptx_hopper_host.h"
#else

#include <cuda.h>

namespace dit::cuda {

// ---------------------------------------------------------------- barriers in shared memory

// A barrier counts arrivals and bytes of copies; when none is missing, its phase ends and the next
// begins (9.7.13.15). Phases alternate between parity 0 and 1, from 0.
__device__ __forceinline__ void mbarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
// After mbarrierInit, before copies may use the barriers. The block synchronises after it.
__device__ __forceinline__ void mbarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// One arrival, and `bytes` of copies to wait for in this phase.
__device__ __forceinline__ void mbarrierArriveExpect(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void mbarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedAddress(barrier)) : "memory");
}
// An arrival at the barrier that lies at the same place in another block of the cluster
// (9.7.13.15.13). It orders nothing for that block: what was read before it was read by products
// that have ended, and the other block only copies there. With .release.cluster it would come with
// a fence for all of the device (MEMBAR.GPU), hundreds of clocks for each step of a product.
__device__ __forceinline__ void mbarrierArriveAt(uint64_t* barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(sharedAddress(barrier)),
      "r"(rank)
      : "memory");
}
// Shared memory that this thread has written by itself, for products and copies to see: before the
// barrier that tells others of it (9.7.13.4, "proxies").
__device__ __forceinline__ void fenceForProducts() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Waits until the phase of this parity has ended. On a new barrier parity 1 counts as ended.
__device__ __forceinline__ void mbarrierWait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra wait;\n"
      "finished:\n}\n" ::"r"(sharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// ---------------------------------------------------------------- blocks of a cluster

__device__ __forceinline__ int clusterRank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// A barrier of all threads of the cluster that have not ended, all blocks' memory in order.
__device__ __forceinline__ void clusterSync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
}

// ---------------------------------------------------------------- copies of boxes

__device__ __forceinline__ void prefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The box of the map at these coordinates, innermost first, to shared memory (9.7.9.27.1.2); what
// lies outside of the tensor becomes 0. The barrier hears of its bytes, those included.
__device__ __forceinline__ void loadBox2(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                         int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(sharedAddress(shared)),
      "l"(map), "r"(x), "r"(y), "r"(sharedAddress(barrier))
      : "memory");
}
// The same to every block of the cluster whose bit is set, to the same place, and each block's
// barrier at the same place hears of it.
__device__ __forceinline__ void loadBox2(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                         int x, int y, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(sharedAddress(shared)),
      "l"(map), "r"(x), "r"(y), "r"(sharedAddress(barrier)), "h"(blocks)
      : "memory");
}
__device__ __forceinline__ void loadBox4(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                         int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(sharedAddress(shared)),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(sharedAddress(barrier))
      : "memory");
}

// ---------------------------------------------------------------- products of a warpgroup

// How rows of shared memory are permuted so that neither copies nor products meet bank conflicts:
// in pieces of 16 bytes, within rows of 128, 64 or 32 bytes (table in 5.5.6).
enum class Swizzle : int { Bytes128 = 1, Bytes64 = 2, Bytes32 = 3 };

// The matrix descriptor of wgmma (9.7.16.5.1). With rows of the swizzle's width and 8 rows an atom:
// operands with the products' dimension contiguous have an atom every `stride` bytes along rows;
// transposed ones one every `stride` bytes along the products' dimension, every `leading` along
// rows.
__device__ __forceinline__ uint64_t matrixDescriptor(const void* shared, int leading, int stride,
                                                     Swizzle swizzle) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(sharedAddress(shared)) | field(static_cast<uint32_t>(leading)) << 16 |
         field(static_cast<uint32_t>(stride)) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

// Before the first wgmma, and wherever registers of d or a were written since.
__device__ __forceinline__ void wgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for all groups but the last `kPending`.
template <int kPending>
__device__ __forceinline__ void wgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving reads of d before the wait.
template <int kCount>
__device__ __forceinline__ void wgmmaTouch(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// ---------------------------------------------------------------- registers

// Gives registers of this warpgroup back, or asks for more (9.7.19.5): kRegisters per thread, a
// multiple of 8.
template <int kRegisters>
__device__ __forceinline__ void shrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void growRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace dit::cuda

#endif  // DIT_SIMT
