// Products with a weight in bf16 on Hopper, forward and backward (linear.h says which; those in
// TF32 are in linear_tf32_sm90.cu). With x [rows, K], W [N, K], all of them row-major, the three
// products differ in which dimension of their operands is contiguous:
//
//   y  = x W^T     both along K
//   dX = dY W      dY along the sum's dimension N, W across it
//   dW = dY^T x    both across the sum's dimension, the rows; in parts, where tiles of dW alone do
//                  not fill the device
#include <type_traits>

#include "cuda/linear_sm90.cuh"

namespace dit::cuda::hopper {

namespace {

// ---------------------------------------------------------------- the gradient of a weight

// Its sums over the rows are made in parts, and these added in their order.
struct Parts {
  StoreEpilogue<float, false> first;
  int64_t size;  // numbers of a part

  __device__ __forceinline__ StoreEpilogue<float, false> part(int split) const {
    StoreEpilogue<float, false> epilogue = first;
    epilogue.y += split * size;
    return epilogue;
  }
};

// Into how many parts: so many that the last wave of tiles is nearly full. A part costs its share
// of the reduction, which reads and writes what a step of a tile computes in a few clocks.
constexpr int chooseParts(int64_t tiles, int64_t steps, int multiprocessors) {
  constexpr int kMost = 8;
  constexpr double kCostOfPart = 0.02;  // of a tile's time
  int best = 1;
  double least = 0;
  for (int parts = 1; parts <= kMost && parts <= steps; parts++) {
    const int64_t waves = (tiles * parts + multiprocessors - 1) / multiprocessors;
    const double time = static_cast<double>(waves) / parts + kCostOfPart * parts;
    if (parts == 1 || time < least) {
      best = parts;
      least = time;
    }
  }
  return best;
}
static_assert(chooseParts(54, 256, 132) == 2 && chooseParts(216, 256, 132) == 3);

void addWeightGradient(Context& context, const LinearBackwardArgs& args, int64_t rows, int64_t n,
                       int64_t k) {
  const Matrix dY = {args.dY.data, rows, n, n}, x = {args.x.data, rows, k, k};
  float* const dWeight = args.dWeight.as<float>();
  withShape<Bf16>(context, n, k, [&]<typename Shape>(Shape) {
    Problem problem = {.m = n, .n = k, .k = rows};
    const int64_t tiles = problem.template pieces<Shape>() * Shape::kCluster;
    problem.splits = chooseParts(tiles, problem.template steps<Shape>(), context.multiprocessors);
    if (problem.splits == 1) {
      return launchGemm<Shape, true, true>(
          context, dY, x, problem,
          Whole<StoreEpilogue<float, true>>{StoreEpilogue<float, true>(dWeight, k)});
    }
    const int64_t size = n * k;
    auto* const parts = static_cast<float*>(
        context.scratch(static_cast<size_t>(size * problem.splits) * sizeof(float)));
    launchGemm<Shape, true, true>(context, dY, x, problem,
                                  Parts{StoreEpilogue<float, false>(parts, k), size});
    addParts(context, parts, problem.splits, size, dWeight);
  });
}

// dX = dY W, with what follows it.
void inputGradient(Context& context, const LinearWeight& weight, const LinearBackwardArgs& args,
                   int64_t rows) {
  const int64_t n = weight.n, k = weight.k;
  const Matrix dY = {args.dY.data, rows, n, n}, w = {weight.values, n, k, weight.stride};
  withShape<Bf16>(context, rows, k, [&]<typename Shape>(Shape) {
    const auto run = [&](const auto& epilogue) {
      launchGemm<Shape, false, true>(context, dY, w, {.m = rows, .n = k, .k = n},
                                     Whole<std::decay_t<decltype(epilogue)>>{epilogue});
    };
    if (args.preActivation) return run(GeluGradientEpilogue<Bf16>(args));
    if (args.dX.dtype == DType::BF16) return run(StoreEpilogue<Bf16, false>(args.dX.as<Bf16>(), k));
    if (args.addToDx) return run(StoreEpilogue<float, true>(args.dX.as<float>(), k));
    run(StoreEpilogue<float, false>(args.dX.as<float>(), k));
  });
}

}  // namespace

bool linearFits(const LinearWeight& weight, const LinearArgs& args) {
  if (weight.precision == Precision::F32 || weight.rows < kLeastRows || !readable(args.x)) {
    return false;
  }
  // A trained weight in TF32 is copied.
  return (weight.precision == Precision::TF32 && weight.trained) ||
         readable(weight.values, weight.stride, weight.type);
}

void linear(Context& context, const LinearWeight& weight, const LinearArgs& args) {
  if (weight.precision == Precision::TF32) return linearTf32(context, weight, args);
#ifdef DIT_CUDA_CANDIDATES
  if (context.tuning.linear >= 0 && args.y.dtype == DType::BF16) {
    return linearCandidate(context, weight, args);
  }
#endif
  const int64_t rows = args.x.shape[0] * args.x.shape[1];
  withShape<Bf16>(context, rows, weight.n, [&]<typename Shape>(Shape) {
    return args.y.dtype == DType::BF16 ? linearBy<Shape, Bf16>(context, matrixOf(weight), args)
                                       : linearBy<Shape, float>(context, matrixOf(weight), args);
  });
}

bool backwardFits(const LinearWeight* weight, const LinearBackwardArgs& args) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1];
  const bool weightFits =
      !args.dX || (weight && weight->precision == Precision::BF16 &&
                   readable(weight->values, weight->stride, DType::BF16) && weight->k % 4 == 0);
  return rows >= kLeastRows && args.x.dtype == DType::BF16 && readable(args.x) &&
         readable(args.dY) && weightFits;
}

// x comes of the first product, where it is made again.
void linearBackward(Context& context, const LinearWeight* weight, const LinearBackwardArgs& args) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1];
  if (args.dX) inputGradient(context, *weight, args, rows);
  addWeightGradient(context, args, rows, args.dY.shape[2], args.x.shape[2]);
}

}  // namespace dit::cuda::hopper
