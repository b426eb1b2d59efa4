// DiT-XL/2 at its full size, with the listed random weights: the reference's numbers at 256 and 512
// pixels, and what bf16 costs.
#include <string>
#include <vector>

#include "dit_model.h"
#include "fixture.h"
#include "harness.h"
#include "naive_bf16.h"
#include "prng_weights.h"

namespace dit::test {
namespace {

// One evaluation with a table of the modulation; gives out, and what `probe` asks for.
std::vector<float> evaluate(Ops& ops, const DitConfig& config, Precision precision,
                            const Fixture& file, const Probe& probe = {}) {
  PrngWeights weights("full_size/dit_xl2.json");
  const std::vector<float> x = floats(file.at("x")), t = floats(file.at("t"));
  const std::vector<int32_t> y = labels(file.at("y"));
  const int64_t R = static_cast<int64_t>(y.size());
  Dit dit(ops, config, weights, precision, R, {});

  const auto make = [&](DeviceBuffer& memory, DType dtype, Shape shape) {
    memory = DeviceBuffer(ops.backend(), static_cast<size_t>(shape.count()) * dtypeSize(dtype));
    return Tensor(memory.data(), dtype, shape);
  };
  DeviceBuffer buffers[4];
  const Tensor table =
      make(buffers[0], DType::F32, {Dit::kModulationRows, config.modulationSize()});
  const Tensor input =
      make(buffers[1], DType::F32, {R, config.channels, config.height, config.width});
  const Tensor rows = make(buffers[2], DType::I32, {R});
  const Tensor out =
      make(buffers[3], DType::F32, {R, config.outChannels(), config.height, config.width});

  std::vector<Dit::Condition> conditions;
  std::vector<int32_t> index;
  for (int64_t i = 0; i < R; i++) {
    conditions.push_back({t[i], y[i], nullptr});
    index.push_back(static_cast<int32_t>(i));
  }
  dit.modulate(conditions, table, {});
  ops.backend().upload(input, x.data());
  ops.backend().upload(rows, index.data());
  dit.forward({.x = input, .lane = rows, .table = table, .entry = rows, .out = out}, {}, probe);
  std::vector<float> values(static_cast<size_t>(out.count()));
  ops.backend().download(values.data(), out);
  return values;
}

void expectFixture(Test& test, const Fixture& file, const std::string& name,
                   const std::vector<float>& got) {
  const Tensor& want = file.at(name);
  const Tolerance tolerance = suggestedTolerance(file.name(), name);
  EXPECT(static_cast<int64_t>(got.size()) == want.count(), name, ": ", got.size(), " values");
  const Tolerance error = difference(got.data(), want.as<float>(), want.count());
  EXPECT(error.relL2 <= tolerance.relL2 && error.maxAbs <= tolerance.maxAbs, name, ": rel L2 ",
         error.relL2, " (", tolerance.relL2, "), max abs ", error.maxAbs, " (", tolerance.maxAbs,
         ")");
}

DIT_FULL_CASE("full/dit-xl-2/fp32/256") {
  const Fixture file("full_size/dit_xl2.safetensors");
  const Tensor& tokens = file.at("token_index");
  int probed = 0;
  const Probe probe = [&](const std::string& name, const Tensor& value) {
    if (!file.has("act." + name)) return;
    probed++;
    const int64_t R = value.shape[0], T = value.shape[1], C = value.shape[2];
    std::vector<float> all(static_cast<size_t>(value.count())), kept;
    test.backend().download(all.data(), value);
    for (int64_t r = 0; r < R; r++) {
      for (int64_t k = 0; k < tokens.count(); k++) {
        const float* token = &all[(r * T + tokens.as<int64_t>()[k]) * C];
        kept.insert(kept.end(), token, token + C);
      }
    }
    expectFixture(test, file, "act." + name, kept);
  };
  expectFixture(test, file, "out", evaluate(test.ops(), DitConfig(), Precision::F32, file, probe));
  EXPECT(probed == 6, probed);
}

DIT_FULL_CASE("full/dit-xl-2/fp32/512") {
  DitConfig config;
  config.height = config.width = 64;
  const Fixture file("full_size/dit_xl2_512.safetensors");
  expectFixture(test, file, "out", evaluate(test.ops(), config, Precision::F32, file));
}

DIT_FULL_CASE("full/dit-xl-2/bf16/256") {
  if (!test.backend().supports(Precision::BF16)) return;
  const Fixture file("full_size/dit_xl2.safetensors");
  const std::vector<float> truth = floats(file.at("out_f64"));
  const std::vector<double> want(truth.begin(), truth.end());
  const auto error = [&](const std::vector<float>& got) {
    return relativeL2({got.begin(), got.end()}, want);
  };
  const double ours = error(evaluate(test.ops(), DitConfig(), Precision::BF16, file));
  Ops naiveOps(std::make_unique<NaiveBf16Backend>(
      openBackend({.device = test.options().device, .threads = test.options().threads})));
  const double naive = error(evaluate(naiveOps, DitConfig(), Precision::F32, file));
  EXPECT(ours <= 2 * naive && naive < 0.1, ours, " against ", naive, " of the naive run");
}

}  // namespace
}  // namespace dit::test
