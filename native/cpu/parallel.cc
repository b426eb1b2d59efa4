#include "cpu/parallel.h"

#include <omp.h>

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>

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

// Tickets: std::mutex alone would let a thread that has just given up its turn take it again and
// again while another one wakes up.
struct TurnQueue {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t nextTicket = 0, served = 0;
};

TurnQueue& turnQueue() {
  static TurnQueue queue;
  return queue;
}

}  // namespace

Turn::Turn(int threads) {
  TurnQueue& queue = turnQueue();
  std::unique_lock lock(queue.mutex);
  const uint64_t ticket = queue.nextTicket++;
  queue.changed.wait(lock, [&] { return queue.served == ticket; });
  setThreads(threads);
}

Turn::~Turn() {
  TurnQueue& queue = turnQueue();
  const std::lock_guard lock(queue.mutex);
  queue.served++;
  queue.changed.notify_all();
}

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
