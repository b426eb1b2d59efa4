#include "cuda/context.h"

namespace dit::cuda {

namespace {

// Null where there is not so much. That is no error then: the device stays usable.
void* allocateIfFree(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  DIT_CUDA(status);
  return memory;
}

}  // namespace

void* Context::allocate(size_t bytes) const {
  if (void* const memory = allocateIfFree(bytes)) return memory;
  size_t free = 0, total = 0;
  DIT_CUDA(cudaMemGetInfo(&free, &total));
  fail(ErrorCode::Oom, "cuda:", device, ": cannot allocate ", bytes, " bytes of memory, ", free,
       " of ", total,
       " are free: use a smaller model or batch, or precision 'bf16', or end what else uses the "
       "device");
}

// What was handed out before stays allocated: a recording may refer to it, and the work under way.
// Sizes at least double, so all of it together is at most twice the largest. Where there is no
// memory for that, recordings are given up for it.
void* Context::scratch(size_t bytes) {
  if (!scratch_.empty() && scratch_.back().second >= bytes) return scratch_.back().first;
  size_t size = std::max(bytes, scratch_.empty() ? size_t{1} << 20 : 2 * scratch_.back().second);
  void* memory = allocateIfFree(size);
  if (!memory) {
    freeScratch();
    size = bytes;
    memory = allocate(size);
  }
  scratch_.emplace_back(memory, size);
  return memory;
}

// cudaFree waits for the work under way.
void Context::freeScratch() {
  ++*frees;
  for (const auto& [memory, size] : std::exchange(scratch_, {})) DIT_CUDA(cudaFree(memory));
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
