#include "model/model_jobs.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace dit {

namespace {

// moments [n, 2 Cz, h, w]: the log variances become deviations, within the limits that a draw from
// the posterior has too.
void deviations(std::vector<float>& moments, int64_t n) {
  const int64_t half = n > 0 ? static_cast<int64_t>(moments.size()) / (2 * n) : 0;
  for (int64_t image = 0; image < n; image++) {
    float* logvar = moments.data() + (2 * image + 1) * half;
    for (int64_t i = 0; i < half; i++) {
      logvar[i] = std::exp(std::clamp(logvar[i], -30.0f, 20.0f) / 2);
    }
  }
}

}  // namespace

void checkCount(const char* name, size_t got, int64_t expected) {
  DIT_CHECK(static_cast<int64_t>(got) == expected, ErrorCode::Shape, name, ": expected ", expected,
            " numbers, got ", got);
}

void checkVector(const DitConfig& config, const std::vector<std::vector<float>>& vectors,
                 size_t i) {
  const size_t hidden = static_cast<size_t>(config.hidden);
  DIT_CHECK(i < vectors.size() && vectors[i].size() == hidden, ErrorCode::Shape, "label ", i,
            ": expected a vector of ", hidden, " numbers");
}

JobEvent runJob(LoadedModel& model, const DenoiseRequest& request, const Checkpoint& checkpoint) {
  const DitConfig& config = model.spec.dit;
  const size_t n = static_cast<size_t>(request.n);
  checkCount("x", request.x.size(), request.n * config.latentCount());
  checkCount("t", request.timesteps.size(), request.n);
  checkCount("y", request.labels.size(), request.n);
  Sampler::Evaluation evaluation;
  evaluation.n = request.n;
  evaluation.x = request.x.data();
  evaluation.guidance = request.guidance;
  evaluation.guidanceChannels = request.guidanceChannels;
  for (size_t i = 0; i < n; i++) {
    const bool vector = request.labels[i] < 0;
    if (vector) checkVector(config, request.vectors, i);
    evaluation.conditions.push_back(
        {request.timesteps[i], request.labels[i], vector ? request.vectors[i].data() : nullptr});
  }
  JobEvent result;
  result.shape = {request.n, config.outChannels(), config.height, config.width};
  result.floats.resize(static_cast<size_t>(result.shape.count()));
  evaluation.out = result.floats.data();
  model.refresh();
  model.sampler->denoise(evaluation, checkpoint);
  return result;
}

JobEvent runJob(LoadedModel& model, const DecodeRequest& request, const Checkpoint& checkpoint) {
  Vae& vae = model.needVae("decode");
  checkCount("latents", request.latents.size(),
             request.n * vae.config().latentChannels * request.height * request.width);
  JobEvent result;
  result.height = request.height * vae.downscale();
  result.width = request.width * vae.downscale();
  result.channels = vae.config().outChannels;
  result.bytes.resize(
      static_cast<size_t>(request.n * result.height * result.width * result.channels));
  vae.decode({.n = request.n,
              .height = request.height,
              .width = request.width,
              .latents = request.latents.data(),
              .rgb8 = result.bytes.data()},
             checkpoint);
  return result;
}

JobEvent runJob(LoadedModel& model, const EncodeRequest& request, const Checkpoint& checkpoint) {
  Vae& vae = model.needVae("encode");
  checkCount("images", request.images.size(),
             request.n * vae.config().inChannels * request.height * request.width);
  if (request.seeds) checkCount("seeds", request.seeds->size(), request.n);
  JobEvent result;
  result.shape = {request.n, (request.moments ? 2 : 1) * vae.config().latentChannels,
                  request.height / vae.downscale(), request.width / vae.downscale()};
  result.floats.resize(static_cast<size_t>(result.shape.count()));
  float* out = result.floats.data();
  vae.encode({.n = request.n,
              .height = request.height,
              .width = request.width,
              .images = request.images.data(),
              .seeds = request.seeds ? request.seeds->data() : nullptr,
              .latents = request.moments ? nullptr : out,
              .moments = request.moments ? out : nullptr},
             checkpoint);
  if (request.moments) deviations(result.floats, request.n);
  return result;
}

JobEvent runJob(LoadedModel& model, const SaveRequest& request) {
  const auto source = [&]() -> std::shared_ptr<WeightSource> {
    switch (request.part) {
      case SaveRequest::Part::Weights:
        return model.samplingWeights();
      case SaveRequest::Part::Vae:
        model.needVae("save");
        return model.vaeWeights;
      case SaveRequest::Part::Model:
        return model.needTrainer("save").values(Trainer::Part::Model);
      case SaveRequest::Part::Ema:
        return model.needTrainer("save").values(Trainer::Part::Ema);
      case SaveRequest::Part::FirstMoment:
        return model.needTrainer("save").values(Trainer::Part::FirstMoment);
      case SaveRequest::Part::SecondMoment:
        return model.needTrainer("save").values(Trainer::Part::SecondMoment);
    }
    fail(ErrorCode::Internal, "no such part of a model");
  };
  writeWeights(request.path, request.header, *source(), request.tensors);
  return {};
}

}  // namespace dit
