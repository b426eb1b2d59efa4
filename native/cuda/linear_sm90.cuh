#pragma once

#include "cuda/gemm_sm90.cuh"
#include "cuda/linear.h"

namespace dit::cuda::hopper {

// The width of a tile for c [m, n]: the one whose waves of tiles take the least time. Wide ones
// reach more of the peak, since they read less for what they compute (the shares are estimates);
// narrow ones fill the device when there are few rows, as with a batch of 1. The bits of a result
// do not depend on it (gemm_sm90.cuh).
constexpr int tileWidth(int64_t m, int64_t n, int multiprocessors) {
  constexpr int kRows = 128;  // of a tile
  struct Width {
    int columns;
    double share;  // of the peak
  };
  int best = 0;
  double least = 0;
  for (const Width width : {Width{192, 1.0}, Width{128, 0.9}, Width{64, 0.6}}) {
    const int64_t tiles = (m + kRows - 1) / kRows * ((n + width.columns - 1) / width.columns);
    const int64_t waves = (tiles + multiprocessors - 1) / multiprocessors;
    const double time = static_cast<double>(waves * width.columns) / width.share;
    if (best == 0 || time < least) {
      best = width.columns;
      least = time;
    }
  }
  return best;
}
static_assert(tileWidth(16384, 1152, 132) == 192 && tileWidth(16384, 4608, 132) == 192 &&
              tileWidth(512, 1152, 132) == 64 && tileWidth(16384, 32, 132) == 64);

template <typename T, int kWidth, int kCluster>
using Tiles = GemmShape<128, kWidth, kCluster, 8, 1, false, T>;

// Calls work with a shape for operands of T. Narrow tiles are for few rows, where clusters find no
// tiles below one another.
template <typename T, typename Work>
void withShape(const Context& context, int64_t m, int64_t n, const Work& work) {
  const bool clusters = m > 512 && context.multiprocessors > 1;
  switch (tileWidth(m, n, context.multiprocessors)) {
    case 192:
      return clusters ? work(Tiles<T, 192, 2>{}) : work(Tiles<T, 192, 1>{});
    case 128:
      return clusters ? work(Tiles<T, 128, 2>{}) : work(Tiles<T, 128, 1>{});
    default:
      return work(Tiles<T, 64, 1>{});
  }
}

// A product of fewer rows is bound by reading the weight, for which tiles of 128 rows use too few
// multiprocessors. What decides is for how many the weight was made, not how many there are: these
// kernels need not round as those of linear.cu do.
constexpr int64_t kLeastRows = 64;

// Whether TMA can read rows that begin `stride` numbers apart.
inline bool readable(const void* data, int64_t stride, DType type) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<size_t>(stride) * dtypeSize(type)) % 16 ==
         0;
}
inline bool readable(const Tensor& t) { return readable(t.data, t.shape[-1], t.dtype); }

// The weight where it lies.
inline Matrix matrixOf(const LinearWeight& weight) {
  return {weight.values, weight.n, weight.k, weight.stride};
}

// y = x W^T with what follows it, by tiles of this shape. y is of type Out.
template <typename Shape, typename Out>
void linearBy(const Context& context, const Matrix& w, const LinearArgs& args) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1], n = w.rows, k = w.columns;
  const Matrix x = {args.x.data, rows, k, k};
  using Act = typename Shape::Element;
  const auto run = [&]<Epilogue kKind>() {
    launchGemm<Shape, false, false>(
        context, x, w, {.m = rows, .n = n, .k = k},
        Whole<ForwardEpilogue<kKind, Out, Act>>{ForwardEpilogue<kKind, Out, Act>(args)});
  };
  switch (args.epilogue) {
    case Epilogue::Bias:
      return run.template operator()<Epilogue::Bias>();
    case Epilogue::BiasGelu:
      return run.template operator()<Epilogue::BiasGelu>();
    case Epilogue::BiasResidual:
      return run.template operator()<Epilogue::BiasResidual>();
  }
}

// In TF32 (linear_tf32_sm90.cu).
void linearTf32(Context& context, const LinearWeight& weight, const LinearArgs& args);

}  // namespace dit::cuda::hopper
