#pragma once

#include <vector>

#include "model/loaded_model.h"
#include "model/runner.h"

// The jobs that run alone, between rounds of sampling: each is a function of the loaded model that
// returns what its Done event carries. `checkpoint` throws when nobody wants the job any more.

namespace dit {

JobEvent runJob(LoadedModel& model, const DenoiseRequest& request, const Checkpoint& checkpoint);
JobEvent runJob(LoadedModel& model, const DecodeRequest& request, const Checkpoint& checkpoint);
JobEvent runJob(LoadedModel& model, const EncodeRequest& request, const Checkpoint& checkpoint);
JobEvent runJob(LoadedModel& model, const SaveRequest& request);

// ---- training (training_jobs.cc)

// `progress` throws when nobody wants the job any more. A trainer that there was is gone even when
// this fails.
JobEvent runJob(LoadedModel& model, const TrainerRequest& request, const LoadProgress& progress);
JobEvent runJob(LoadedModel& model, const ReleaseRequest& request);
// The caller sees to it that the trainer discards the step when this fails.
JobEvent runJob(LoadedModel& model, const AccumulateRequest& request, const Checkpoint& checkpoint);
JobEvent runJob(LoadedModel& model, const ApplyRequest& request);

// ---- what requests have in common

void checkCount(const char* name, size_t got, int64_t expected);
// The vector of label number i, [hidden].
void checkVector(const DitConfig& config, const std::vector<std::vector<float>>& vectors, size_t i);

}  // namespace dit
