#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "model/callbacks.h"
#include "model/dit_layers.h"
#include "ops/ops.h"

namespace dit {

// A DiT that samples: its weights as the products want them, and the memory of one round.
class Dit {
 public:
  // The modulation is always computed for this many conditions at once, so that its bits never
  // depend on how many are asked for.
  static constexpr int64_t kModulationRows = 16;

  Dit(Ops& ops, const DitConfig& config, WeightSource& weights, Precision precision,
      int64_t maxRows, const LoadProgress& progress);

  // Other values of the same parameters.
  void reload(WeightSource& weights) { loadParameters(weights, {}); }

  const DitConfig& config() const { return config_; }
  DType activationType() const { return act_; }
  int64_t maxRows() const { return maxRows_; }
  // Device memory held by the weights and by the activations.
  size_t weightBytes() const { return weightBytes_; }
  size_t activationBytes() const { return activations_.bytes(); }

  struct Condition {
    float timestep = 0;
    int32_t label = 0;              // -1: `vector` instead
    const float* vector = nullptr;  // [hidden]
  };

  // Writes the modulation of all blocks for kModulationRows conditions to
  // table [kModulationRows, modulationSize] F32.
  void modulate(const std::vector<Condition>& conditions, const Tensor& table,
                const Checkpoint& checkpoint);

  struct Rows {
    Tensor x;      // [L, C, H, W] F32
    Tensor lane;   // [R] I32: the latent of each row
    Tensor table;  // [E, modulationSize] F32
    Tensor entry;  // [R] I32: the modulation of each row
    Tensor out;    // [R, outChannels, H, W] F32
  };

  // One evaluation of the model for R <= maxRows rows.
  void forward(const Rows& rows, const Checkpoint& checkpoint, const Probe& probe = {});

 private:
  Ops& ops_;
  DitConfig config_;
  Precision precision_;
  DType act_;
  int64_t maxRows_;

  DeviceBuffer parameters_;  // biases and tables: everything that is not a prepared weight
  DitLayers layers_;
  size_t weightBytes_ = 0;

  DeviceBuffer activations_;
  Tensor tokens_;
  BlockActivations block_;
  EndActivations ends_;
  ConditionActivations condition_;

  void loadParameters(WeightSource& weights, const LoadProgress& progress);
  void layOutActivations(Arena& arena);
};

}  // namespace dit
