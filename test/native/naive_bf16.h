#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/ops.h"

namespace dit::test {

// A naive bf16 run of a network that works in fp32: the operations of another backend, with
// convolution weights and every activation of the VAE rounded to bf16. What bf16 may cost at sizes
// where the oracle takes too long is measured with it.
class NaiveBf16Backend : public Backend {
 public:
  explicit NaiveBf16Backend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  bool supports(Precision precision) const override { return inner_->supports(precision); }
  void* allocate(size_t bytes) override { return inner_->allocate(bytes); }
  void free(void* memory) override { inner_->free(memory); }
  void upload(const Tensor& device, const void* host) override { inner_->upload(device, host); }
  void download(void* host, const Tensor& device) override { inner_->download(host, device); }

  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) override {
    const float* values = args.values.as<float>();
    std::vector<float> copy(values, values + args.values.count());
    round(copy);
    return inner_->prepareConv({.values = Tensor(copy.data(), DType::F32, args.values.shape),
                                .precision = args.precision,
                                .upsample = args.upsample});
  }
  void conv2d(const Conv2dArgs& args) override {
    inner_->conv2d(args);
    round(args.y);
  }
  void groupNorm(const GroupNormArgs& args) override {
    inner_->groupNorm(args);
    round(args.y);
  }
  void attention(const AttentionArgs& args) override {
    inner_->attention(args);
    round(args.y);
  }
  void toChannelsLast(const ToChannelsLastArgs& args) override {
    inner_->toChannelsLast(args);
    round(args.y);
  }

  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) override {
    return inner_->prepareLinear(args);
  }
  void linear(const LinearArgs& args) override { inner_->linear(args); }
  void layerNormModulate(const LayerNormModulateArgs& args) override {
    inner_->layerNormModulate(args);
  }
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
  void toChannelsFirst(const ToChannelsFirstArgs& args) override { inner_->toChannelsFirst(args); }
  void sampleMoments(const SampleMomentsArgs& args) override { inner_->sampleMoments(args); }
  void toRgb8(const ToRgb8Args& args) override { inner_->toRgb8(args); }

 private:
  static void round(std::vector<float>& values) {
    for (float& x : values) x = bf16ToFloat(floatToBf16(x));
  }
  void round(const Tensor& device) {
    std::vector<float> values(static_cast<size_t>(device.count()));
    inner_->download(values.data(), device);
    round(values);
    inner_->upload(device, values.data());
  }

  std::unique_ptr<Backend> inner_;
};

}  // namespace dit::test
