#pragma once

#include <memory>
#include <optional>

#include "model/host_weights.h"
#include "model/preview.h"
#include "model/runner.h"
#include "model/sampler.h"

namespace dit {

// Everything that is loaded, in the order in which it depends on one another.
struct LoadedModel {
  // Both are called while weights are prepared; what they throw ends the load.
  LoadedModel(ModelSpec given, const LoadProgress& progress, const Checkpoint& checkpoint);

  ModelSpec spec;
  Ops ops;
  std::shared_ptr<WeightSource> ditWeights, vaeWeights;  // as they were loaded
  std::optional<Dit> dit;
  std::optional<Vae> vae;
  std::optional<Sampler> sampler;
  std::optional<LinearPreview> preview;  // of the VAE, once it was asked for
  std::unique_ptr<Trainer> trainer;
  std::shared_ptr<HostWeights> trained;  // what the last trainer left
  int64_t suspended = 0;                 // images that were begun and have no lane now
  bool stale = false;                    // `dit` has other values than samplingWeights()

  ModelInfo info();
  // Throw Option without one.
  Vae& needVae(const char* what);
  Trainer& needTrainer(const char* what);

  // To be called before previews of that kind. For the first linear one through a VAE it makes the
  // fit.
  void preparePreview(PreviewKind kind, const Checkpoint& checkpoint);
  // What a latent of the model looks like so far.
  Picture previewOf(const std::vector<float>& latent, PreviewKind kind,
                    const Checkpoint& checkpoint);

  // What sampling is to use: the EMA of a model in training, or of the last one, else what was
  // loaded.
  std::shared_ptr<WeightSource> samplingWeights();
  // Brings `dit` up to date, unless an image is in the making: it ends with the weights that it
  // began with, and so do those that join it.
  void refresh();
};

}  // namespace dit
