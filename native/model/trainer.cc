#include "model/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "core/rng.h"
#include "model/micro_batch.h"
#include "model/parameters.h"

namespace dit {

namespace {

// What the random numbers of a step are made from.
uint64_t stepKey(uint64_t seed, int64_t step) {
  const uint64_t number = static_cast<uint64_t>(step);
  const Philox4 bits =
      philox(seed, {{static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), 0,
                     static_cast<uint32_t>(NoiseStream::TrainingStep)}});
  return (static_cast<uint64_t>(bits.v[1]) << 32) | bits.v[0];
}

std::vector<int64_t> allTimesteps(int64_t steps) {
  std::vector<int64_t> all(static_cast<size_t>(steps));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::string inUnits(size_t bytes) {
  return bytes < (1 << 20) ? std::to_string((bytes + 1023) >> 10) + " KiB"
                           : std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB";
}

}  // namespace

class Trainer::State {
 public:
  State(Ops& ops, const DitConfig& config, const ScheduleConfig& schedule, Precision precision,
        WeightSource& weights, const TrainerOptions& options, const LoadProgress& progress)
      : ops_(ops),
        config_(config),
        options_(options),
        precision_(precision),
        act_(precision == Precision::BF16 ? DType::BF16 : DType::F32),
        schedule_(makeSchedule(makeBetas(schedule), allTimesteps(schedule.steps))),
        microBatch_(chooseMicroBatch()),
        parameters_(ops, config, precision, microBatch_) {
    DIT_CHECK(!options.bound || config.learnSigma, ErrorCode::Option,
              "loss: the hybrid loss needs a model that learns its variance; use 'mse'");
    DIT_CHECK(options.labelDropout == 0 || config.nullClass, ErrorCode::Option,
              "labelDropout: this model has no null class to replace labels by; use 0");
    parameters_.start(weights, options.decayAll, progress);
    activations_ = DeviceBuffer(
        ops_.backend(), microBatchBytes(config_, act_, options_.checkpointing, microBatch_));
    Arena arena(activations_.data(), activations_.bytes());
    m_ = MicroBatch(config_, act_, options_.checkpointing, microBatch_, arena);
    std::vector<int32_t> index(static_cast<size_t>(microBatch_));
    std::iota(index.begin(), index.end(), 0);
    ops_.backend().upload(m_.index, index.data());
    norm_ = DeviceBuffer(ops_.backend(), sizeof(double));
  }

  TrainerInfo info() const {
    return {.microBatch = microBatch_,
            .step = step_,
            .parameterBytes = Parameters::bytes(config_, precision_),
            .activationBytes = activations_.bytes()};
  }

  void accumulate(const TrainingRows& rows, const Checkpoint& checkpoint) {
    check(rows);
    try {
      for (int64_t begin = 0; begin < rows.n; begin += microBatch_) {
        const int64_t n = std::min(microBatch_, rows.n - begin);
        upload(rows, begin, n);
        forward(n, checkpoint);
        lossAndGradient(n, rows.globalBatch);
        backward(n, checkpoint);
      }
    } catch (...) {
      discard();
      throw;
    }
  }

  StepResult apply(const ApplyOptions& options) {
    DIT_CHECK(rows_ > 0, ErrorCode::Option, "a step needs at least one row");
    const Tensor squared(norm_.data(), DType::F64, {1});
    ops_.squaredNorm({.x = parameters_.gradients, .out = squared});
    double squaredNorm = 0;
    ops_.backend().download(&squaredNorm, squared);

    StepResult result = means();
    result.gradNorm = std::sqrt(squaredNorm);
    if (!std::isfinite(result.loss) || !std::isfinite(squaredNorm)) {
      result.outcome = StepOutcome::NonFinite;
    } else if (options.skipAbove > 0 && result.gradNorm > options.skipAbove) {
      result.outcome = StepOutcome::Spike;
    } else {
      update(options, result.gradNorm);
      step_++;
    }
    discard();
    result.step = step_;
    return result;
  }

