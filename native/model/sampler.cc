#include "model/sampler.h"

#include <algorithm>

#include "core/rng.h"
#include "ops/backend.h"

// labels, seed -> noise -> [ DiT forward x 2 (guidance) -> solver step ] x N -> latents
//   -> VAE decode -> RGB8

namespace dit {

Sampler::Sampler(Ops& ops, Dit& dit, Vae* vae, int64_t maxLanes, int64_t trainingSteps)
    : ops_(ops),
      dit_(dit),
      vae_(vae),
      trainingSteps_(trainingSteps),
      lanes_(static_cast<size_t>(maxLanes)),
      modulation_(ops, dit, dit.maxRows()) {
  DIT_CHECK(dit.maxRows() == 2 * maxLanes, ErrorCode::Internal,
            "expected room for two rows a lane");
  Arena measure;
  layOut(measure);
  memory_ = DeviceBuffer(ops_.backend(), measure.peak());
  Arena arena(memory_.data(), memory_.bytes());
  layOut(arena);
}

// ------------------------------------------------------------------ labels, seed -> noise

int64_t Sampler::start(LaneSpec spec) {
  const int64_t number = freeLane();
  const Tensor x = x_.slice(number, 1);
  if (spec.noise.empty()) {
    ops_.noise({.seed = spec.seed,
                .stream = static_cast<uint32_t>(NoiseStream::Latent),
                .index = 0,
                .y = x});
  } else {
    ops_.backend().upload(x, spec.noise.data());
  }
  const uint64_t vectorId = spec.label < 0 ? nextVectorId_++ : 0;
  lanes_[number] = {.active = true, .spec = std::move(spec), .step = 0, .vectorId = vectorId};
  return number;
}

void Sampler::stop(int64_t lane) { lanes_[lane] = {}; }

SuspendedLane Sampler::suspend(int64_t lane) {
  SuspendedLane suspended{.spec = {},
                          .step = lanes_[lane].step,
                          .vectorId = lanes_[lane].vectorId,
                          .x = latent(lane),
                          .history = {}};
  suspended.history.resize(suspended.x.size() * kSolverHistory);
  ops_.backend().download(suspended.history.data(), history_.slice(lane, 1));
  suspended.spec = std::move(lanes_[lane].spec);
  stop(lane);
  return suspended;
}

int64_t Sampler::resume(SuspendedLane suspended) {
  const int64_t number = freeLane();
  ops_.backend().upload(x_.slice(number, 1), suspended.x.data());
  ops_.backend().upload(history_.slice(number, 1), suspended.history.data());
  lanes_[number] = {.active = true,
                    .spec = std::move(suspended.spec),
                    .step = suspended.step,
                    .vectorId = suspended.vectorId};
  return number;
}

// ------------------------------------------------------------------ [ DiT -> solver step ] x N

int64_t Sampler::round(const Checkpoint& checkpoint) {
  Rows rows;
  std::vector<SolverStep> steps, stepsWithNoise;
  for (int64_t i = 0; i < maxLanes(); i++) {
    const Lane& lane = lanes_[i];
    if (!lane.active || finished(i)) continue;
    const PlanStep& planned = (*lane.spec.plan)[lane.step];
    SolverStep step = planned.update;
    step.lane = static_cast<int32_t>(i);
    step.condRow = rows.add(i, need(lane, lane.step));
    step.uncondRow = guided(lane, lane.step) ? rows.add(i, nullNeed(planned.timestep)) : -1;
    step.guidance = lane.spec.guidance;
    step.guidanceChannels = lane.spec.guidanceChannels;
    step.seed = lane.spec.seed;
    if (lane.spec.stepNoise.empty()) {
      steps.push_back(step);
    } else {
      const int64_t numbers = dit_.config().latentCount();
      ops_.backend().upload(noise_.slice(i, 1), lane.spec.stepNoise.data() + lane.step * numbers);
      stepsWithNoise.push_back(step);
    }
  }
  const int64_t count = static_cast<int64_t>(rows.needs.size());
  if (count == 0) return 0;

  const int64_t R = prepare(rows, upcoming(), checkpoint);
  uploadSteps(std::move(steps), R);
  ops_.backend().repeat(keyOf(Work::Round, R), [&] {
    evaluate(R, x_, checkpoint);
    advance(R, Tensor());
  });
  if (!stepsWithNoise.empty()) {
    uploadSteps(std::move(stepsWithNoise), R);
    advance(R, noise_);
  }
  for (Lane& lane : lanes_) {
    if (lane.active && lane.step < static_cast<int64_t>(lane.spec.plan->size())) lane.step++;
  }
  return count;
}

// Brings what an evaluation reads to the device. Returns how many rows it has: those that the
// device adds repeat the first, and nobody reads what they give.
int64_t Sampler::prepare(Rows rows, const std::vector<ModulationCache::Need>& soon,
                         const Checkpoint& checkpoint) {
  std::vector<int32_t> entries = modulation_.require(rows.needs, soon, checkpoint);
  Backend& device = ops_.backend();
  const int64_t R =
      std::min(rowsFor(device, static_cast<int64_t>(rows.needs.size())), dit_.maxRows());
  rows.latent.resize(static_cast<size_t>(R), rows.latent.front());
  entries.resize(static_cast<size_t>(R), entries.front());
  device.upload(latentOfRow_.slice(0, R), rows.latent.data());
  device.upload(entryOfRow_.slice(0, R), entries.data());
  return R;
}

// Of Backend::repeat: of this sampler, whose end frees memory, and with it forgets its recordings.
uint64_t Sampler::keyOf(Work work, int64_t R) const {
  return (static_cast<uint64_t>(reinterpret_cast<uintptr_t>(this)) << 16) |
         static_cast<uint64_t>(2 * R + (work == Work::Round ? 0 : 1));
}

// As many as rows, more than can be needed: the others are idle.
void Sampler::uploadSteps(std::vector<SolverStep> steps, int64_t R) {
  steps.resize(static_cast<size_t>(R), SolverStep{.lane = -1});
  ops_.backend().upload(steps_.slice(0, R), steps.data());
}

// model_ = DiT(x) for R rows.
void Sampler::evaluate(int64_t R, const Tensor& x, const Checkpoint& checkpoint) {
  dit_.forward({.x = x,
                .lane = latentOfRow_.slice(0, R),
                .table = modulation_.table(),
                .entry = entryOfRow_.slice(0, R),
                .out = model_.slice(0, R)},
               checkpoint);
}

void Sampler::advance(int64_t R, const Tensor& noise) {
  ops_.solverUpdate(
      {.model = model_, .steps = steps_.slice(0, R), .x = x_, .history = history_, .noise = noise});
}

// ------------------------------------------------------------------ latents -> VAE -> RGB8

Picture Sampler::picture(const std::vector<float>& latent, const Checkpoint& checkpoint) {
  const DitConfig& config = dit_.config();
  Picture picture;
  if (vae_) {
    picture.height = config.height * vae_->downscale();
    picture.width = config.width * vae_->downscale();
    picture.channels = vae_->config().outChannels;
    picture.bytes.resize(static_cast<size_t>(picture.height * picture.width * picture.channels));
    vae_->decode({.n = 1,
                  .height = config.height,
                  .width = config.width,
                  .latents = latent.data(),
                  .rgb8 = picture.bytes.data()},
                 checkpoint);
    return picture;
  }
  picture = {config.height, config.width, config.channels, {}};
  picture.bytes.resize(latent.size());
  const Tensor input = input_.slice(0, 1);
  ops_.backend().upload(input, latent.data());
  ops_.toChannelsLast({.x = input, .y = pixels_});
  ops_.toRgb8({.x = pixels_, .y = bytes_});
  ops_.backend().download(picture.bytes.data(), bytes_);
  return picture;
}

std::vector<float> Sampler::latent(int64_t lane) {
  std::vector<float> values(static_cast<size_t>(dit_.config().latentCount()));
  ops_.backend().download(values.data(), x_.slice(lane, 1));
  return values;
}

std::vector<float> Sampler::prediction(int64_t lane) {
  const Lane& of = lanes_[lane];
  DIT_CHECK(of.step > 0, ErrorCode::Internal, "a prediction before the first step");
  const int32_t slot = (*of.spec.plan)[of.step - 1].update.historySlot;
  const int64_t count = dit_.config().latentCount();
  std::vector<float> values(static_cast<size_t>(count));
  ops_.backend().download(values.data(), history_.reshape({maxLanes() * kSolverHistory, count})
                                             .slice(lane * kSolverHistory + slot, 1));
  return values;
}

// ------------------------------------------------------------------ one evaluation, no plan

void Sampler::denoise(const Evaluation& evaluation, const Checkpoint& checkpoint) {
  const DitConfig& config = dit_.config();
  const int64_t inCount = config.latentCount();
  const int64_t outCount = config.outChannels() * config.height * config.width;
  const bool guide = evaluation.guidance != 1;
  for (int64_t begin = 0; begin < evaluation.n; begin += maxLanes()) {
    const int64_t n = std::min(maxLanes(), evaluation.n - begin);
    Rows rows;
    std::vector<int32_t> cond, uncond;
    for (int64_t i = 0; i < n; i++) {
      const Dit::Condition& condition = evaluation.conditions[begin + i];
      const ModulationCache::Key key = {condition.timestep, condition.label,
                                        condition.label < 0 ? nextVectorId_++ : 0};
      cond.push_back(rows.add(i, {key, condition}));
      uncond.push_back(guide ? rows.add(i, nullNeed(condition.timestep)) : -1);
    }
    Backend& device = ops_.backend();
    device.upload(input_.slice(0, n), evaluation.x + begin * inCount);
    const int64_t R = prepare(std::move(rows), {}, checkpoint);
    device.repeat(keyOf(Work::Denoise, R), [&] { evaluate(R, input_, checkpoint); });
    const std::vector<float> scale(static_cast<size_t>(n), evaluation.guidance);
    const auto first = [n](const Tensor& tensor) { return tensor.slice(0, n); };
    device.upload(first(cond_), cond.data());
    device.upload(first(uncond_), uncond.data());
    device.upload(first(scale_), scale.data());
    ops_.guide({.model = model_,
                .cond = first(cond_),
                .uncond = first(uncond_),
                .scale = first(scale_),
                .channels = evaluation.guidanceChannels,
                .y = first(guided_)});
    device.download(evaluation.out + begin * outCount, first(guided_));
  }
}

// ------------------------------------------------------------------ lanes, rows, memory

int64_t Sampler::freeLane() const {
  const auto free =
      std::find_if(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return !lane.active; });
  DIT_CHECK(free != lanes_.end(), ErrorCode::Internal, "no lane is free");
  return free - lanes_.begin();
}

