// What stands beside the products of linear and its backward: linearFinish, geluBackward and
// gateBackward, one pass over memory each.
#include "cpu/kernels.h"
#include "cpu/simd/chunks.h"
#include "cpu/simd/row_vector.h"
#include "cpu/simd/simd_math.h"
#include "cpu/simd/token_sums.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

template <typename In, typename Out>
void finishWithGelu(const LinearFinishArgs& args) {
  const int64_t n = args.y.shape[2];
  parallelFor(args.y.shape[0] * args.y.shape[1], [&](int64_t token) {
    const In* kept = args.kept.as<In>() + token * n;
    Out* y = args.y.as<Out>() + token * args.y.rowStride;
    forLanes(n, [&](int64_t i, auto lanes) {
      store(y + i, gelu<kIsBf16<Out>>(load(kept + i, lanes)).value, lanes);
    });
  });
}

template <typename In, typename Out, typename Residual>
void finishWithResidual(const LinearFinishArgs& args) {
  const int64_t m = args.y.shape[1], n = args.y.shape[2];
  const bool shared = args.residual.shape[0] == 1;
  parallelFor(args.y.shape[0] * m, [&](int64_t token) {
    const In* kept = args.kept.as<In>() + token * n;
    const Residual* residual =
        args.residual.as<Residual>() + (shared ? token % m : token) * args.residual.rowStride;
    const float* gate = args.gate.table ? vectorOf(args.gate, token / m) : nullptr;
    Out* y = args.y.as<Out>() + token * args.y.rowStride;
    forLanes(n, [&](int64_t i, auto lanes) {
      Vec branch = load(kept + i, lanes);
      if (gate) branch *= load(gate + i, lanes);
      store(y + i, load(residual + i, lanes) + branch, lanes);
    });
  });
}

// dBranch of kCount tokens, and what they add to the sums of dY * branch.
template <int64_t kCount, typename Act>
DIT_INLINE void gateTokens(int64_t n, const float* dY, const Act* branch, const float* gate,
                           Act* dBranch, float* sums) {
  forLanes(n, [&](int64_t i, auto lanes) {
    const Vec factor = load(gate + i, lanes);
    Vec sum = load(sums + i, lanes);
    for (int64_t t = 0; t < kCount; t++) {
      const Vec gradient = load(dY + t * n + i, lanes);
      sum += gradient * load(branch + t * n + i, lanes);
      store(dBranch + t * n + i, gradient * factor, lanes);
    }
    store(sums + i, sum, lanes);
  });
}

template <typename Act>
void runGateBackward(const GateBackwardArgs& args) {
  constexpr int64_t kTogether = 4;
  const int64_t n = args.dY.shape[2];
  const TokenBlocks blocks(args.dY.shape[0], args.dY.shape[1]);
  float* sums =
      static_cast<float*>(scratch(static_cast<size_t>(blocks.count() * n) * sizeof(*sums)));
  blocks.forEach([&](int64_t block, int64_t row, int64_t first, int64_t count) {
    const float *dY = args.dY.as<float>() + first * n, *gate = vectorOf(args.gate, row);
    const Act* branch = args.branch.as<Act>() + first * n;
    Act* dBranch = args.dBranch.as<Act>() + first * n;
    float* own = sums + block * n;
    forLanes(n, [&](int64_t i, auto lanes) { store(own + i, Vec{}, lanes); });
    int64_t t = 0;
    for (; t + kTogether <= count; t += kTogether) {
      gateTokens<kTogether>(n, dY + t * n, branch + t * n, gate, dBranch + t * n, own);
    }
    for (; t < count; t++) gateTokens<1>(n, dY + t * n, branch + t * n, gate, dBranch + t * n, own);
  });
  blocks.add(sums, n, args.dGate);
}

}  // namespace

void linearFinish(const LinearFinishArgs& args) {
  withElements(args.kept.dtype, [&]<typename In>(In*) {
    withElements(args.y.dtype, [&]<typename Out>(Out*) {
      if (!args.residual) return finishWithGelu<In, Out>(args);
      withElements(args.residual.dtype, [&]<typename Residual>(Residual*) {
        finishWithResidual<In, Out, Residual>(args);
      });
    });
  });
}

void geluBackward(const GeluBackwardArgs& args) {
  withElements(args.pre.dtype, [&]<typename Act>(Act*) {
    forChunks(args.pre.count(), [&](int64_t begin, int64_t end) {
      const Act* pre = args.pre.as<Act>() + begin;
      Act *x = args.x.as<Act>() + begin, *dX = args.dX.as<Act>() + begin;
      forLanes(end - begin, [&](int64_t i, auto lanes) {
        const Gelu at = gelu<kIsBf16<Act>>(load(pre + i, lanes));
        store(x + i, at.value, lanes);
        store(dX + i, load(dX + i, lanes) * at.derivative, lanes);
      });
    });
  });
}

void gateBackward(const GateBackwardArgs& args) {
  withElements(args.branch.dtype, [&]<typename Act>(Act*) { runGateBackward<Act>(args); });
}

}  // namespace dit::cpu::DIT_ISA
