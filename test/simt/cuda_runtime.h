#pragma once

// The emulator's stand-in for CUDA's header of this name: what the sources in native/cuda use of
// it, with the same names and meanings. Streams are in order by themselves: work is done when it is
// queued, or recorded while a stream is captured.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "math_functions.h"
#include "simt.h"

// ---------------------------------------------------------------- the language

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

using dim3 = ::dit::simt::Dim3;

namespace dit::simt {

inline Dim3 threadIndex() { return position().thread; }
inline Dim3 blockIndex() { return position().block; }

// A variable whose value is asked for whenever it is read.
template <Dim3 (*read)()>
struct Dimensions {
  template <unsigned Dim3::*member>
  struct Component {
    operator unsigned() const { return read().*member; }
  };
  Component<&Dim3::x> x;
  Component<&Dim3::y> y;
  Component<&Dim3::z> z;
};

}  // namespace dit::simt

inline const ::dit::simt::Dimensions<& ::dit::simt::threadIndex> threadIdx = {};
inline const ::dit::simt::Dimensions<& ::dit::simt::blockIndex> blockIdx = {};
inline const ::dit::simt::Dimensions<& ::dit::simt::blockDim> blockDim = {};
inline const ::dit::simt::Dimensions<& ::dit::simt::gridDim> gridDim = {};

// clang-format off
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) double2 { double x, y; };
// clang-format on
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Functions of the device's library. ::min and ::max take two of one type, as there.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

// ---------------------------------------------------------------- barriers, warps

inline void __syncthreads() {
  ::dit::simt::barrier(0, ::dit::simt::threadsOfBlock(), /*wait=*/true);
}

namespace dit::simt {

template <typename T>
struct Exchange {
  T value;
  int source;  // the lane whose value becomes the result
  T result;
};

template <typename T>
T exchange(unsigned mask, const char* name, T value, int source) {
  Exchange<T> mine = {value, source, {}};
  warpOperation(mask, name, &mine, [](void* const arguments[kMembers]) {
    for (int lane = 0; lane < kWarp; lane++) {
      auto* const to = static_cast<Exchange<T>*>(arguments[lane]);
      if (!to) continue;
      const auto* const from = static_cast<const Exchange<T>*>(arguments[to->source % kWarp]);
      if (!from) fault("a shuffle reads from a lane that is not in the mask");
      to->result = from->value;
    }
  });
  return mine.result;
}

}  // namespace dit::simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const int own = ::dit::simt::position().lane();
  return ::dit::simt::exchange(mask, "__shfl_sync", value, own / width * width + lane % width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return ::dit::simt::exchange(mask, "__shfl_xor_sync", value,
                               ::dit::simt::position().lane() ^ bits);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
  const int own = ::dit::simt::position().lane();
  const int from = own + static_cast<int>(distance);
  return ::dit::simt::exchange(mask, "__shfl_down_sync", value,
                               from < ::dit::simt::kWarp ? from : own);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  const int own = ::dit::simt::position().lane();
  const int from = own - static_cast<int>(distance);
  return ::dit::simt::exchange(mask, "__shfl_up_sync", value, from >= 0 ? from : own);
}

unsigned __ballot_sync(unsigned mask, int predicate);
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
void __syncwarp(unsigned mask = 0xffffffffu);

// ---------------------------------------------------------------- the runtime

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorECCUncorrectable = 214,
  cudaErrorDevicesUnavailable = 46,
  cudaErrorContained = 721,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
};

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem, sharedMemPerBlockOptin;
};

enum cudaLaunchAttributeID {
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  struct Stream* stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

using cudaStream_t = struct Stream*;
using cudaEvent_t = struct Event*;
using cudaGraph_t = struct Graph*;
using cudaGraphExec_t = struct Graph*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDisableTiming = 2;

const char* cudaGetErrorName(cudaError_t status);
const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, size_t bytes);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t toPitch, const void* from, size_t fromPitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(void* memory, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventDestroy(cudaEvent_t event);

namespace dit::simt {

// Runs the kernel now, or records it where the stream is captured.
cudaError_t launchKernel(const cudaLaunchConfig_t& config, const char* kernel,
                         std::function<void()> body);
const char* kernelName(const void* kernel);
// The most shared memory that a launch of this kernel may ask for.
void allowShared(const void* kernel, size_t bytes);
bool mayShare(const void* kernel, size_t bytes);

}  // namespace dit::simt

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  ::dit::simt::allowShared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
  return cudaSuccess;
}

// The arguments are copied, as CUDA does.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const void* const address = reinterpret_cast<const void*>(kernel);
  if (!::dit::simt::mayShare(address, config->dynamicSmemBytes)) return cudaErrorInvalidValue;
  std::tuple<std::remove_cv_t<Parameters>...> copies(std::forward<Arguments>(arguments)...);
  return ::dit::simt::launchKernel(*config, ::dit::simt::kernelName(address),
                                   [kernel, copies] { std::apply(kernel, copies); });
}
