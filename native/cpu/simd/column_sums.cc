// sums[n] += sum of x over m: the gradient of a bias.
//
// Memory is what it takes, so the rows of a block are read together, one register of columns after
// the other, and each block's sums are written once.
#include "cpu/kernels.h"
#include "cpu/simd/token_sums.h"

namespace dit::cpu::DIT_ISA {

namespace {

template <typename In>
void run(const ColumnSumsArgs& args) {
  const int64_t m = args.x.shape[0], n = args.x.shape[1];
  const TokenBlocks blocks(1, m);
  float* ofBlocks =
      static_cast<float*>(scratch(static_cast<size_t>(blocks.count() * n) * sizeof(*ofBlocks)));
  blocks.forEach([&](int64_t block, int64_t, int64_t first, int64_t count) {
    const In* x = args.x.as<In>() + first * n;
    forLanes(n, [&](int64_t i, auto lanes) {
      Vec sum = load(x + i, lanes);
      for (int64_t t = 1; t < count; t++) sum += load(x + t * n + i, lanes);
      store(ofBlocks + block * n + i, sum, lanes);
    });
  });

  blocks.add(ofBlocks, n, Tensor(ofBlocks, DType::F32, {1, n}));
  float* sums = args.sums.as<float>();
  forLanes(n, [&](int64_t i, auto lanes) {
    store(sums + i, load(sums + i, lanes) + load(ofBlocks + i, lanes), lanes);
  });
}

}  // namespace

void columnSums(const ColumnSumsArgs& args) {
  withElements(args.x.dtype, [&]<typename In>(In*) { run<In>(args); });
}

}  // namespace dit::cpu::DIT_ISA
