#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace dit::cpu {

// Sets how many threads the work that this thread starts may use (OpenMP's pool, which oneDNN
// shares). 0: as many as the process may run on.
void setThreads(int threads);
int threads();

// The processor's threads are one budget, shared by all models and workers of the process: whoever
// runs an operation holds the turn, first come, first served. Two operations at once would only
// wait for each other's threads. The queue behind it is the one thing that all models share.
class Turn {
 public:
  // Waits, then sets how many threads the operation may use.
  explicit Turn(int threads);
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
};

// Calls fn(i) for i in [0, n), divided among the threads in contiguous runs. Which thread runs an
// index never changes what is computed for it. fn must not throw.
template <typename Fn>
void parallelFor(int64_t n, Fn&& fn) {
#pragma omp parallel for schedule(static) if (n > 1)
  for (int64_t i = 0; i < n; i++) fn(i);
}

// Calls fn(part, begin, end) for `parts` runs that cover [0, n): for work that keeps something
// from one index to the next. `parts` is at most `n` and `threads()`.
template <typename Fn>
void parallelRuns(int64_t n, int64_t parts, Fn&& fn) {
  parallelFor(parts, [&](int64_t part) { fn(part, part * n / parts, (part + 1) * n / parts); });
}

// Memory for intermediate results, aligned to 64 bytes and uninitialised: the calling thread's
// own, kept until the thread ends and grown as needed, so that operations need not allocate.
// Valid until this thread asks again. Throws Oom.
void* scratch(size_t bytes);

}  // namespace dit::cpu
