#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "model/activations.h"
#include "model/callbacks.h"
#include "model/diffusion.h"
#include "model/dit_config.h"
#include "model/weights.h"

// Training, in explicit stages:
//
//   accumulate   forward and backward of micro-batches; gradients add up in one array
//   apply        gradient norm and finite check, then AdamW, EMA and the copy in the products'
//                precision in one pass over memory; or the step is skipped, and nothing changes
//
// Random numbers depend on (seed, step, row of the global batch) only: not on how the batch is
// divided, and not on what was trained before, so a step number is all the random state there is.

namespace dit {

struct TrainerOptions {
  uint64_t seed = 0;
  bool bound = true;          // the hybrid loss: MSE plus the variance's bound; false: MSE alone
  float labelDropout = 0.1f;  // labels replaced by the null class
  float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weightDecay = 0;
  bool decayAll = false;  // weight decay on biases and tables too
  CheckpointPolicy checkpointing;
  int64_t microBatch = 0;     // rows at once; 0: as many as fit into `memoryLimit`
  size_t memoryLimit = 0;     // bytes for parameters, optimiser and activations; 0: what is free
  int64_t globalBatch = 256;  // rows of a step: more at once are of no use
};

struct TrainerInfo {
  int64_t microBatch = 0;
  int64_t step = 0;           // applied so far
  size_t parameterBytes = 0;  // weights, gradients, moments, EMA and copies
  size_t activationBytes = 0;
};

// Rows of one step. The rows of all calls between two steps make the global batch.
struct TrainingRows {
  int64_t n = 0;
  const float* x = nullptr;  // [n, C, H, W]
  const float* deviation =
      nullptr;                 // [n, C, H, W] or null: x is the mean of a Gaussian to draw from,
  float scale = 1, shift = 0;  //   and (draw - shift) * scale what is trained on
  const int32_t* labels = nullptr;  // n, 0 .. classes - 1, or the null class
  int64_t firstRow = 0;             // of x in the global batch
  int64_t globalBatch = 1;          // rows of the step
  // Instead of random ones; may be null.
  const int32_t* timesteps = nullptr;  // n, 0 .. T - 1
  const float* noise = nullptr;        // [n, C, H, W]
  const uint8_t* drop = nullptr;       // n: 1 replaces the label by the null class
};

enum class StepOutcome : uint8_t {
  Applied,
  NonFinite,  // the loss or the gradient: nothing was changed
  Spike,      // the gradient's norm exceeds `skipAbove`: nothing was changed
};

struct ApplyOptions {
  float lr = 1e-4f;
  float emaDecay = 0.9999f;
  float clipNorm = 0;   // larger gradients are scaled to this norm; 0: never
  float skipAbove = 0;  // steps with a larger norm are skipped; 0: never
};

struct StepResult {
  StepOutcome outcome = StepOutcome::Applied;
  int64_t step = 0;  // applied so far, this one included
  int64_t rows = 0;
  double loss = 0, mse = 0, vb = 0;  // means over the rows
  double gradNorm = 0;
  // Of the rows whose timestep lies in each quarter of the schedule: mean loss, NaN without rows.
  std::array<double, 4> quartileLoss{};
};

class Trainer {
 public:
  // Starts from `weights`. Throws Oom when not even one row fits.
  Trainer(Ops& ops, const DitConfig& config, const ScheduleConfig& schedule, Precision precision,
          WeightSource& weights, const TrainerOptions& options, const LoadProgress& progress = {});
  ~Trainer();

  TrainerInfo info() const;

  // Forward and backward. When it throws, the rows of this step so far are forgotten.
  void accumulate(const TrainingRows& rows, const Checkpoint& checkpoint);
  // Ends a step. Needs at least one row.
  StepResult apply(const ApplyOptions& options);
  // Forgets the rows of this step so far.
  void discard();

  // The trained values and what a resume needs beside them, under the parameters' names. The
  // sources refer to the trainer's memory: what they read is as of then.
  enum class Part : uint8_t { Model, Ema, FirstMoment, SecondMoment };
  std::unique_ptr<WeightSource> values(Part part);
  // Continues from there: a source for every part.
  void restore(int64_t step, const std::array<WeightSource*, 4>& parts);

  // The gradients so far, for tests.
  std::unique_ptr<WeightSource> gradients();

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace dit
