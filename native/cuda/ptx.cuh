#pragma once

// Instructions that CUDA C++ has no name for. This file and ptx_hopper.cuh hold all inline PTX of
// the project; the emulator (test/simt) has the same functions with bodies for the host, so that
// kernels run on both. Sections refer to the PTX ISA, version 9.0.

#ifdef DIT_SIMT
#include "ptx_host.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

namespace dit::cuda {

// The block's dynamic shared memory. Its size is what `launch` was given; it is aligned to 1024
// bytes, as the widest swizzle needs it.
__device__ __forceinline__ char* sharedMemory() {
  extern __shared__ __align__(1024) char ditShared[];
  return ditShared;
}

// The address of shared memory as instructions take it.
__device__ __forceinline__ uint32_t sharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// ---------------------------------------------------------------- kernels that follow one another

// Every thread of every kernel calls it once, before it touches global memory. Where the kernel was
// started early (Tuning::dependentLaunches), it waits here until those before it have ended and
// what they wrote is seen (9.7.13.13); all of them, as each waited in the same way. Then the next
// kernel may start early: its blocks come to this call on what this one leaves free of the device.
__device__ __forceinline__ void awaitPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---------------------------------------------------------------- numbers

// 2^x, within 2 units in the last place.
__device__ __forceinline__ float exp2Approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x, within 1 unit in the last place.
__device__ __forceinline__ float reciprocalApprox(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh(x) within 2^-10.987, relative: enough for what is rounded to bf16.
__device__ __forceinline__ float tanhApprox(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats as bf16, rounded to nearest even: `low` in the lower half.
__device__ __forceinline__ uint32_t packBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// A float as TF32, rounded to nearest, ties away from 0: a float whose last 13 bits are 0.
__device__ __forceinline__ uint32_t toTf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// ---------------------------------------------------------------- shared memory <-> registers

// Four 8 x 8 matrices of 16-bit numbers (9.7.15.5.15). Lane i gives the address of row i % 8 of
// matrix i / 8, aligned to 16 bytes; it gets of every matrix the two numbers in row i / 4, columns
// 2 (i % 4) and the next.
__device__ __forceinline__ void loadMatrix4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}
// The same of the transposed matrices.
__device__ __forceinline__ void loadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}
// Two matrices; lanes 0 to 15 give the addresses.
__device__ __forceinline__ void loadMatrix2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(sharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void loadMatrix2Transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(sharedAddress(row))
               : "memory");
}

// ---------------------------------------------------------------- matrix products of a warp

// d += a b with d [16, 8] fp32, a [16, 16] and b [16, 8] bf16 (9.7.15.5.8). With g = lane / 4 and
// q = lane % 4: a[0] holds row g, columns 2q and 2q + 1; a[1] row g + 8; a[2] and a[3] the same 8
// columns on; b[0] rows 2q and 2q + 1 of column g, b[1] 8 rows on; d[0], d[1] row g, columns 2q and
// 2q + 1, d[2], d[3] row g + 8.
__device__ __forceinline__ void mmaBf16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with 8 columns of a and 8 rows of b: the first halves of the fragments above.
__device__ __forceinline__ void mmaBf16K8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

// d += a b with d [16, 8] fp32, a [16, 8] and b [8, 8] TF32 (9.7.15.5.4). a[0] holds row g, column
// q; a[1] row g + 8; a[2] and a[3] the same 4 columns on; b[0] row q of column g, b[1] row q + 4;
// d as above.
__device__ __forceinline__ void mmaTf32(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---------------------------------------------------------------- copies that run by themselves

// 16 bytes from global to shared memory (9.7.9.25.3), past L1; zeros where not `valid`, and then
// nothing is read. Both addresses are aligned to 16 bytes.
__device__ __forceinline__ void copyAsync16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// 4 bytes, aligned to 4.
__device__ __forceinline__ void copyAsync4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(sharedAddress(shared)),
               "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}
// Ends a group of this thread's copies.
__device__ __forceinline__ void copyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits for all groups of this thread but the last `kPending`.
template <int kPending>
__device__ __forceinline__ void copyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace dit::cuda

#endif  // DIT_SIMT