  void discard() {
    // AdamW has made the gradients 0 already, but only where there was a step.
    if (dirty_) ops_.backend().zero(parameters_.gradients);
    dirty_ = false;
    rows_ = 0;
    mse_ = vb_ = 0;
    quartileSum_ = {};
    quartileRows_ = {};
  }

  std::unique_ptr<WeightSource> values(Part part) { return parameters_.source(array(part)); }
  std::unique_ptr<WeightSource> gradients() { return parameters_.source(parameters_.gradients); }

  void restore(int64_t step, const std::array<WeightSource*, 4>& parts) {
    for (const Part part : {Part::Model, Part::Ema, Part::FirstMoment, Part::SecondMoment}) {
      parameters_.load(array(part), *parts[static_cast<size_t>(part)], {});
    }
    parameters_.refresh();
    discard();
    step_ = step;
  }

 private:
  const Tensor& array(Part part) const {
    switch (part) {
      case Part::Model:
        return parameters_.values;
      case Part::Ema:
        return parameters_.ema;
      case Part::FirstMoment:
        return parameters_.firstMoment;
      case Part::SecondMoment:
        return parameters_.secondMoment;
    }
    fail(ErrorCode::Internal, "no such part of a trainer");
  }

  int64_t chooseMicroBatch() const {
    const size_t parameters = Parameters::bytes(config_, precision_);
    const size_t limit =
        options_.memoryLimit > 0 ? options_.memoryLimit : ops_.backend().freeBytes() / 10 * 9;
    const int64_t wanted = options_.microBatch > 0 ? 1 : options_.globalBatch;
    const size_t left = limit > parameters ? limit - parameters : 0;
    const int64_t fit = rowsThatFit(config_, act_, options_.checkpointing,
                                    std::max(wanted, options_.microBatch), left);
    const int64_t rows = options_.microBatch > 0 ? options_.microBatch : fit;
    if (fit >= std::max<int64_t>(rows, 1)) return rows;
    const size_t needed = parameters + microBatchBytes(config_, act_, options_.checkpointing,
                                                       std::max<int64_t>(rows, 1));
    const bool limited = options_.memoryLimit > 0;
    fail(ErrorCode::Oom, "training ",
         rows > 1 ? std::to_string(rows) + " rows at once" : "one row at a time", " takes ",
         inUnits(needed), ", but only ", inUnits(limit), " are ", limited ? "allowed" : "free",
         ": use ", limited ? "a larger memoryLimit, " : "", rows > 1 ? "a smaller batchSize, " : "",
         "checkpointing 'block' or a smaller model");
  }

  void check(const TrainingRows& rows) const {
    DIT_CHECK(rows.n > 0 && rows.globalBatch >= rows.firstRow + rows.n, ErrorCode::Option,
              "expected rows within a global batch of ", rows.globalBatch, ", got ", rows.n,
              " from row ", rows.firstRow);
    for (int64_t i = 0; i < rows.n; i++) {
      DIT_CHECK(rows.labels[i] >= 0 && rows.labels[i] < config_.labelRows(), ErrorCode::Option,
                "label: expected a class from 0 to ", config_.labelRows() - 1, ", got ",
                rows.labels[i]);
      DIT_CHECK(!rows.drop || rows.drop[i] == 0 || config_.nullClass, ErrorCode::Option,
                "drop: this model has no null class");
      if (!rows.timesteps) continue;
      DIT_CHECK(rows.timesteps[i] >= 0 && rows.timesteps[i] < schedule_.size(), ErrorCode::Option,
                "t: expected an integer from 0 to ", schedule_.size() - 1, ", got ",
                rows.timesteps[i]);
    }
  }

