#include "model/activations.h"

#include <algorithm>

namespace dit {

ActivationStore::ActivationStore(const CheckpointPolicy& policy, const DitConfig& config, DType act,
                                 int64_t rows, Arena& arena)
    : depth_(config.depth),
      every_(policy.every > 0 ? std::min(policy.every, config.depth) : config.depth) {
  const int64_t R = rows, T = config.tokens(), C = config.hidden, M = config.mlpHidden;
  const int64_t segments = (depth_ + every_ - 1) / every_;
  for (int64_t i = 0; i <= segments; i++) inputs_.push_back(arena.make(DType::F32, {R, T, C}));
  for (int64_t i = 1; i < every_; i++) between_.push_back(arena.make(DType::F32, {R, T, C}));
  // Made again by the backward (LinearBackwardArgs::preActivation), so all blocks share it.
  const Tensor hidden = arena.make(act, {R, T, M});
  for (int64_t i = 0; i < every_; i++) {
    BlockActivations a;
    a.middle = arena.make(DType::F32, {R, T, C});
    a.normed1 = arena.make(act, {R, T, C});
    a.normed2 = arena.make(act, {R, T, C});
    a.qkv = arena.make(act, {R, T, 3 * C});
    a.attended = arena.make(act, {R, T, C});
    a.hidden = hidden;
    a.logSumExp = arena.make(DType::F32, {R, config.heads, T});
    a.branch1 = arena.make(act, {R, T, C});
    a.branch2 = arena.make(act, {R, T, C});
    a.preActivation = arena.make(act, {R, T, M});
    slots_.push_back(a);
  }
}

Tensor ActivationStore::tokens(int64_t block) const {
  if (block == depth_) return inputs_.back();
  const int64_t place = block % every_;
  return place == 0 ? inputs_[static_cast<size_t>(segment(block))]
                    : between_[static_cast<size_t>(place - 1)];
}

BlockActivations ActivationStore::forward(int64_t block, int64_t rows) {
  alive_ = segment(block);
  BlockActivations a = slots_[static_cast<size_t>(block % every_)];
  a.input = tokens(block);
  a.output = tokens(block + 1);
  for (Tensor* tensor :
       {&a.input, &a.middle, &a.output, &a.normed1, &a.normed2, &a.qkv, &a.attended, &a.hidden,
        &a.logSumExp, &a.branch1, &a.branch2, &a.preActivation}) {
    *tensor = tensor->slice(0, rows);
  }
  return a;
}

BlockActivations ActivationStore::backward(int64_t block, int64_t rows, const Replay& replay) {
  if (alive_ != segment(block)) {
    // The output of the segment's last block is written again too, with the bits it has.
    const int64_t begin = segment(block) * every_;
    for (int64_t i = begin; i < std::min(begin + every_, depth_); i++) replay(i, forward(i, rows));
  }
  return forward(block, rows);
}

}  // namespace dit
