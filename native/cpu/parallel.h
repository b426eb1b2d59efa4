#pragma once

#include <cstdint>

namespace dit::cpu {

// Sets how many threads the work that this thread starts may use (OpenMP's pool, which oneDNN
// shares). 0: as many as the process may run on.
void setThreads(int threads);
int threads();

// Calls fn(i) for i in [0, n), divided among the threads in contiguous runs. Which thread runs an
// index never changes what is computed for it.
template <typename Fn>
void parallelFor(int64_t n, Fn&& fn) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++) fn(i);
}

}  // namespace dit::cpu
