#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "cuda/runtime.h"
#include "cuda/staging.h"
#include "cuda/tuning.h"

namespace dit::cuda {

// Which kernels a device runs: sm_80's (mma.sync, cp.async) run on everything since Ampere,
// sm_90a's (TMA, wgmma) on Hopper only.
enum class Arch : uint8_t { Sm80, Sm90a };

// One open device: what kernels are launched with.
struct Context {
  int device = 0;
  Arch arch = Arch::Sm80;
  int multiprocessors = 1;
  size_t sharedPerBlock = 0;  // bytes that a block may ask for
  cudaStream_t stream = nullptr;
  // With dependentLaunches kernels start while those before them end, and wait in awaitPrevious for
  // what they read. Copies wait for all before them, and what follows them for their end.
  Tuning tuning;

  // Device memory, uninitialised, aligned to 256 bytes. Throws Oom, which names what was asked for
  // and what is free.
  void* allocate(size_t bytes) const;

  // Device memory for the length of one operation, uninitialised, aligned to 256 bytes. The next
  // operation's is the same memory. It stays where it is, since recorded operations refer to it,
  // unless memory is short: `frees` tells. Throws Oom as `allocate` does.
  void* scratch(size_t bytes);

  // Copies dense rows of `width` bytes from pageable memory, which has been read when this returns,
  // to rows that are `pitch` apart. Small copies are queued, larger ones wait for the stream.
  void upload(void* device, size_t pitch, const void* host, size_t width, size_t height);
  void upload(void* device, const void* host, size_t bytes) {
    upload(device, bytes, host, bytes, 1);
  }

  // How much memory was freed that recordings may refer to: they hold until it changes. Shared with
  // that memory, which may be freed last.
  const std::shared_ptr<std::atomic<int64_t>> frees = std::make_shared<std::atomic<int64_t>>(0);

  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context();

 private:
  void freeScratch();

  std::vector<std::pair<void*, size_t>> scratch_;  // the last is in use
  Staging staging_;
};

// Starts a kernel whose blocks come in clusters (Hopper), neighbours in x; shared: bytes of dynamic
// shared memory. The only way kernels are started, so that the same sources run where there is no
// <<<>>>.
template <typename... Parameters, typename... Arguments>
void launchClusters(const Context& context, int cluster, void (*kernel)(Parameters...), dim3 grid,
                    dim3 block, size_t shared, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shared > kWithoutAsking) {
    DIT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared)));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = context.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (context.tuning.dependentLaunches) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  DIT_CUDA(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

template <typename... Parameters, typename... Arguments>
void launch(const Context& context, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared, Arguments&&... arguments) {
  launchClusters(context, 1, kernel, grid, block, shared, std::forward<Arguments>(arguments)...);
}

inline int64_t divideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A grid for `work` independent pieces, `perBlock` to a block, for kernels that stride over the
// grid: no more blocks than fill the device a few times over.
inline dim3 gridFor(const Context& context, int64_t work, int64_t perBlock) {
  constexpr int64_t kWaves = 16;
  const int64_t blocks = std::min(divideUp(work, perBlock), kWaves * context.multiprocessors);
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace dit::cuda
