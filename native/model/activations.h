#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/arena.h"
#include "model/dit_layers.h"

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

  ActivationStore() = default;
  // Lays its memory out in `arena`, which may only measure. R rows.
  ActivationStore(const CheckpointPolicy& policy, const DitConfig& config, DType act, int64_t rows,
                  Arena& arena);

  // The stream [R, T, C] F32 before a block, or after the last one (block = depth).
  Tensor tokens(int64_t block) const;

  // Where the forward of a block finds its input and leaves everything else, for `rows` rows.
  BlockActivations forward(int64_t block, int64_t rows);

  // What the forward of a block left, for its backward; `replay` runs a block's forward. Blocks are
  // asked for from the last to the first.
  BlockActivations backward(int64_t block, int64_t rows, const Replay& replay);

 private:
  int64_t segment(int64_t block) const { return block / every_; }

  int64_t depth_ = 0;
  int64_t every_ = 1;                    // blocks of a segment, whose activations live together
  std::vector<Tensor> inputs_;           // of every segment, and the last block's output
  std::vector<Tensor> between_;          // inputs of the blocks of a segment but the first
  std::vector<BlockActivations> slots_;  // of the blocks of a segment
  int64_t alive_ = -1;                   // the segment whose activations the slots hold
};

}  // namespace dit
