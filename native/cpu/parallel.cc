#include "cpu/parallel.h"

#include <omp.h>

#include <cstdlib>
#include <memory>

#include "core/error.h"

namespace dit::cpu {

namespace {

constexpr size_t kAlignment = 64;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Scratch {
  std::unique_ptr<void, Free> memory;
  size_t bytes = 0;
};

}  // namespace

void setThreads(int threads) { omp_set_num_threads(threads > 0 ? threads : omp_get_num_procs()); }

int threads() { return omp_get_max_threads(); }

void* scratch(size_t bytes) {
  thread_local Scratch own;
  if (bytes > own.bytes) {
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    own.memory.reset();
    own.bytes = 0;
    own.memory.reset(std::aligned_alloc(kAlignment, rounded));
    DIT_CHECK(own.memory, ErrorCode::Oom, "cannot allocate ", rounded, " bytes of scratch memory");
    own.bytes = rounded;
  }
  return own.memory.get();
}

}  // namespace dit::cpu
