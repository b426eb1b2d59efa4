#pragma once

#include "cpu/simd/vec.h"

namespace dit::cpu::DIT_ISA {

// Swaps the off-diagonal blocks of kStep x kStep lanes of all pairs of rows kStep apart.
template <int kStep>
DIT_INLINE void swapBlocks(Vec (&rows)[kLanes]) {
  Ints low, high;  // lanes [0, kLanes) are the first row's, [kLanes, 2 kLanes) the second's
  for (int lane = 0; lane < kLanes; lane++) {
    const bool second = lane / kStep % 2;
    low[lane] = second ? kLanes + lane - kStep : lane;
    high[lane] = second ? kLanes + lane : lane + kStep;
  }
  for (int i = 0; i < kLanes; i++) {
    if (i / kStep % 2) continue;
    const Vec first = rows[i], second = rows[i + kStep];
    rows[i] = __builtin_shuffle(first, second, low);
    rows[i + kStep] = __builtin_shuffle(first, second, high);
  }
}

// Transposes a square of 32-bit lanes (their bits are kept, whatever they mean).
DIT_INLINE void transpose(Vec (&rows)[kLanes]) {
  swapBlocks<1>(rows);
  swapBlocks<2>(rows);
  if constexpr (kLanes >= 8) swapBlocks<4>(rows);
  if constexpr (kLanes >= 16) swapBlocks<8>(rows);
}

}  // namespace dit::cpu::DIT_ISA
