#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/onednn.h"
#include "ops/ops.h"

namespace dit::cpu {

// The processor: products and convolutions by oneDNN, everything else by our own kernels, memory by
// the host. What operations return is complete.
class CpuBackend final : public Backend {
 public:
  // threads: how many the operations may use; 0: as many as the process may run on.
  explicit CpuBackend(int threads);

  std::string name() const override { return "cpu"; }
  bool supports(Precision precision) const override;

  void* allocate(size_t bytes) override;
  void free(void* memory) override;
  size_t freeBytes() const override;
  void upload(const Tensor& device, const void* host) override;
  void download(void* host, const Tensor& device) override;
  void zero(const Tensor& device) override;

  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) override;
  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) override;
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) override;

  void linear(const LinearArgs& args) override;
  void conv2d(const Conv2dArgs& args) override;

  void layerNormModulate(const LayerNormModulateArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void silu(const SiluArgs& args) override;
  void timestepEmbedding(const TimestepEmbeddingArgs& args) override;
  void conditionEmbedding(const ConditionEmbeddingArgs& args) override;
  void patchify(const PatchifyArgs& args) override;
  void unpatchify(const UnpatchifyArgs& args) override;
  void guide(const GuideArgs& args) override;
  void solverUpdate(const SolverUpdateArgs& args) override;
  void noise(const NoiseArgs& args) override;
  void groupNorm(const GroupNormArgs& args) override;
  void toChannelsLast(const ToChannelsLastArgs& args) override;
  void toChannelsFirst(const ToChannelsFirstArgs& args) override;
  void sampleMoments(const SampleMomentsArgs& args) override;
  void toRgb8(const ToRgb8Args& args) override;

  void linearBackward(const LinearBackwardArgs& args) override;
  void gateBackward(const GateBackwardArgs& args) override;
  void layerNormModulateBackward(const LayerNormModulateBackwardArgs& args) override;
  void attentionBackward(const AttentionBackwardArgs& args) override;
  void siluBackward(const SiluBackwardArgs& args) override;
  void conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs& args) override;
  void unpatchifyBackward(const UnpatchifyBackwardArgs& args) override;
  void drawLatents(const DrawLatentsArgs& args) override;
  void qSample(const QSampleArgs& args) override;
  void loss(const LossArgs& args) override;
  void squaredNorm(const SquaredNormArgs& args) override;
  void adamW(const AdamWArgs& args) override;
  void cast(const CastArgs& args) override;

 private:
  // `largest`: the tensor that says how much work it is.
  template <typename Args>
  void run(void (*kernel)(const Args&), const Args& args, const Tensor& largest);
  int threadsFor(double work, double least) const;
  void requirePrecision(Precision precision) const;

  int threads_;
  const Kernels& kernels_;
  OneDnn onednn_;
  std::unordered_map<void*, Block> blocks_;
};

}  // namespace dit::cpu
