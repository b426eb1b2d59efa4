#include <utility>

#include "model/model_jobs.h"

// Training: train makes the trainer, accumulate and apply are the stages of a step.

namespace dit {

namespace {

template <typename T>
const T* optional(const char* name, const std::vector<T>& values, int64_t expected) {
  if (values.empty()) return nullptr;
  checkCount(name, values.size(), expected);
  return values.data();
}

}  // namespace

JobEvent runJob(LoadedModel& model, const TrainerRequest& request, const LoadProgress& progress) {
  std::array<std::unique_ptr<WeightSource>, 4> state;
  std::array<WeightSource*, 4> parts{};
  if (request.state) {
    for (size_t i = 0; i < parts.size(); i++) {
      state[i] = openWeightFiles((*request.state)[i]);
      parts[i] = state[i].get();
    }
  }
  // The memory of the earlier trainer is needed. When the new one fails there is none, and sampling
  // goes back to the weights that were loaded.
  model.trainer.reset();
  model.trained.reset();
  model.stale = true;
  auto trainer =
      std::make_unique<Trainer>(model.ops, model.spec.dit, model.spec.schedule,
                                model.spec.precision, *model.ditWeights, request.options, progress);
  if (request.state) trainer->restore(request.step, parts);
  model.trainer = std::move(trainer);
  JobEvent result;
  result.trainer = model.trainer->info();
  return result;
}

JobEvent runJob(LoadedModel& model, const ReleaseRequest&) {
  if (!model.trainer) return {};
  const auto averaged = model.trainer->values(Trainer::Part::Ema);
  model.trained = std::make_shared<HostWeights>(*averaged, ditParams(model.spec.dit));
  model.trainer.reset();
  return {};
}

JobEvent runJob(LoadedModel& model, const AccumulateRequest& request,
                const Checkpoint& checkpoint) {
  Trainer& trainer = model.needTrainer("accumulate");
  const int64_t n = request.n;
  DIT_CHECK(n >= 1, ErrorCode::Shape, "x: expected at least one row, got ", n);
  checkCount("labels", request.labels.size(), n);
  const int64_t count = n * model.spec.dit.latentCount();
  checkCount("x", request.x.size(), count);
  trainer.accumulate({.n = n,
                      .x = request.x.data(),
                      .deviation = optional("deviation", request.deviation, count),
                      .scale = request.scale,
                      .shift = request.shift,
                      .labels = request.labels.data(),
                      .firstRow = request.firstRow,
                      .globalBatch = request.globalBatch,
                      .timesteps = optional("timesteps", request.timesteps, n),
                      .noise = optional("noise", request.noise, count),
                      .drop = optional("drop", request.drop, n)},
                     checkpoint);
  return {};
}

JobEvent runJob(LoadedModel& model, const ApplyRequest& request) {
  const StepResult step = model.needTrainer("apply").apply(request.options);
  if (step.outcome == StepOutcome::Applied) model.stale = true;
  JobEvent result;
  result.step = step;
  return result;
}

}  // namespace dit
