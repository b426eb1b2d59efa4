#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/calls.h"
#include "model/diffusion.h"
#include "model/dit.h"
#include "model/trainer.h"
#include "model/vae.h"
#include "ops/backend.h"

namespace dit {

struct ModelSpec {
  BackendOptions backend;
  Precision precision = Precision::F32;
  DitConfig dit;
  std::vector<TensorSource> ditTensors;  // empty: a fresh model from initSeed
  // The size that the tensors have, where it is another: they are adapted (adapted_weights.h), what
  // is new following from initSeed.
  std::optional<DitConfig> storedDit;
  uint64_t initSeed = 0;
  std::optional<VaeConfig> vae;
  std::vector<TensorSource> vaeTensors;
  ScheduleConfig schedule;
  int64_t maxLanes = 4;
  std::optional<int64_t> maxQueue;  // none: any number of images may wait
};

struct ModelInfo {
  std::string device;
  Precision precision = Precision::F32;
  size_t weightBytes = 0, vaeBytes = 0, activationBytes = 0;
  size_t trainerBytes = 0;  // 0: not in training
};

// How a preview is made: the VAE's linear approximation (preview.h), or the VAE itself. Without a
// VAE both are the pixels.
enum class PreviewKind : uint8_t { Linear, Decode };

// The images of one call. Image i has label, seed (and vector, noise ...) number i.
struct SampleRequest {
  PlanOptions plan;
  std::vector<int32_t> labels;              // n
  std::vector<std::vector<float>> vectors;  // n or none; used where a label is -1
  std::vector<uint64_t> seeds;              // n
  std::vector<float> noise;                 // [n, C, H, W] or empty
  std::vector<float> stepNoise;             // [n, steps, C, H, W] or empty
  float guidance = 1;
  int32_t guidanceChannels = 0;
  float guidanceFrom = 0, guidanceTo = 1;
  bool latentOnly = false;
  int64_t previewEvery = 0;  // steps between previews of an image; 0: none
  PreviewKind previewKind = PreviewKind::Linear;
  uint64_t call = 0;  // what Runner::admit gave; 0: a call of its own
};

struct DenoiseRequest {
  int64_t n = 0;
  std::vector<float> x;                     // [n, C, H, W]
  std::vector<float> timesteps;             // n
  std::vector<int32_t> labels;              // n
  std::vector<std::vector<float>> vectors;  // n or none
  float guidance = 1;
  int32_t guidanceChannels = 0;
};

struct DecodeRequest {
  int64_t n = 0, height = 0, width = 0;  // of the latents
  std::vector<float> latents;            // [n, Cz, h, w], in the model's scale
};

struct EncodeRequest {
  int64_t n = 0, height = 0, width = 0;        // of the images
  std::vector<float> images;                   // [n, C, H, W] in [-1, 1]
  std::optional<std::vector<uint64_t>> seeds;  // n: sample the posterior; none: its mode
  // The posterior itself instead: [n, 2 Cz, h, w], means then deviations, in the VAE's own scale.
  bool moments = false;
};

// Makes the model trainable: from the weights that were loaded, or from a checkpoint. Replaces the
// trainer that there is, which is gone even when this fails. Sampling and denoise use the EMA
// weights from then on; an image in the making, and those that join it, end with the weights that
// it began with.
struct TrainerRequest {
  TrainerOptions options;
  // To continue: the parts of a checkpoint, as Trainer::Part numbers them.
  int64_t step = 0;
  std::optional<std::array<std::vector<TensorSource>, 4>> state;
};

// Ends the training: the trainer is gone, its averaged weights stay, in the host's memory, until
// there is another trainer.
struct ReleaseRequest {};

// TrainingRows with their data. A job that fails or is cancelled, even before it began, forgets all
// rows of the step.
struct AccumulateRequest {
  int64_t n = 0;
  std::vector<float> x, deviation;  // [n, C, H, W]; deviation may be empty
  float scale = 1, shift = 0;
  std::vector<int32_t> labels;  // n
  int64_t firstRow = 0, globalBatch = 1;
  std::vector<int32_t> timesteps;  // n or none
  std::vector<float> noise;        // [n, C, H, W] or none
  std::vector<uint8_t> drop;       // n or none
};

struct ApplyRequest {
  ApplyOptions options;
};

struct SaveRequest {
  std::string path, header;
  // Whose tensors. Weights: those that sampling uses, so the EMA of a model in training.
  enum class Part : uint8_t { Weights, Vae, Model, Ema, FirstMoment, SecondMoment };
  Part part = Part::Weights;
  std::vector<SavedTensor> tensors;
};

// What a job tells, from the model's thread. The last event of a job is Done or Failed.
struct JobEvent {
  enum class Kind : uint8_t { Progress, Preview, Done, Failed };
  Kind kind = Kind::Progress;
  uint64_t job = 0;
  // Progress: steps of all images (or numbers, while loading) done and in all. Preview: steps of
  // image number `image`.
  int64_t done = 0, total = 0, image = 0;
  // Done, of a sample job: seconds from its call to its first step, from there to its last, and in
  // decoding.
  double queueSeconds = 0, sampleSeconds = 0, decodeSeconds = 0;
  // Images [n, height, width, channels], or floats of `shape`.
  std::vector<uint8_t> bytes;
  int64_t height = 0, width = 0, channels = 0;
  std::vector<float> floats;
  Shape shape;
  // Done, of a trainer job and of an apply job.
  std::optional<TrainerInfo> trainer;
  std::optional<StepResult> step;
  // Failed.
  ErrorCode error = ErrorCode::Internal;
  std::string message;
};

// A model and its thread. Every function may be called from any thread and returns at once; events
// arrive on the model's thread. Sample jobs share rounds (continuous batching); other jobs run one
// at a time between rounds, in the order in which they were asked for: a job, then a round.
class Runner {
 public:
  using Listener = std::function<void(JobEvent&&)>;

  explicit Runner(Listener listener);
  // Stops at the next checkpoint; jobs under way fail with Closed.
  ~Runner();

  uint64_t load(ModelSpec spec);
  // Lets a call in, whose images sample jobs then bring, and which ends with the last of them.
  // Throws Refusal. `leave` tells that the images that have not ended are not wanted any more; no
  // effect on a call that has ended.
  uint64_t admit(const CallRequest& request);
  void leave(uint64_t call);
  uint64_t sample(SampleRequest request);
  uint64_t denoise(DenoiseRequest request);
  uint64_t decode(DecodeRequest request);
  uint64_t encode(EncodeRequest request);
  uint64_t save(SaveRequest request);
  uint64_t train(TrainerRequest request);
  uint64_t release(ReleaseRequest request);
  uint64_t accumulate(AccumulateRequest request);
  uint64_t apply(ApplyRequest request);

  // The job fails with Aborted within one step; no effect on a job that has ended.
  void cancel(uint64_t job);
  // Everything under way and everything asked for later fails with Closed; memory is freed by the
  // model's thread. `close` is a job like the others: its Done says that the memory is free.
  uint64_t close();

  // Sizes as of the last job that ended; zero before the load job has.
  ModelInfo info() const;
  // As of now.
  CallStats stats() const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace dit
