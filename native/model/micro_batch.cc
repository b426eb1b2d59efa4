#include "model/micro_batch.h"

#include <algorithm>

#include "model/diffusion.h"

namespace dit {

MicroBatch::MicroBatch(const DitConfig& config, DType act, const CheckpointPolicy& policy,
                       int64_t rows, Arena& arena) {
  const int64_t R = rows, T = config.tokens(), C = config.hidden, p = config.patch;
  const Shape image{R, config.channels, config.height, config.width};
  const Shape output{R, config.outChannels(), config.height, config.width};
  const auto lowOf = [&](const Tensor& tensor) {
    return act == DType::F32 ? tensor : arena.make(act, tensor.shape);
  };
  for (Tensor* tensor : {&x, &deviation, &noise, &noised}) *tensor = arena.make(DType::F32, image);
  for (Tensor* tensor : {&signal, &sigma}) *tensor = arena.make(DType::F32, {R});
  lossSteps = arena.make(DType::U8, {R, static_cast<int64_t>(sizeof(LossStep))});
  for (Tensor* tensor : {&out, &dOut}) *tensor = arena.make(DType::F32, output);
  terms = arena.make(DType::F32, {R, 2});
  index = arena.make(DType::I32, {R});
  condition = layOutCondition(config, act, R, /*vectors=*/false, arena);
  modulation = arena.make(DType::F32, {R, config.modulationSize()});
  ends.patches = arena.make(act, {R, T, config.channels * p * p});
  ends.normed = arena.make(act, {R, T, C});
  ends.last = arena.make(DType::F32, {R, T, p * p * config.outChannels()});
  store = ActivationStore(policy, config, act, R, arena);

  dTokens = arena.make(DType::F32, {R, T, C});
  block.dBranch = arena.make(act, {R, T, C});
  block.dNormed = arena.make(act, {R, T, C});
  // The gradients of the MLP's hidden layer, of qkv and of the final layer are never alive
  // together.
  const size_t shared = arena.mark();
  size_t end = shared;
  const auto overlapping = [&](int64_t width) {
    arena.release(shared);
    const Tensor tensor = arena.make(act, {R, T, width});
    end = std::max(end, arena.mark());
    return tensor;
  };
  block.dHidden = overlapping(config.mlpHidden);
  block.dQkv = overlapping(3 * C);
  final.dLast = overlapping(p * p * config.outChannels());
  arena.release(end);
  block.dModulation = arena.make(DType::F32, {R, 6 * C});
  block.dModulationLow = lowOf(block.dModulation);
  final.dNormed = block.dNormed;
  final.dModulation = arena.make(DType::F32, {R, 2 * C});
  dFinalModulationLow = lowOf(final.dModulation);
  dTokensLow = act == DType::F32 ? dTokens : block.dBranch;
  dConditionAct = arena.make(DType::F32, {R, C});
  conditionScratch = arena.make(DType::F32, {R, C});
}

size_t microBatchBytes(const DitConfig& config, DType act, const CheckpointPolicy& policy,
                       int64_t rows) {
  Arena measure;
  MicroBatch(config, act, policy, rows, measure);
  return measure.peak();
}

int64_t rowsThatFit(const DitConfig& config, DType act, const CheckpointPolicy& policy,
                    int64_t most, size_t bytes) {
  int64_t fit = 0, tooMany = most + 1;
  while (tooMany - fit > 1) {
    const int64_t rows = fit + (tooMany - fit) / 2;
    (microBatchBytes(config, act, policy, rows) <= bytes ? fit : tooMany) = rows;
  }
  return fit;
}

}  // namespace dit
