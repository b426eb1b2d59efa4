#include "model/dit.h"

#include <algorithm>

namespace dit {

namespace {

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
  if (parameters_.bytes() < smallBytes) parameters_ = DeviceBuffer(ops_.backend(), smallBytes);
  weightBytes_ = smallBytes;
  Arena arena(parameters_.data(), smallBytes);

  const auto advance = [&](int64_t count) {
    done += count;
    if (progress) progress(done, total);
  };
  size_t next = 0;
  const auto loadTensor = [&](Tensor& tensor) {
    const ParamSpec& param = params[next++];
    tensor = arena.make(DType::F32, param.shape);
    const bool computed = param.init == Init::Fixed && !weights.has(param.name);
    ops_.backend().upload(
        tensor, computed ? param.fixed.data() : weights.read(param, /*keepBf16=*/false).data);
    advance(param.shape.count());
  };
  const auto loadLinear = [&](LinearLayer& layer, LayerUse use) {
    const ParamSpec& param = params[next++];
    const Precision precision = precisionOf(use, precision_);
    const Tensor values = weights.read(param, precision == Precision::BF16);
    const int64_t out = param.shape[0];
    layer.weight =
        ops_.prepareLinear({.values = values.reshape({out, values.count() / out}),
                            .rows = use == LayerUse::Tokens ? config_.tokens() : kModulationRows,
                            .precision = precision});
    weightBytes_ += layer.weight->bytes();
    advance(values.count());
    loadTensor(layer.bias);
  };
  layers_.blocks.resize(static_cast<size_t>(config_.depth));
  for (DitBlock& block : layers_.blocks) block.tf32 = precision_ == Precision::TF32;
  visitLayers(
      layers_, [&](Tensor& table, Tensor&) { loadTensor(table); }, loadLinear);
}

void Dit::layOutActivations(Arena& arena) {
  const int64_t R = maxRows_, T = config_.tokens(), C = config_.hidden, p = config_.patch;
  tokens_ = arena.make(act_, {R, T, C});
  block_.normed1 = block_.normed2 = ends_.normed = arena.make(act_, {R, T, C});
  block_.attended = arena.make(act_, {R, T, C});
  // qkv, the MLP's hidden layer, the patches and the last layer's output are never alive together.
  const size_t shared = arena.mark();
  block_.qkv = arena.make(act_, {R, T, 3 * C});
  arena.release(shared);
  block_.hidden = arena.make(act_, {R, T, config_.mlpHidden});
  arena.release(shared);
  ends_.patches = arena.make(act_, {R, T, config_.channels * p * p});
  arena.release(shared);
  ends_.last = arena.make(DType::F32, {R, T, p * p * config_.outChannels()});
  arena.release(shared);
  condition_ = layOutCondition(config_, act_, kModulationRows, /*vectors=*/true, arena);
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
  device.upload(condition_.timesteps, timesteps.data());
  device.upload(condition_.labels, labels.data());
  device.upload(condition_.vectors, vectors.data());
  conditionForward(ops_, layers_, condition_, table, checkpoint);
}

void Dit::forward(const Rows& rows, const Checkpoint& checkpoint, const Probe& probe) {
  const int64_t R = rows.entry.shape[0], C = config_.hidden;
  DIT_CHECK(R >= 1 && R <= maxRows_, ErrorCode::Internal, "expected 1 to ", maxRows_, " rows, got ",
            R);
  const auto active = [R](const Tensor& x) { return x.slice(0, R); };
  const Tensor tokens = active(tokens_);
  const auto show = [&](const std::string& name) {
    if (probe) probe(name, tokens);
  };
  const BlockActivations block{.input = tokens,
                               .middle = tokens,
                               .output = tokens,
                               .normed1 = active(block_.normed1),
                               .normed2 = active(block_.normed2),
                               .qkv = active(block_.qkv),
                               .attended = active(block_.attended),
                               .hidden = active(block_.hidden)};
  const EndActivations ends{
      .patches = active(ends_.patches), .normed = active(ends_.normed), .last = active(ends_.last)};

  embedForward(ops_, config_, layers_, rows.x, rows.lane, ends, tokens);
  show("tokens");
  for (int64_t i = 0; i < config_.depth; i++) {
    if (checkpoint) checkpoint();
    blockForward(ops_, config_, layers_.blocks[static_cast<size_t>(i)],
                 rows.table.columns(6 * C * i, 6 * C), rows.entry, block, checkpoint);
    show("block" + std::to_string(i));
  }
  finalForward(ops_, config_, layers_, tokens, rows.table.columns(6 * C * config_.depth, 2 * C),
               rows.entry, ends, rows.out, probe);
}

}  // namespace dit
