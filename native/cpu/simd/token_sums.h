#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

// Sums over the tokens of a row, for each channel: [R, T, N] to [R, N]. Blocks of a fixed number of
// tokens leave their own sums, which are then added in order. So the threads share even a single
// row, and the result does not depend on how many there are.

namespace dit::cpu::DIT_ISA {

class TokenBlocks {
 public:
  static constexpr int64_t kTokens = 32;

  TokenBlocks(int64_t rows, int64_t tokens)
      : rows_(rows), tokens_(tokens), blocks_((tokens + kTokens - 1) / kTokens) {}

  // All blocks, of all rows.
  int64_t count() const { return rows_ * blocks_; }

  // Calls use(block, row, first, n) for every block, in parallel: its tokens are [first, first + n)
  // of the R T there are.
  template <typename Use>
  void forEach(Use&& use) const {
    parallelFor(count(), [&](int64_t block) {
      const int64_t row = block / blocks_, begin = block % blocks_ * kTokens;
      const int64_t n = tokens_ < begin + kTokens ? tokens_ - begin : kTokens;
      use(block, row, row * tokens_ + begin, n);
    });
  }

  // sums[r] = the sum of the blocks' own sums, each `distance` floats after that of the block
  // before.
  void add(const float* ofBlocks, int64_t distance, const Tensor& sums) const {
    const int64_t n = sums.shape[1];
    parallelFor(rows_, [&](int64_t row) {
      const float* from = ofBlocks + row * blocks_ * distance;
      float* to = sums.as<float>() + row * sums.rowStride;
      forLanes(n, [&](int64_t i, auto lanes) {
        Vec sum = load(from + i, lanes);
        for (int64_t block = 1; block < blocks_; block++) {
          sum += load(from + block * distance + i, lanes);
        }
        store(to + i, sum, lanes);
      });
    });
  }

 private:
  int64_t rows_, tokens_, blocks_;
};

}  // namespace dit::cpu::DIT_ISA
