// Products with a weight in TF32 on Hopper: y = x W^T and dX = dY W, by gemm_sm90.cuh.
//
// wgmma takes TF32 along the sum's dimension only, and it cuts operands off where TF32 is to be
// rounded to nearest. So activations go through registers, which round them (Pipeline::read), and
// weights are rounded in memory. Those of prepareLinear are. A trained weight changes with every
// step and is copied to scratch memory for each product, transposed for dX: 8 N K bytes of traffic
// beside 2 rows N K operations, 3 to 4 % of the product's time at 16 384 rows and 390 TFLOP/s.
//
// A step of a tile of 128 x 192 is 32 of K, as many bytes as in bf16 and as many clocks, 768. In
// shared memory: both warpgroups read b, 2 x 24 KB, and their rows of a, 16 KB, by ldmatrix instead
// of the tensor cores: what bf16 reads there. Registers: 96 sums and 2 x 16 of a.
//
// dW = dY^T x has its sum across both operands, the rows. It would need transposed copies of both
// activations, 8 rows (N + K) bytes for 2 rows N K operations: with N = K = 1152 and 16 384 rows
// 0.10 ms for a product of 0.11 ms. linear_backward.cu computes it by mma.sync.
#include <type_traits>

#include "cuda/linear_sm90.cuh"

namespace dit::cuda::hopper {

namespace {

// The weight's values, rounded.
Matrix roundedWeight(Context& context, const LinearWeight& weight) {
  if (!weight.trained) return matrixOf(weight);
  const int64_t n = weight.n, k = weight.k, stride = alignedStride(k, DType::F32);
  void* const copy = context.scratch(static_cast<size_t>(n * stride) * sizeof(float));
  copyRows(context, Tensor(const_cast<void*>(weight.values), DType::F32, {n, k}), copy, DType::F32,
           /*toTf32=*/true);
  return {copy, n, k, stride};
}

}  // namespace

void linearTf32(Context& context, const LinearWeight& weight, const LinearArgs& args) {
  const Matrix w = roundedWeight(context, weight);
  withShape<float>(context, args.x.shape[0] * args.x.shape[1], weight.n,
                   [&]<typename Shape>(Shape) { linearBy<Shape, float>(context, w, args); });
}

bool inputGradientFits(const LinearWeight* weight, const LinearBackwardArgs& args) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1];
  return args.dX && weight && weight->precision == Precision::TF32 && rows >= kLeastRows &&
         readable(args.dY);
}

void inputGradient(Context& context, const LinearWeight& weight, const LinearBackwardArgs& args) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1], n = weight.n, k = weight.k;
  const int64_t stride = alignedStride(n, DType::F32);
  auto* const copy =
      static_cast<float*>(context.scratch(static_cast<size_t>(k * stride) * sizeof(float)));
  copyTransposed(context, static_cast<const float*>(weight.values), n, k, copy, stride);
  const Matrix dY = {args.dY.data, rows, n, n}, w = {copy, k, n, stride};
  withShape<float>(context, rows, k, [&]<typename Shape>(Shape) {
    const auto run = [&](const auto& epilogue) {
      launchGemm<Shape, false, false>(context, dY, w, {.m = rows, .n = k, .k = n},
                                      Whole<std::decay_t<decltype(epilogue)>>{epilogue});
    };
    if (args.preActivation) return run(GeluGradientEpilogue<float>(args));
    if (args.addToDx) return run(StoreEpilogue<float, true>(args.dX.as<float>(), k));
    run(StoreEpilogue<float, false>(args.dX.as<float>(), k));
  });
}

}  // namespace dit::cuda::hopper
