// `linear` by each of the candidates, for -DDIT_CUDA_CANDIDATES=ON and the emulator. The package's
// library has none of it.
#include <iterator>
#include <utility>

#include "cuda/linear_candidates.h"
#include "cuda/linear_sm90.cuh"

namespace dit::cuda::hopper {

namespace {

template <int kIndex>
void linearByCandidate(const Context& context, const LinearWeight& weight, const LinearArgs& args) {
  constexpr LinearCandidate kRow = kLinearCandidates[kIndex];
  using Shape =
      GemmShape<kRow.tileM, kRow.tileN, kRow.cluster, kRow.stages, kRow.group, kRow.turns>;
  static_assert(Shape::kStages == kRow.stages, "its name would not be true");
  linearBy<Shape, Bf16>(context, matrixOf(weight), args);
}

}  // namespace

void linearCandidate(const Context& context, const LinearWeight& weight, const LinearArgs& args) {
  const auto find = [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    ((context.tuning.linear == kIndices ? linearByCandidate<kIndices>(context, weight, args)
                                        : void()),
     ...);
  };
  find(std::make_integer_sequence<int, static_cast<int>(std::size(kLinearCandidates))>{});
}

}  // namespace dit::cuda::hopper