int64_t Sampler::freeLanes() const {
  return std::count_if(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return !lane.active; });
}

bool Sampler::finished(int64_t lane) const {
  return lanes_[lane].step == static_cast<int64_t>(lanes_[lane].spec.plan->size());
}

bool Sampler::guided(const Lane& lane, int64_t step) const {
  const float t = (*lane.spec.plan)[step].timestep / static_cast<float>(trainingSteps_);
  return lane.spec.guidance != 1 && lane.spec.guidanceFrom <= t && t <= lane.spec.guidanceTo;
}

ModulationCache::Need Sampler::need(const Lane& lane, int64_t step) const {
  const float timestep = (*lane.spec.plan)[step].timestep;
  return {{timestep, lane.spec.label, lane.vectorId},
          {timestep, lane.spec.label, lane.spec.vector.data()}};
}

ModulationCache::Need Sampler::nullNeed(float timestep) const {
  const int32_t null = static_cast<int32_t>(dit_.config().classes);
  DIT_CHECK(dit_.config().nullClass, ErrorCode::Option,
            "guidance: this model has no null class, so it cannot be guided; use 1");
  return {{timestep, null, 0}, {timestep, null, nullptr}};
}

// What the lanes need after this round, the nearest rounds first.
std::vector<ModulationCache::Need> Sampler::upcoming() const {
  std::vector<ModulationCache::Need> soon;
  for (int64_t ahead = 1; ahead < Dit::kModulationRows; ahead++) {
    for (const Lane& lane : lanes_) {
      const int64_t step = lane.step + ahead;
      if (!lane.active || step >= static_cast<int64_t>(lane.spec.plan->size())) continue;
      soon.push_back(need(lane, step));
      if (guided(lane, step)) soon.push_back(nullNeed((*lane.spec.plan)[step].timestep));
    }
  }
  return soon;
}