  // Rows [begin, begin + n) of `rows` to the device: noised latents, timesteps, labels.
  void upload(const TrainingRows& rows, int64_t begin, int64_t n) {
    Backend& device = ops_.backend();
    const uint64_t key = stepKey(options_.seed, step_);
    timesteps_.assign(static_cast<size_t>(n), 0);
    std::vector<int32_t> labels(static_cast<size_t>(n));
    std::vector<float> t(labels.size()), signal(labels.size()), sigma(labels.size());
    std::vector<LossStep> lossSteps(labels.size());
    for (int64_t i = 0; i < n; i++) {
      const int64_t row = begin + i;
      const Philox4 bits = philox(key, {{static_cast<uint32_t>(rows.firstRow + row), 0, 0,
                                         static_cast<uint32_t>(NoiseStream::TrainingRow)}});
      const auto steps = static_cast<uint64_t>(schedule_.size());
      const int64_t step =
          rows.timesteps ? rows.timesteps[row] : static_cast<int64_t>((bits.v[0] * steps) >> 32);
      const bool drop =
          rows.drop ? rows.drop[row] != 0 : uniformOpen(bits.v[1]) < options_.labelDropout;
      const auto at = static_cast<size_t>(i), stepAt = static_cast<size_t>(step);
      timesteps_[at] = step;
      labels[at] = drop ? static_cast<int32_t>(config_.classes) : rows.labels[row];
      t[at] = static_cast<float>(step);
      signal[at] = static_cast<float>(schedule_.sqrtAlphasCumprod[stepAt]);
      sigma[at] = static_cast<float>(schedule_.sqrtOneMinusAlphasCumprod[stepAt]);
      lossSteps[at] = makeLossStep(schedule_, step);
    }
    device.upload(m_.condition.timesteps.slice(0, n), t.data());
    device.upload(m_.condition.labels.slice(0, n), labels.data());
    device.upload(m_.signal.slice(0, n), signal.data());
    device.upload(m_.sigma.slice(0, n), sigma.data());
    device.upload(m_.lossSteps.slice(0, n), lossSteps.data());

    const int64_t count = config_.latentCount();
    const auto noise = [&](NoiseStream stream) {
      for (int64_t i = 0; i < n; i++) {
        ops_.noise({.seed = key,
                    .stream = static_cast<uint32_t>(stream),
                    .index = static_cast<uint32_t>(rows.firstRow + begin + i),
                    .y = m_.noise.slice(i, 1)});
      }
    };
    const Tensor x = m_.x.slice(0, n), z = m_.noise.slice(0, n);
    device.upload(x, rows.x + begin * count);
    if (rows.deviation) {
      const Tensor deviation = m_.deviation.slice(0, n);
      device.upload(deviation, rows.deviation + begin * count);
      noise(NoiseStream::Moments);
      ops_.drawLatents({.mean = x,
                        .deviation = deviation,
                        .z = z,
                        .scale = rows.scale,
                        .shift = rows.shift,
                        .y = x});
    }
    if (rows.noise) {
      device.upload(z, rows.noise + begin * count);
    } else {
      noise(NoiseStream::Training);
    }
    ops_.qSample({.x0 = x,
                  .z = z,
                  .signal = m_.signal.slice(0, n),
                  .noise = m_.sigma.slice(0, n),
                  .y = m_.noised.slice(0, n)});
  }

  // The views of n rows.
  ConditionActivations condition(int64_t n) const {
    ConditionActivations a = m_.condition;
    for (Tensor* tensor : {&a.timesteps, &a.labels, &a.frequencies, &a.hidden, &a.hiddenAct,
                           &a.embedded, &a.condition, &a.conditionAct}) {
      *tensor = tensor->slice(0, n);
    }
    return a;
  }
  EndActivations ends(int64_t n) const {
    return {.patches = m_.ends.patches.slice(0, n),
            .normed = m_.ends.normed.slice(0, n),
            .last = m_.ends.last.slice(0, n)};
  }
  Tensor blockModulation(int64_t block, int64_t n) const {
    const int64_t C = config_.hidden;
    return m_.modulation.slice(0, n).columns(6 * C * block, 6 * C);
  }
  Tensor finalModulation(int64_t n) const {
    const int64_t C = config_.hidden;
    return m_.modulation.slice(0, n).columns(6 * C * config_.depth, 2 * C);
  }

