#pragma once

#include "cpu/simd/vec.h"

namespace dit::cpu::DIT_ISA {

// The two rows that come of swapping the off-diagonal blocks of kStep x kStep lanes.
template <int kStep>
struct Upper {
  static constexpr int of(int lane) { return lane / kStep % 2 ? kLanes + lane - kStep : lane; }
};
template <int kStep>
struct Lower {
  static constexpr int of(int lane) { return lane / kStep % 2 ? kLanes + lane : lane + kStep; }
};

template <int kStep>
DIT_INLINE void swapBlocks(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    if (i / kStep % 2) continue;
    const Vec upper = rows[i], lower = rows[i + kStep];
    rows[i] = shuffle<Upper<kStep>>(upper, lower);
    rows[i + kStep] = shuffle<Lower<kStep>>(upper, lower);
  }
}

// Transposes a square of 32-bit lanes (their bits are kept, whatever they mean).
DIT_INLINE void transpose(Vec (&rows)[kLanes]) {
  swapBlocks<1>(rows);
  swapBlocks<2>(rows);
  if constexpr (kLanes >= 8) swapBlocks<4>(rows);
  if constexpr (kLanes >= 16) swapBlocks<8>(rows);
}

// Transposes a tile of up to kLanes x kLanes lanes: rows load(i), i < rowsIn (0 beyond), come out
// as store(i, column i), i < rowsOut. Indices of registers must be constants, hence the unrolling.
template <typename Load, typename Store>
DIT_INLINE void transposeTile(int64_t rowsIn, int64_t rowsOut, Load&& load, Store&& store) {
  Vec rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) rows[i] = i < rowsIn ? load(i) : Vec{};
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    if (i < rowsOut) store(i, rows[i]);
  }
}

}  // namespace dit::cpu::DIT_ISA
