#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "model/callbacks.h"
#include "model/weights.h"
#include "ops/ops.h"

namespace dit {

struct DitConfig {
  int64_t depth = 28;
  int64_t hidden = 1152;
  int64_t heads = 16;
  int64_t mlpHidden = 4608;
  int64_t patch = 2;
  int64_t channels = 4;
  int64_t height = 32, width = 32;  // of the latent
  int64_t classes = 1000;           // numClasses, without the null class
  bool nullClass = true;            // the label table has a row more, the null class (the last)
  bool learnSigma = true;

  int64_t tokens() const { return (height / patch) * (width / patch); }
  int64_t outChannels() const { return learnSigma ? 2 * channels : channels; }
  int64_t labelRows() const { return classes + (nullClass ? 1 : 0); }
  int64_t latentCount() const { return channels * height * width; }
  // Numbers in the modulation of one (timestep, condition): six vectors a block, two at the end.
  int64_t modulationSize() const { return (6 * depth + 2) * hidden; }
};

// The parameters under their official names, in the order of a checkpoint.
std::vector<ParamSpec> ditParams(const DitConfig& config);

// The fixed 2-D sin-cos position embedding [1, T, hidden].
std::vector<float> positionEmbedding(const DitConfig& config);

struct LinearLayer {
  std::unique_ptr<PreparedWeight> weight;
  Tensor bias;
};

struct DitBlock {
  LinearLayer qkv, proj, fc1, fc2, modulation;
};

class Dit {
 public:
  // The modulation is always computed for this many conditions at once, so that its bits never
  // depend on how many are asked for.
  static constexpr int64_t kModulationRows = 16;

  Dit(Ops& ops, const DitConfig& config, WeightSource& weights, Precision precision,
      int64_t maxRows, const LoadProgress& progress);

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
  LinearLayer patchEmbed_, timestep0_, timestep2_, finalModulation_, finalLinear_;
  Tensor position_;  // [1, T, C] F32
  Tensor labels_;    // [labelRows, C] F32
  std::vector<DitBlock> blocks_;
  size_t weightBytes_ = 0;

  DeviceBuffer activations_;
  struct Activations {
    Tensor patches, tokens, normed, qkv, attended, mlp, last;
  };
  struct ConditionActivations {
    Tensor timesteps, labels, vectors, frequencies, hidden, embedded, condition, conditionAct;
  };
  Activations a_;
  ConditionActivations c_;

  void loadParameters(WeightSource& weights, const LoadProgress& progress);
  void layOutActivations(Arena& arena);
  void blockForward(const DitBlock& block, const Tensor& entry, const Tensor& modulation,
                    int64_t rows, const Checkpoint& checkpoint);
};

}  // namespace dit
