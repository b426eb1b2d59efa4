// Whole models at the sizes that bench/peers/torch_runs.py times in PyTorch, under the same labels:
// a forward, a sampling step, a training step, a decode.
#include <memory>
#include <string>
#include <vector>

#include "beside_torch.h"
#include "dit_model.h"
#include "harness.h"
#include "model/trainer.h"
#include "model/vae.h"
#include "tuned.h"

namespace dit::test {
namespace {

struct Images {
  int64_t count, pixels;
};
struct Scale {
  std::string name, model, vae;
  DitConfig config;
  VaeConfig autoencoder;
  std::vector<Images> sampling, decodes;  // guided: two rows an image
  int64_t batch = 0, microBatch = 0;      // of a training step
  int64_t batchPixels = 0;
};

std::vector<Scale> scales() {
  Scale xl;
  xl.name = "xl";
  xl.model = "dit-xl2";
  xl.vae = "vae";
  xl.sampling = {{32, 256}, {1, 256}, {8, 512}};
  xl.decodes = {{1, 256}, {1, 512}, {8, 256}};
  xl.batch = 256;
  xl.microBatch = 64;
  xl.batchPixels = 256;

  Scale tiny;
  tiny.name = "tiny";
  tiny.model = "dit-tiny";
  tiny.vae = "vae-tiny";
  tiny.config = {.depth = 2, .hidden = 144, .heads = 2, .mlpHidden = 576};
  tiny.config.classes = 10;
  tiny.autoencoder.blockOutChannels = {32, 32, 32, 32};
  tiny.autoencoder.groups = 8;
  tiny.sampling = {{2, 64}, {1, 64}};
  tiny.decodes = {{1, 64}};
  tiny.batch = 4;
  tiny.microBatch = 2;
  tiny.batchPixels = 64;
  return {xl, tiny};
}

DitConfig resized(DitConfig config, int64_t pixels) {
  config.height = config.width = pixels / 8;
  return config;
}

// Twice the multiply-adds of one image's forward, without the ends, as torch_model.py counts them.
double forwardFlops(const DitConfig& c) {
  const auto C = static_cast<double>(c.hidden), T = static_cast<double>(c.tokens());
  const auto M = static_cast<double>(c.mlpHidden);
  const double block = T * (4 * C * C + 2 * C * M) + 2 * T * T * C;
  return 2 * static_cast<double>(c.depth) * (block + 6 * C * C);
}

void forward(Test& test, const std::string& label, Dit& dit, int64_t rows) {
  const DitConfig& c = dit.config();
  const DeviceTensor table = test.output(DType::F32, {Dit::kModulationRows, c.modulationSize()});
  std::vector<Dit::Condition> conditions;
  for (int64_t i = 0; i < Dit::kModulationRows; i++) {
    conditions.push_back({500, static_cast<int32_t>(i % c.classes), nullptr});
  }
  dit.modulate(conditions, table, {});
  std::vector<int32_t> lane, entry;
  for (int64_t i = 0; i < rows; i++) {
    lane.push_back(static_cast<int32_t>(i / 2));
    entry.push_back(static_cast<int32_t>(i % Dit::kModulationRows));
  }
  const DeviceTensor x = drawn(test, DType::F32, {rows / 2, c.channels, c.height, c.width});
  const DeviceTensor out = test.output(DType::F32, {rows, c.outChannels(), c.height, c.width});
  const Dit::Rows arguments{
      .x = x, .lane = test.upload(lane), .table = table, .entry = test.upload(entry), .out = out};
  test.bench(label, forwardFlops(c) * static_cast<double>(rows), 0,
             [&] { dit.forward(arguments, {}); });
}

// A round of the sampler: modulation where the next window begins, forward, guidance and DDIM.
void step(Test& test, const std::string& label, Model& model, int64_t images) {
  const auto plan = std::make_shared<const Plan>(
      makePlan({}, {.sampler = SamplerKind::Ddim, .spacing = "1000", .learnedVariance = true}));
  Sampler& sampler = model.sampler;
  std::vector<int64_t> lanes;
  const auto restart = [&] {
    for (const int64_t lane : lanes) sampler.stop(lane);
    lanes.clear();
    for (int64_t i = 0; i < images; i++) {
      LaneSpec spec;
      spec.plan = plan;
      spec.label = static_cast<int32_t>(i % model.config.classes);
      spec.seed = static_cast<uint64_t>(i);
      spec.guidance = 4;
      spec.guidanceChannels = 3;
      lanes.push_back(sampler.start(std::move(spec)));
    }
  };
  restart();
  test.bench(label, forwardFlops(model.config) * static_cast<double>(2 * images), 0, [&] {
    if (sampler.finished(lanes[0])) restart();
    sampler.round({});
  });
}

void sampling(Test& test, const Scale& scale, Precision precision) {
  for (const auto& [images, pixels] : scale.sampling) {
    const DitConfig config = resized(scale.config, pixels);
    RepeatedWeights weights(ditParams(config));
    Model model(test, config, weights, precision, images);
    const std::string shape =
        detail::concat(2 * images, "x", pixels, "px ", precisionName(precision));
    forward(test, detail::concat(scale.model, ".forward ", shape), model.dit, 2 * images);
    step(test, detail::concat(scale.model, ".step ", shape), model, images);
  }
}

// A step with kernels that start while those before them end, beside one without.
void stepVariants(Test& test, const Scale& scale, const Images& given) {
  const DitConfig config = resized(scale.config, given.pixels);
  const std::string device = test.options().device;
  std::vector<std::string> choices;
  if (device.starts_with("cuda")) choices.push_back("launch=dependent");
  benchVariants(test, choices, [&](Test& other) {
    RepeatedWeights weights(ditParams(config));
    Model model(other, config, weights, Precision::BF16, given.count);
    const std::string label =
        detail::concat(scale.model, ".step ", 2 * given.count, "x", given.pixels, "px bf16");
    step(other, label, model, given.count);
  });
}

// Forward and backward of all micro-batches, gradient norm, AdamW and the moving average.
void training(Test& test, const Scale& scale, Precision precision) {
  const DitConfig config = resized(scale.config, scale.batchPixels);
  const std::vector<float> x =
      drawn(test, DType::F32, {scale.batch, config.latentCount()}).download().as<float>();
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < scale.batch; i++) {
    labels.push_back(static_cast<int32_t>(i % config.classes));
  }
  for (const int64_t every : {0, 1}) {
    RepeatedWeights weights(ditParams(config));
    Trainer trainer(
        test.ops(), config, {}, precision, weights,
        {.checkpointing = {every}, .microBatch = scale.microBatch, .globalBatch = scale.batch});
    const TrainingRows rows{
        .n = scale.batch, .x = x.data(), .labels = labels.data(), .globalBatch = scale.batch};
    const std::string label =
        detail::concat(scale.model, every == 0 ? ".train " : ".train-checkpointed ", scale.batch,
                       "x", scale.batchPixels, "px ", precisionName(precision));
    test.bench(label, 3 * forwardFlops(config) * static_cast<double>(scale.batch), 0, [&] {
      trainer.accumulate(rows, {});
      trainer.apply({.lr = 1e-4f});
    });
    const TrainerInfo info = trainer.info();
    std::printf("%s: parameters %.2f GB, activations %.2f GB\n", label.c_str(),
                static_cast<double>(info.parameterBytes) * 1e-9,
                static_cast<double>(info.activationBytes) * 1e-9);
  }
}

// From latents on the host to bytes on the host.
void decoding(Test& test, const Scale& scale, Precision precision) {
  RepeatedWeights weights(vaeParams(scale.autoencoder));
  Vae vae(test.ops(), scale.autoencoder, weights, precision);
  for (const auto& [images, pixels] : scale.decodes) {
    const int64_t side = pixels / vae.downscale();
    const std::vector<float> latents = test.random(DType::F32, {images, 4, side, side}).as<float>();
    std::vector<uint8_t> rgb8(static_cast<size_t>(images * pixels * pixels * 3));
    test.bench(
        detail::concat(scale.vae, ".decode ", images, "x", pixels, "px ", precisionName(precision)),
        0, 0, [&] {
          vae.decode({.n = images,
                      .height = side,
                      .width = side,
                      .latents = latents.data(),
                      .rgb8 = rgb8.data()},
                     {});
        });
  }
}

DIT_CASES(modelBenchCases) {
  using Run = std::function<void(Test&, const Scale&, Precision)>;
  const std::pair<const char*, Run> parts[] = {
      {"sampling", sampling}, {"training", training}, {"decode", decoding}};
  for (const Scale& scale : scales()) {
    for (const Images& images : scale.sampling) {
      if (images.pixels != scale.batchPixels) continue;
      addCase(CaseKind::Bench, detail::concat("variants/", scale.name, "/step-", images.count),
              [=](Test& test) {
                if (!hasTimeFor(test, scale.name) || !hasPrecision(test, Precision::BF16)) return;
                stepVariants(test, scale, images);
              });
    }
    for (const auto& [name, run] : parts) {
      for (const Precision precision : {Precision::BF16, Precision::TF32}) {
        addCase(CaseKind::Bench,
                detail::concat("model/", scale.name, "/", name, "/", precisionName(precision)),
                [=, run = run](Test& test) {
                  if (!hasTimeFor(test, scale.name) || !hasPrecision(test, precision)) return;
                  run(test, scale, precision);
                });
      }
    }
  }
}

}  // namespace
}  // namespace dit::test
