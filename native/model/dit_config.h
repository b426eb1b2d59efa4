#pragma once

#include <cstdint>
#include <vector>

#include "model/weights.h"

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

}  // namespace dit
