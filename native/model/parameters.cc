#include "model/parameters.h"

#include <algorithm>

#include "core/arena.h"

namespace dit {

// Values of one array under the parameters' names; the position embedding is the same in all.
class Parameters::Source : public WeightSource {
 public:
  Source(Parameters& parameters, const Tensor& array) : parameters_(parameters), array_(array) {}

  using WeightSource::read;
  bool has(const std::string& name) const override {
    return name == parameters_.position_.name || find(name) != parameters_.slots_.end();
  }
  Shape shape(const std::string& name) const override {
    return name == parameters_.position_.name ? parameters_.position_.shape : slot(name).spec.shape;
  }
  Tensor read(const std::string& name, bool) override {
    const Tensor device = name == parameters_.position_.name
                              ? parameters_.layers_.position
                              : part(array_, slot(name)).reshape(slot(name).spec.shape);
    host_.resize(static_cast<size_t>(device.count()));
    parameters_.ops_.backend().download(host_.data(), device);
    return {host_.data(), DType::F32, device.shape};
  }

 private:
  std::vector<Slot>::const_iterator find(const std::string& name) const {
    return std::find_if(parameters_.slots_.begin(), parameters_.slots_.end(),
                        [&](const Slot& slot) { return slot.spec.name == name; });
  }
  const Slot& slot(const std::string& name) const {
    const auto found = find(name);
    DIT_CHECK(found != parameters_.slots_.end(), ErrorCode::Internal, "no parameter ", name);
    return *found;
  }

  Parameters& parameters_;
  Tensor array_;
  std::vector<float> host_;
};

std::vector<Parameters::Slot> Parameters::layOut(const DitConfig& config) {
  std::vector<Slot> slots;
  int64_t offset = 0;
  for (ParamSpec& spec : ditParams(config)) {
    if (spec.init == Init::Fixed) continue;
    const int64_t granules = (spec.shape.count() + kParamGranule - 1) / kParamGranule;
    slots.push_back({std::move(spec), offset});
    offset += granules * kParamGranule;
  }
  return slots;
}

int64_t Parameters::count(const std::vector<Slot>& slots) {
  const Slot& last = slots.back();
  const int64_t end = last.offset + last.spec.shape.count();
  return (end + kParamGranule - 1) / kParamGranule * kParamGranule;
}

Tensor Parameters::part(const Tensor& array, const Slot& slot) {
  return array.slice(slot.offset, slot.spec.shape.count());
}

size_t Parameters::bytes(const DitConfig& config, Precision precision) {
  const auto n = static_cast<size_t>(count(layOut(config)));
  return n * (5 * sizeof(float) + (precision == Precision::BF16 ? 2 : 0)) + n / kParamGranule;
}

Parameters::Parameters(Ops& ops, const DitConfig& config, Precision precision, int64_t rows)
    : ops_(ops), slots_(layOut(config)), position_(ditParams(config).front()) {
  const int64_t n = count(slots_);
  const auto makeArrays = [&](Arena& arena) {
    for (Tensor* array : {&values, &gradients, &firstMoment, &secondMoment, &ema}) {
      *array = arena.make(DType::F32, {n});
    }
    if (precision == Precision::BF16) low = arena.make(DType::BF16, {n});
    decays = arena.make(DType::U8, {n / kParamGranule});
    layers_.position = arena.make(DType::F32, position_.shape);
  };
  Arena measure;
  makeArrays(measure);
  memory_ = DeviceBuffer(ops.backend(), measure.peak());
  Arena arena(memory_.data(), memory_.bytes());
  makeArrays(arena);

  size_t next = 0;
  const auto table = [&](Tensor& tensor, Tensor& gradient) {
    if (&tensor == &layers_.position) return;
    const Slot& slot = slots_[next++];
    tensor = part(values, slot).reshape(slot.spec.shape);
    gradient = part(gradients, slot).reshape(slot.spec.shape);
  };
  const auto linear = [&](LinearLayer& layer, LayerUse use) {
    const Slot& slot = slots_[next++];
    const int64_t out = slot.spec.shape[0];
    const Shape matrix{out, slot.spec.shape.count() / out};
    const Tensor& array = precisionOf(use, precision) == Precision::BF16 ? low : values;
    layer.weight =
        ops.prepareTrainedLinear({.values = part(array, slot).reshape(matrix),
                                  .rows = use == LayerUse::Tokens ? rows * config.tokens() : rows,
                                  .precision = precisionOf(use, precision)});
    layer.dWeight = part(gradients, slot).reshape(matrix);
    weights_.push_back(layer.weight.get());
    table(layer.bias, layer.dBias);
  };
  layers_.blocks.resize(static_cast<size_t>(config.depth));
  for (DitBlock& block : layers_.blocks) block.tf32 = precision == Precision::TF32;
  visitLayers(layers_, table, linear);
}

void Parameters::start(WeightSource& weights, bool decayAll, const LoadProgress& progress) {
  Backend& device = ops_.backend();
  for (const Tensor& array : {values, gradients, firstMoment, secondMoment, ema}) {
    device.zero(array);
  }
  std::vector<uint8_t> decaying(static_cast<size_t>(decays.count()), 0);
  for (const Slot& slot : slots_) {
    const int64_t begin = slot.offset / kParamGranule;
    const int64_t granules = (slot.spec.shape.count() + kParamGranule - 1) / kParamGranule;
    if (slot.spec.decays || decayAll) std::fill_n(decaying.begin() + begin, granules, 1);
  }
  device.upload(decays, decaying.data());
  const bool stored = weights.has(position_.name);
  device.upload(layers_.position,
                stored ? weights.read(position_, false).data : position_.fixed.data());
  load(values, weights, progress);
  load(ema, weights, {});
  refresh();
}

void Parameters::load(const Tensor& array, WeightSource& weights, const LoadProgress& progress) {
  int64_t done = 0;
  for (const Slot& slot : slots_) {
    const Tensor host = weights.read(slot.spec, /*keepBf16=*/false);
    ops_.backend().upload(part(array, slot), host.data);
    done += slot.spec.shape.count();
    if (progress) progress(done, count(slots_));
  }
}

void Parameters::refresh() {
  if (low) ops_.cast({.x = values, .y = low});
  changed();
}

void Parameters::changed() {
  for (PreparedWeight* weight : weights_) weight->changed();
}

std::unique_ptr<WeightSource> Parameters::source(const Tensor& array) {
  return std::make_unique<Source>(*this, array);
}

}  // namespace dit
