#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/arena.h"
#include "model/dit.h"

namespace dit {

// Gradient checkpointing (Chen et al. 2016): which activations the forward keeps, and which the
// backward makes again.
//   every = 0   none: all are kept
//   every = k   the input of every k-th block is kept; the blocks between are replayed, k at once
// Gradients are bit-identical under all of them: a replay does the same operations on the same
// inputs.
struct CheckpointPolicy {
  int64_t every = 0;
};

// Hands each block the memory for its activations, and the backward what the forward left there or
// a replay of it. The only place that knows the policy.
class ActivationStore {
 public:
  using Replay = std::function<void(int64_t block, const BlockActivations& activations)>;

  // Lays its memory out in `arena`, which may only measure.
  ActivationStore(const CheckpointPolicy& policy, const DitConfig& config, DType act, int64_t rows,
                  Arena& arena);

  // Where block number `block` of the forward finds its input and leaves everything else.
  // Block `depth` has an input only: the tokens that the last block leaves.
  BlockActivations forward(int64_t block) const;

  // The activations of `block`, for its backward; `replay` runs a block's forward. Blocks are asked
  // for from the last to the first.
  BlockActivations backward(int64_t block, const Replay& replay);

 private:
  CheckpointPolicy policy_;
  int64_t depth_;
  std::vector<Tensor> inputs_;           // of every block that has its own
  std::vector<BlockActivations> slots_;  // of the blocks whose activations are alive at once
  int64_t replayed_;                     // first block of the segment in the slots
};

}  // namespace dit
