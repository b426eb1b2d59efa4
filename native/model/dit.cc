#include "model/dit.h"

#include <algorithm>

namespace dit {

namespace {

constexpr int64_t kFrequencies = 256;

void checkConfig(const DitConfig& c) {
  const auto positive = [](const char* name, int64_t value) {
    DIT_CHECK(value >= 1 && value <= (int64_t{1} << 24), ErrorCode::Option, name,
              ": expected a positive integer, got ", value);
  };
  positive("depth", c.depth);
  positive("hidden", c.hidden);
  positive("heads", c.heads);
  positive("mlpHidden", c.mlpHidden);
  positive("patchSize", c.patch);
  positive("channels", c.channels);
  positive("latentSize", c.height);
  positive("latentSize", c.width);
  positive("numClasses", c.classes);
  DIT_CHECK(c.hidden % c.heads == 0, ErrorCode::Option, "heads: expected a divisor of hidden (",
            c.hidden, "), got ", c.heads);
  DIT_CHECK(c.hidden % 4 == 0, ErrorCode::Option,
            "hidden: expected a multiple of 4 (sin and cos of two axes), got ", c.hidden);
  DIT_CHECK(c.height % c.patch == 0 && c.width % c.patch == 0, ErrorCode::Option,
            "latentSize: expected multiples of patchSize (", c.patch, "), got ", c.height, " x ",
            c.width);
}

}  // namespace

Dit::Dit(Ops& ops, const DitConfig& config, WeightSource& weights, Precision precision,
         int64_t maxRows, const LoadProgress& progress)
    : ops_(ops),
      config_(config),
      precision_(precision),
      act_(precision == Precision::BF16 ? DType::BF16 : DType::F32),
      maxRows_(maxRows) {
  checkConfig(config);
  loadParameters(weights, progress);

  Arena measure;
  layOutActivations(measure);
  activations_ = DeviceBuffer(ops_.backend(), measure.peak());
  Arena arena(activations_.data(), activations_.bytes());
  layOutActivations(arena);
}

void Dit::loadParameters(WeightSource& weights, const LoadProgress& progress) {
  const std::vector<ParamSpec> params = ditParams(config_);
  int64_t total = 0, done = 0;
  size_t smallBytes = 0;  // of what stays as it is: biases and tables
  for (const ParamSpec& param : params) {
    total += param.shape.count();
    const bool table = param.init == Init::Fixed || param.name.rfind("y_embedder", 0) == 0;
    if (param.shape.rank() == 1 || table) {
      smallBytes += static_cast<size_t>(param.shape.count()) * sizeof(float) + Arena::kAlignment;
    }
  }
  parameters_ = DeviceBuffer(ops_.backend(), smallBytes);
  weightBytes_ = smallBytes;
  Arena arena(parameters_.data(), smallBytes);

  const auto advance = [&](int64_t count) {
    done += count;
    if (progress) progress(done, total);
  };
  size_t next = 0;
  const auto loadTensor = [&](Shape shape) {
    const ParamSpec& param = params[next++];
    Tensor tensor = arena.make(DType::F32, shape);
    const bool computed = param.init == Init::Fixed && !weights.has(param.name);
    ops_.backend().upload(
        tensor, computed ? param.fixed.data() : weights.read(param, /*keepBf16=*/false).data);
    advance(shape.count());
    return tensor;
  };
  const auto loadLinear = [&](int64_t rows, Precision precision) {
    LinearLayer layer;
    const ParamSpec& param = params[next++];
    const Tensor values = weights.read(param, precision == Precision::BF16);
    const int64_t out = param.shape[0];
    layer.weight = ops_.prepareLinear({.values = values.reshape({out, values.count() / out}),
                                       .rows = rows,
                                       .precision = precision});
    weightBytes_ += layer.weight->bytes();
    advance(values.count());
    layer.bias = loadTensor({out});
    return layer;
  };

  const int64_t T = config_.tokens();
  position_ = loadTensor({1, T, config_.hidden});
  patchEmbed_ = loadLinear(T, precision_);
  // The timestep's sinusoid needs more digits than bf16 has, and its products are tiny: always
  // fp32.
  timestep0_ = loadLinear(kModulationRows, Precision::F32);
  timestep2_ = loadLinear(kModulationRows, Precision::F32);
  labels_ = loadTensor({config_.labelRows(), config_.hidden});
  blocks_.resize(static_cast<size_t>(config_.depth));
  for (DitBlock& block : blocks_) {
    block.qkv = loadLinear(T, precision_);
    block.proj = loadLinear(T, precision_);
    block.fc1 = loadLinear(T, precision_);
    block.fc2 = loadLinear(T, precision_);
    block.modulation = loadLinear(kModulationRows, precision_);
  }
  finalLinear_ = loadLinear(T, precision_);
  finalModulation_ = loadLinear(kModulationRows, precision_);
}

void Dit::layOutActivations(Arena& arena) {
  const int64_t R = maxRows_, T = config_.tokens(), C = config_.hidden, p = config_.patch;
  a_.tokens = arena.make(act_, {R, T, C});
  a_.normed = arena.make(act_, {R, T, C});
  a_.attended = arena.make(act_, {R, T, C});
  // qkv, the MLP's hidden layer, the patches and the last layer's output are never alive together.
  const size_t shared = arena.mark();
  a_.qkv = arena.make(act_, {R, T, 3 * C});
  arena.release(shared);
  a_.mlp = arena.make(act_, {R, T, config_.mlpHidden});
  arena.release(shared);
  a_.patches = arena.make(act_, {R, T, config_.channels * p * p});
  arena.release(shared);
  a_.last = arena.make(DType::F32, {R, T, p * p * config_.outChannels()});
  arena.release(shared);

  const int64_t E = kModulationRows;
  c_.timesteps = arena.make(DType::F32, {E});
  c_.labels = arena.make(DType::I32, {E});
  c_.vectors = arena.make(DType::F32, {E, C});
  c_.frequencies = arena.make(DType::F32, {E, kFrequencies});
  c_.hidden = arena.make(DType::F32, {E, C});
  c_.embedded = arena.make(DType::F32, {E, C});
  c_.condition = arena.make(DType::F32, {E, C});
  c_.conditionAct = arena.make(act_, {E, C});
}

void Dit::modulate(const std::vector<Condition>& conditions, const Tensor& table,
                   const Checkpoint& checkpoint) {
  const int64_t C = config_.hidden, E = kModulationRows;
  DIT_CHECK(static_cast<int64_t>(conditions.size()) <= E, ErrorCode::Internal, "at most ", E,
            " conditions at once, got ", conditions.size());
  std::vector<float> timesteps(E, 0.0f), vectors(static_cast<size_t>(E * C), 0.0f);
  std::vector<int32_t> labels(E, 0);
  for (size_t i = 0; i < conditions.size(); i++) {
    const Condition& condition = conditions[i];
    DIT_CHECK(condition.label < config_.labelRows() && (condition.label >= 0 || condition.vector),
              ErrorCode::Option, "label: expected a class from 0 to ", config_.labelRows() - 1,
              ", got ", condition.label);
    timesteps[i] = condition.timestep;
    labels[i] = condition.label;
    if (condition.label < 0) std::copy_n(condition.vector, C, vectors.data() + i * C);
  }
  Backend& device = ops_.backend();
  device.upload(c_.timesteps, timesteps.data());
  device.upload(c_.labels, labels.data());
  device.upload(c_.vectors, vectors.data());

  const auto one = [](const Tensor& x) { return x.reshape({1, x.shape[0], x.shape[1]}); };
  const auto linear = [&](const LinearLayer& layer, const Tensor& x, const Tensor& y) {
    ops_.linear({.x = one(x), .weight = layer.weight.get(), .bias = layer.bias, .y = y});
  };
  ops_.timestepEmbedding({.t = c_.timesteps, .y = c_.frequencies});
  linear(timestep0_, c_.frequencies, one(c_.hidden));
  ops_.silu({.x = c_.hidden, .y = c_.hidden});
  linear(timestep2_, c_.hidden, one(c_.embedded));
  ops_.conditionEmbedding({.t = c_.embedded,
                           .table = labels_,
                           .label = c_.labels,
                           .vectors = c_.vectors,
                           .y = c_.condition});
  ops_.silu({.x = c_.condition, .y = c_.conditionAct});

  const Tensor out = one(table);
  for (int64_t i = 0; i < config_.depth; i++) {
    if (checkpoint) checkpoint();
    linear(blocks_[i].modulation, c_.conditionAct, out.columns(6 * C * i, 6 * C));
  }
  linear(finalModulation_, c_.conditionAct, out.columns(6 * C * config_.depth, 2 * C));
}

void Dit::forward(const Rows& rows, const Checkpoint& checkpoint, const Probe& probe) {
  const int64_t R = rows.entry.shape[0], C = config_.hidden;
  DIT_CHECK(R >= 1 && R <= maxRows_, ErrorCode::Internal, "expected 1 to ", maxRows_, " rows, got ",
            R);
  const auto active = [R](const Tensor& x) { return x.slice(0, R); };
  const auto show = [&](const std::string& name, const Tensor& value) {
    if (probe) probe(name, value);
  };
  const Tensor tokens = active(a_.tokens);

  ops_.patchify({.x = rows.x, .lane = rows.lane, .patch = config_.patch, .y = active(a_.patches)});
  ops_.linear({.x = active(a_.patches),
               .weight = patchEmbed_.weight.get(),
               .bias = patchEmbed_.bias,
               .y = tokens,
               .epilogue = Epilogue::BiasResidual,
               .residual = position_});
  show("tokens", tokens);

  for (int64_t i = 0; i < config_.depth; i++) {
    if (checkpoint) checkpoint();
    blockForward(blocks_[i], rows.entry, rows.table.columns(6 * C * i, 6 * C), R, checkpoint);
    show("block" + std::to_string(i), tokens);
  }

  const Tensor modulation = rows.table.columns(6 * C * config_.depth, 2 * C);
  ops_.layerNormModulate({.x = tokens,
                          .shift = {modulation.columns(0, C), rows.entry},
                          .scale = {modulation.columns(C, C), rows.entry},
                          .y = active(a_.normed)});
  ops_.linear({.x = active(a_.normed),
               .weight = finalLinear_.weight.get(),
               .bias = finalLinear_.bias,
               .y = active(a_.last)});
  show("final_layer", active(a_.last));
  ops_.unpatchify({.x = active(a_.last), .patch = config_.patch, .y = rows.out});
}

}  // namespace dit