int32_t Sampler::Rows::add(int64_t ofLatent, const ModulationCache::Need& need) {
  latent.push_back(static_cast<int32_t>(ofLatent));
  needs.push_back(need);
  return static_cast<int32_t>(needs.size()) - 1;
}

void Sampler::layOut(Arena& arena) {
  const DitConfig& config = dit_.config();
  const int64_t L = maxLanes(), R = dit_.maxRows(), C = config.channels;
  const int64_t H = config.height, W = config.width, Co = config.outChannels();
  x_ = arena.make(DType::F32, {L, C, H, W});
  history_ = arena.make(DType::F32, {L, kSolverHistory, C, H, W});
  noise_ = arena.make(DType::F32, {L, C, H, W});
  input_ = arena.make(DType::F32, {L, C, H, W});
  model_ = arena.make(DType::F32, {R, Co, H, W});
  guided_ = arena.make(DType::F32, {L, Co, H, W});
  latentOfRow_ = arena.make(DType::I32, {R});
  entryOfRow_ = arena.make(DType::I32, {R});
  steps_ = arena.make(DType::U8, {R, static_cast<int64_t>(sizeof(SolverStep))});
  cond_ = arena.make(DType::I32, {L});
  uncond_ = arena.make(DType::I32, {L});
  scale_ = arena.make(DType::F32, {L});
  pixels_ = arena.make(DType::F32, {1, H, W, C});
  bytes_ = arena.make(DType::U8, {1, H, W, C});
}

}  // namespace dit
