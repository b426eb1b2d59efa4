#pragma once

#include <memory>
#include <string>
#include <utility>

#include "ops/ops.h"

namespace dit::test {

// A backend that hands everything on to another one: the base of those that look at or change
// single operations on the way. So that they see each, nothing is recorded (Backend::repeat).
class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  bool supports(Precision precision) const override { return inner_->supports(precision); }
  void* allocate(size_t bytes) override { return inner_->allocate(bytes); }
  void free(void* memory) override { inner_->free(memory); }
  size_t freeBytes() const override { return inner_->freeBytes(); }
  void upload(const Tensor& device, const void* host) override { inner_->upload(device, host); }
  void download(void* host, const Tensor& device) override { inner_->download(host, device); }

  void zero(const Tensor& device) override { inner_->zero(device); }

  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) override {
    return inner_->prepareTrainedLinear(args);
  }
  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) override {
    return inner_->prepareLinear(args);
  }
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) override {
    return inner_->prepareConv(args);
  }

  void linear(const LinearArgs& args) override { inner_->linear(args); }
  void layerNormModulate(const LayerNormModulateArgs& args) override {
    inner_->layerNormModulate(args);
  }
  void attention(const AttentionArgs& args) override { inner_->attention(args); }
  void silu(const SiluArgs& args) override { inner_->silu(args); }
  void timestepEmbedding(const TimestepEmbeddingArgs& args) override {
    inner_->timestepEmbedding(args);
  }
  void conditionEmbedding(const ConditionEmbeddingArgs& args) override {
    inner_->conditionEmbedding(args);
  }
  void patchify(const PatchifyArgs& args) override { inner_->patchify(args); }
  void unpatchify(const UnpatchifyArgs& args) override { inner_->unpatchify(args); }
  void guide(const GuideArgs& args) override { inner_->guide(args); }
  void solverUpdate(const SolverUpdateArgs& args) override { inner_->solverUpdate(args); }
  void noise(const NoiseArgs& args) override { inner_->noise(args); }
  void conv2d(const Conv2dArgs& args) override { inner_->conv2d(args); }
  void groupNorm(const GroupNormArgs& args) override { inner_->groupNorm(args); }
  void toChannelsLast(const ToChannelsLastArgs& args) override { inner_->toChannelsLast(args); }
  void toChannelsFirst(const ToChannelsFirstArgs& args) override { inner_->toChannelsFirst(args); }
  void sampleMoments(const SampleMomentsArgs& args) override { inner_->sampleMoments(args); }
  void toRgb8(const ToRgb8Args& args) override { inner_->toRgb8(args); }

  void linearBackward(const LinearBackwardArgs& args) override { inner_->linearBackward(args); }
  void gateBackward(const GateBackwardArgs& args) override { inner_->gateBackward(args); }
  void layerNormModulateBackward(const LayerNormModulateBackwardArgs& args) override {
    inner_->layerNormModulateBackward(args);
  }
  void attentionBackward(const AttentionBackwardArgs& args) override {
    inner_->attentionBackward(args);
  }
  void siluBackward(const SiluBackwardArgs& args) override { inner_->siluBackward(args); }
  void conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs& args) override {
    inner_->conditionEmbeddingBackward(args);
  }
  void unpatchifyBackward(const UnpatchifyBackwardArgs& args) override {
    inner_->unpatchifyBackward(args);
  }
  void drawLatents(const DrawLatentsArgs& args) override { inner_->drawLatents(args); }
  void qSample(const QSampleArgs& args) override { inner_->qSample(args); }
  void loss(const LossArgs& args) override { inner_->loss(args); }
  void squaredNorm(const SquaredNormArgs& args) override { inner_->squaredNorm(args); }
  void adamW(const AdamWArgs& args) override { inner_->adamW(args); }
  void cast(const CastArgs& args) override { inner_->cast(args); }

 protected:
  Backend& inner() { return *inner_; }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace dit::test