  void forward(int64_t n, const Checkpoint& checkpoint) {
    const DitLayers& layers = parameters_.layers();
    const Tensor index = m_.index.slice(0, n);
    conditionForward(ops_, layers, condition(n), m_.modulation.slice(0, n), checkpoint);
    embedForward(ops_, config_, layers, m_.noised.slice(0, n), index, ends(n),
                 m_.store.tokens(0).slice(0, n));
    for (int64_t i = 0; i < config_.depth; i++) {
      forwardBlock(i, n, m_.store.forward(i, n), checkpoint);
    }
    finalForward(ops_, config_, layers, m_.store.tokens(config_.depth).slice(0, n),
                 finalModulation(n), index, ends(n), m_.out.slice(0, n), {});
  }

  void forwardBlock(int64_t i, int64_t n, const BlockActivations& a, const Checkpoint& checkpoint) {
    if (checkpoint) checkpoint();
    blockForward(ops_, config_, parameters_.layers().blocks[static_cast<size_t>(i)],
                 blockModulation(i, n), m_.index.slice(0, n), a, checkpoint);
  }

  void lossAndGradient(int64_t n, int64_t globalBatch) {
    const Tensor terms = m_.terms.slice(0, n);
    ops_.loss({.model = m_.out.slice(0, n),
               .noise = m_.noise.slice(0, n),
               .x0 = m_.x.slice(0, n),
               .steps = m_.lossSteps.slice(0, n),
               .bound = options_.bound,
               .scale = 1.0f / static_cast<float>(globalBatch),
               .dModel = m_.dOut.slice(0, n),
               .terms = terms});
    std::vector<float> host(static_cast<size_t>(2 * n));
    ops_.backend().download(host.data(), terms);
    for (int64_t i = 0; i < n; i++) {
      const double mse = host[static_cast<size_t>(2 * i)];
      const double vb = host[static_cast<size_t>(2 * i + 1)];
      mse_ += mse;
      vb_ += vb;
      const auto quartile =
          static_cast<size_t>(4 * timesteps_[static_cast<size_t>(i)] / schedule_.size());
      quartileSum_[quartile] += mse + vb;
      quartileRows_[quartile]++;
    }
    rows_ += n;
  }

  void backward(int64_t n, const Checkpoint& checkpoint) {
    const DitLayers& layers = parameters_.layers();
    const Tensor index = m_.index.slice(0, n), dTokens = m_.dTokens.slice(0, n);
    const Tensor dConditionAct = m_.dConditionAct.slice(0, n);
    const ConditionActivations a = condition(n);
    dirty_ = true;
    ops_.backend().zero(dConditionAct);

    const FinalGradients final{.dLast = m_.final.dLast.slice(0, n),
                               .dNormed = m_.final.dNormed.slice(0, n),
                               .dModulation = m_.final.dModulation.slice(0, n)};
    finalBackward(ops_, config_, layers, m_.store.tokens(config_.depth).slice(0, n),
                  finalModulation(n), index, ends(n), final, m_.dOut.slice(0, n), dTokens);
    modulationBackward(ops_, layers.finalModulation, a, final.dModulation,
                       m_.dFinalModulationLow.slice(0, n), dConditionAct);

    const BlockGradients block{.dBranch = m_.block.dBranch.slice(0, n),
                               .dNormed = m_.block.dNormed.slice(0, n),
                               .dHidden = m_.block.dHidden.slice(0, n),
                               .dQkv = m_.block.dQkv.slice(0, n),
                               .dModulation = m_.block.dModulation.slice(0, n),
                               .dModulationLow = m_.block.dModulationLow.slice(0, n)};
    const auto replay = [&](int64_t i, const BlockActivations& activations) {
      forwardBlock(i, n, activations, checkpoint);
    };
    for (int64_t i = config_.depth - 1; i >= 0; i--) {
      if (checkpoint) checkpoint();
      const DitBlock& layer = layers.blocks[static_cast<size_t>(i)];
      blockBackward(ops_, config_, layer, blockModulation(i, n), index,
                    m_.store.backward(i, n, replay), block, dTokens, checkpoint);
      modulationBackward(ops_, layer.modulation, a, block.dModulation, block.dModulationLow,
                         dConditionAct);
    }
    embedBackward(ops_, layers, ends(n), dTokens, m_.dTokensLow.slice(0, n));
    conditionBackward(ops_, layers, a, dConditionAct, m_.conditionScratch.slice(0, n));
  }

