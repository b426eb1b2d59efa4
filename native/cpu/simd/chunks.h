#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

namespace dit::cpu::DIT_ISA {

constexpr int64_t kChunk = 16384;  // elements of a piece of work

// Calls use(begin, end) for pieces of [0, n), in parallel.
template <typename Use>
void forChunks(int64_t n, Use&& use) {
  parallelFor((n + kChunk - 1) / kChunk, [&](int64_t i) {
    const int64_t begin = i * kChunk;
    use(begin, n < begin + kChunk ? n : begin + kChunk);
  });
}

}  // namespace dit::cpu::DIT_ISA
