#include "model/loaded_model.h"

#include <utility>

#include "model/adapted_weights.h"

namespace dit {

namespace {

std::unique_ptr<WeightSource> openWeights(const ModelSpec& spec) {
  if (spec.ditTensors.empty()) return initialWeights(ditParams(spec.dit), spec.initSeed);
  auto stored = openWeightFiles(spec.ditTensors);
  if (!spec.storedDit) return stored;
  return adaptWeights(std::move(stored), *spec.storedDit, spec.dit, spec.initSeed);
}

}  // namespace

LoadedModel::LoadedModel(ModelSpec given, const LoadProgress& progress,
                         const Checkpoint& checkpoint)
    : spec(std::move(given)), ops(openBackend(spec.backend)) {
  DIT_CHECK(spec.maxLanes >= 1 && spec.maxLanes <= 4096, ErrorCode::Option,
            "maxBatch: expected 1 to 4096, got ", spec.maxLanes);
  DIT_CHECK(ops.backend().supports(spec.precision), ErrorCode::Device,
            "precision: ", ops.backend().name(), " has no ", precisionName(spec.precision),
            " here");
  ditWeights = openWeights(spec);
  if (spec.vae) vaeWeights = openWeightFiles(spec.vaeTensors);
  dit.emplace(ops, spec.dit, *ditWeights, spec.precision, 2 * spec.maxLanes, progress);
  if (spec.vae)
    vae.emplace(ops, *spec.vae, *vaeWeights, spec.precision,
                [&](int64_t, int64_t) { checkpoint(); });
  sampler.emplace(ops, *dit, vae ? &*vae : nullptr, spec.maxLanes, spec.schedule.steps);
}

ModelInfo LoadedModel::info() {
  ModelInfo info;
  info.device = ops.backend().name();
  info.precision = spec.precision;
  info.weightBytes = dit->weightBytes() + (trained ? trained->bytes() : 0);
  info.vaeBytes = vae ? vae->bytes() : 0;
  info.activationBytes = dit->activationBytes() + sampler->bytes();
  if (trainer) {
    const TrainerInfo training = trainer->info();
    info.trainerBytes = training.parameterBytes + training.activationBytes;
  }
  return info;
}

void LoadedModel::preparePreview(PreviewKind kind, const Checkpoint& checkpoint) {
  if (!vae || kind == PreviewKind::Decode) return;
  if (!preview) preview.emplace(vae->config());
  if (!preview->fitted()) preview->fit(*vae, checkpoint);
}

Picture LoadedModel::previewOf(const std::vector<float>& latent, PreviewKind kind,
                               const Checkpoint& checkpoint) {
  if (!vae || kind == PreviewKind::Decode) return sampler->picture(latent, checkpoint);
  DIT_CHECK(preview, ErrorCode::Internal, "a preview that was not prepared");
  return preview->picture(latent, spec.dit.height, spec.dit.width);
}

std::shared_ptr<WeightSource> LoadedModel::samplingWeights() {
  if (trainer) return trainer->values(Trainer::Part::Ema);
  if (trained) return trained;
  return ditWeights;
}

void LoadedModel::refresh() {
  const bool inTheMaking = suspended > 0 || sampler->freeLanes() < sampler->maxLanes();
  if (!stale || inTheMaking) return;
  dit->reload(*samplingWeights());
  sampler->weightsChanged();
  stale = false;
}

Vae& LoadedModel::needVae(const char* what) {
  DIT_CHECK(vae, ErrorCode::Option, what,
            ": this model has no VAE; give one with the option `vae` when it is loaded");
  return *vae;
}

Trainer& LoadedModel::needTrainer(const char* what) {
  DIT_CHECK(trainer, ErrorCode::Option, what,
            ": this model is not in training; make a trainer first");
  return *trainer;
}

}  // namespace dit