  void update(const ApplyOptions& options, double gradNorm) {
    const bool clips = options.clipNorm > 0 && gradNorm > options.clipNorm;
    ops_.adamW({.param = parameters_.values,
                .grad = parameters_.gradients,
                .m = parameters_.firstMoment,
                .v = parameters_.secondMoment,
                .ema = parameters_.ema,
                .low = parameters_.low,
                .decays = parameters_.decays,
                .lr = options.lr,
                .beta1 = options_.beta1,
                .beta2 = options_.beta2,
                .eps = options_.eps,
                .weightDecay = options_.weightDecay,
                .emaDecay = options.emaDecay,
                .gradScale = clips ? static_cast<float>(options.clipNorm / gradNorm) : 1.0f,
                .step = step_ + 1});
    parameters_.changed();
    dirty_ = false;
  }

  StepResult means() const {
    StepResult result;
    const auto rows = static_cast<double>(rows_);
    result.rows = rows_;
    result.mse = mse_ / rows;
    result.vb = vb_ / rows;
    result.loss = result.mse + result.vb;
    for (size_t i = 0; i < 4; i++) {
      result.quartileLoss[i] = quartileRows_[i] > 0
                                   ? quartileSum_[i] / static_cast<double>(quartileRows_[i])
                                   : std::numeric_limits<double>::quiet_NaN();
    }
    return result;
  }

  Ops& ops_;
  const DitConfig config_;
  const TrainerOptions options_;
  const Precision precision_;
  const DType act_;
  const Schedule schedule_;
  const int64_t microBatch_;
  Parameters parameters_;
  DeviceBuffer activations_, norm_;
  MicroBatch m_;
  int64_t step_ = 0;

  // Of the step under way.
  std::vector<int64_t> timesteps_;  // of the micro-batch
  bool dirty_ = false;              // the gradients are not 0
  int64_t rows_ = 0;
  double mse_ = 0, vb_ = 0;
  std::array<double, 4> quartileSum_{};
  std::array<int64_t, 4> quartileRows_{};
};

Trainer::Trainer(Ops& ops, const DitConfig& config, const ScheduleConfig& schedule,
                 Precision precision, WeightSource& weights, const TrainerOptions& options,
                 const LoadProgress& progress)
    : state_(
          std::make_unique<State>(ops, config, schedule, precision, weights, options, progress)) {}
Trainer::~Trainer() = default;

TrainerInfo Trainer::info() const { return state_->info(); }
void Trainer::accumulate(const TrainingRows& rows, const Checkpoint& checkpoint) {
  state_->accumulate(rows, checkpoint);
}
StepResult Trainer::apply(const ApplyOptions& options) { return state_->apply(options); }
void Trainer::discard() { state_->discard(); }
std::unique_ptr<WeightSource> Trainer::values(Part part) { return state_->values(part); }
void Trainer::restore(int64_t step, const std::array<WeightSource*, 4>& parts) {
  state_->restore(step, parts);
}
std::unique_ptr<WeightSource> Trainer::gradients() { return state_->gradients(); }

}  // namespace dit
