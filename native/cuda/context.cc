#include "cuda/context.h"

namespace dit::cuda {

void* Context::allocate(size_t bytes) const {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    // Told here, and cleared: the model stays usable.
    static_cast<void>(cudaGetLastError());
    size_t free = 0, total = 0;
    DIT_CUDA(cudaMemGetInfo(&free, &total));
    fail(ErrorCode::Oom, "cuda:", device, ": cannot allocate ", bytes, " bytes of memory, ", free,
         " of ", total,
         " are free: use a smaller model or batch, or precision 'bf16', or end what else uses the "
         "device");
  }
  DIT_CUDA(status);
  return memory;
}

// What was handed out before stays allocated: a recording may refer to it, and the work under way.
// Sizes at least double, so all of it together is at most twice the largest.
void* Context::scratch(size_t bytes) {
  if (scratch_.empty() || scratch_.back().second < bytes) {
    const size_t size =
        std::max(bytes, scratch_.empty() ? size_t{1} << 20 : 2 * scratch_.back().second);
    scratch_.emplace_back(allocate(size), size);
  }
  return scratch_.back().first;
}

void Context::upload(void* device, size_t pitch, const void* host, size_t width, size_t height) {
  if (width == 0 || height == 0) return;
  const bool small = width * height <= Staging::kMost;
  const void* const from = small ? staging_.hold(host, width * height, stream) : host;
  // One row may be longer than a pitch may be.
  if (height == 1) {
    DIT_CUDA(cudaMemcpyAsync(device, from, width, cudaMemcpyHostToDevice, stream));
  } else {
    DIT_CUDA(cudaMemcpy2DAsync(device, pitch, from, width, width, height, cudaMemcpyHostToDevice,
                               stream));
  }
  if (!small) DIT_CUDA(cudaStreamSynchronize(stream));
}

Context::~Context() {
  // Nobody is left to hear of an error: the backend has waited for the stream and reported it.
  for (const auto& [memory, size] : scratch_) static_cast<void>(cudaFree(memory));
}

}  // namespace dit::cuda
