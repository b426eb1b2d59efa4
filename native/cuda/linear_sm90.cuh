#pragma once

#include "cuda/gemm_sm90.cuh"
#include "cuda/linear.h"

namespace dit::cuda::hopper {

// y = x W^T with what follows it, in bf16, by tiles of this shape. y is of type Out.
template <typename Shape, typename Out>
void linearBy(const Context& context, const LinearWeight& weight, const LinearArgs& args) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1], n = weight.n, k = weight.k;
  const Matrix x = {args.x.data, rows, k, k}, w = {weight.values, n, k, weight.stride};
  const auto run = [&]<Epilogue kKind>() {
    launchGemm<Shape, false, false>(
        context, x, w, {.m = rows, .n = n, .k = k},
        Whole<ForwardEpilogue<kKind, Out, Bf16>>{ForwardEpilogue<kKind, Out, Bf16>(args)});
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

}  // namespace dit::cuda::hopper
