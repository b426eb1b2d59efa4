#pragma once

#include <memory>
#include <string>

#include "ops/arguments.h"
#include "ops/training.h"

// THE list of operations. `arguments.h` and `training.h` give their formulas and shapes; `Ops`
// checks them for all backends, and each backend implements them (native/cpu, native/cuda).

namespace dit {

// A device: its memory and the operations. An object belongs to one thread at a time.
class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu", "cuda:0".
  virtual std::string name() const = 0;
  virtual bool supports(Precision precision) const = 0;

  // Memory of the device, aligned to Arena::kAlignment, uninitialised. Throws Oom.
  virtual void* allocate(size_t bytes) = 0;
  virtual void free(void* memory) = 0;
  // Bytes that could be allocated now, about.
  virtual size_t freeBytes() const = 0;
  // Copies between the host and the device, in the order of the operations around them. `upload`
  // has read `host` when it returns, `download` has written it.
  virtual void upload(const Tensor& device, const void* host) = 0;
  virtual void download(void* host, const Tensor& device) = 0;

  // Every byte of the tensor becomes 0.
  virtual void zero(const Tensor& device) = 0;

  virtual std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) = 0;
  virtual std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) = 0;
  virtual std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) = 0;

  virtual void linear(const LinearArgs& args) = 0;
  virtual void layerNormModulate(const LayerNormModulateArgs& args) = 0;
  virtual void attention(const AttentionArgs& args) = 0;
  virtual void silu(const SiluArgs& args) = 0;
  virtual void timestepEmbedding(const TimestepEmbeddingArgs& args) = 0;
  virtual void conditionEmbedding(const ConditionEmbeddingArgs& args) = 0;
  virtual void patchify(const PatchifyArgs& args) = 0;
  virtual void unpatchify(const UnpatchifyArgs& args) = 0;
  virtual void guide(const GuideArgs& args) = 0;
  virtual void solverUpdate(const SolverUpdateArgs& args) = 0;
  virtual void noise(const NoiseArgs& args) = 0;
  virtual void conv2d(const Conv2dArgs& args) = 0;
  virtual void groupNorm(const GroupNormArgs& args) = 0;
  virtual void toChannelsLast(const ToChannelsLastArgs& args) = 0;
  virtual void toChannelsFirst(const ToChannelsFirstArgs& args) = 0;
  virtual void sampleMoments(const SampleMomentsArgs& args) = 0;
  virtual void toRgb8(const ToRgb8Args& args) = 0;

  virtual void linearBackward(const LinearBackwardArgs& args) = 0;
  virtual void gateBackward(const GateBackwardArgs& args) = 0;
  virtual void layerNormModulateBackward(const LayerNormModulateBackwardArgs& args) = 0;
  virtual void attentionBackward(const AttentionBackwardArgs& args) = 0;
  virtual void siluBackward(const SiluBackwardArgs& args) = 0;
  virtual void conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs& args) = 0;
  virtual void unpatchifyBackward(const UnpatchifyBackwardArgs& args) = 0;
  virtual void drawLatents(const DrawLatentsArgs& args) = 0;
  virtual void qSample(const QSampleArgs& args) = 0;
  virtual void loss(const LossArgs& args) = 0;
  virtual void squaredNorm(const SquaredNormArgs& args) = 0;
  virtual void adamW(const AdamWArgs& args) = 0;
  virtual void cast(const CastArgs& args) = 0;
};

// What the model sees: the operations of a backend behind one set of checks. A broken shape throws
// ErrorCode::Shape and names the operation, what it expected and what it got.
class Ops {
 public:
  explicit Ops(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  Backend& backend() { return *backend_; }

  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args);
  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args);
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args);

  void linear(const LinearArgs& args);
  void layerNormModulate(const LayerNormModulateArgs& args);
  void attention(const AttentionArgs& args);
  void silu(const SiluArgs& args);
  void timestepEmbedding(const TimestepEmbeddingArgs& args);
  void conditionEmbedding(const ConditionEmbeddingArgs& args);
  void patchify(const PatchifyArgs& args);
  void unpatchify(const UnpatchifyArgs& args);
  void guide(const GuideArgs& args);
  void solverUpdate(const SolverUpdateArgs& args);
  void noise(const NoiseArgs& args);
  void conv2d(const Conv2dArgs& args);
  void groupNorm(const GroupNormArgs& args);
  void toChannelsLast(const ToChannelsLastArgs& args);
  void toChannelsFirst(const ToChannelsFirstArgs& args);
  void sampleMoments(const SampleMomentsArgs& args);
  void toRgb8(const ToRgb8Args& args);

  void linearBackward(const LinearBackwardArgs& args);
  void gateBackward(const GateBackwardArgs& args);
  void layerNormModulateBackward(const LayerNormModulateBackwardArgs& args);
  void attentionBackward(const AttentionBackwardArgs& args);
  void siluBackward(const SiluBackwardArgs& args);
  void conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs& args);
  void unpatchifyBackward(const UnpatchifyBackwardArgs& args);
  void drawLatents(const DrawLatentsArgs& args);
  void qSample(const QSampleArgs& args);
  void loss(const LossArgs& args);
  void squaredNorm(const SquaredNormArgs& args);
  void adamW(const AdamWArgs& args);
  void cast(const CastArgs& args);

 private:
  std::unique_ptr<Backend> backend_;
};

// Device memory with an owner.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Backend& backend, size_t bytes)
      : backend_(&backend), data_(backend.allocate(bytes)), bytes_(bytes) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_) backend_->free(data_);
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace dit
