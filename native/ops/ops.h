#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "ops/arguments.h"
#include "ops/training.h"

// THE list of operations. `arguments.h` and `training.h` give their formulas and shapes; `Ops`
// checks them for all backends, and each backend implements them (native/cpu, native/cuda).
// X(name, Args) is called for each.
#define DIT_OPERATIONS(X)                                       \
  X(linear, LinearArgs)                                         \
  X(layerNormModulate, LayerNormModulateArgs)                   \
  X(attention, AttentionArgs)                                   \
  X(silu, SiluArgs)                                             \
  X(timestepEmbedding, TimestepEmbeddingArgs)                   \
  X(conditionEmbedding, ConditionEmbeddingArgs)                 \
  X(patchify, PatchifyArgs)                                     \
  X(unpatchify, UnpatchifyArgs)                                 \
  X(guide, GuideArgs)                                           \
  X(solverUpdate, SolverUpdateArgs)                             \
  X(noise, NoiseArgs)                                           \
  X(conv2d, Conv2dArgs)                                         \
  X(groupNorm, GroupNormArgs)                                   \
  X(toChannelsLast, ToChannelsLastArgs)                         \
  X(toChannelsFirst, ToChannelsFirstArgs)                       \
  X(sampleMoments, SampleMomentsArgs)                           \
  X(toRgb8, ToRgb8Args)                                         \
  X(linearBackward, LinearBackwardArgs)                         \
  X(gateBackward, GateBackwardArgs)                             \
  X(layerNormModulateBackward, LayerNormModulateBackwardArgs)   \
  X(attentionBackward, AttentionBackwardArgs)                   \
  X(siluBackward, SiluBackwardArgs)                             \
  X(conditionEmbeddingBackward, ConditionEmbeddingBackwardArgs) \
  X(unpatchifyBackward, UnpatchifyBackwardArgs)                 \
  X(drawLatents, DrawLatentsArgs)                               \
  X(qSample, QSampleArgs)                                       \
  X(loss, LossArgs)                                             \
  X(squaredNorm, SquaredNormArgs)                               \
  X(adamW, AdamWArgs)                                           \
  X(cast, CastArgs)

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

  // Runs `work`, which queues the same operations on the same tensors whenever it is called with
  // this key. A device may record them and replay the recording from then on, without calling
  // `work`; so `work` allocates, copies and repeats nothing. Freeing memory forgets recordings.
  virtual void repeat(uint64_t key, const std::function<void()>& work) {
    static_cast<void>(key);
    work();
  }

  virtual std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) = 0;
  virtual std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) = 0;
  virtual std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) = 0;

#define DIT_DECLARE(name, Args) virtual void name(const Args& args) = 0;
  DIT_OPERATIONS(DIT_DECLARE)
#undef DIT_DECLARE
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

#define DIT_DECLARE(name, Args) void name(const Args& args);
  DIT_OPERATIONS(DIT_DECLARE)
#undef DIT_DECLARE

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
