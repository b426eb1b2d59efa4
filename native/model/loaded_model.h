#pragma once

#include <memory>
#include <optional>

#include "model/runner.h"
#include "model/sampler.h"

namespace dit {

// Everything that is loaded, in the order in which it depends on one another.
struct LoadedModel {
  // Both are called while weights are prepared; what they throw ends the load.
  LoadedModel(ModelSpec given, const LoadProgress& progress, const Checkpoint& checkpoint);

  ModelSpec spec;
  Ops ops;
  std::unique_ptr<WeightSource> ditWeights, vaeWeights;
  std::optional<Dit> dit;
  std::optional<Vae> vae;
  std::optional<Sampler> sampler;

  ModelInfo info();
  // Throws Option without a VAE.
  Vae& needVae(const char* what);
};

}  // namespace dit
