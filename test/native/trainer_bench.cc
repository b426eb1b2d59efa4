// What a training step costs, and what checkpointing saves and costs: DiT-S/2 and DiT-B/2 at
// 32 x 32 x 4 latents, and the demo's model. Rates count the operations of products and attention,
// without replays.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "forwarding_backend.h"
#include "harness.h"
#include "model/dit_config.h"
#include "model/trainer.h"
#include "ops/backend.h"

namespace dit::test {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Notes when the loss is calculated, which is where the forward ends, and what is spent outside
// the products and attention.
class PhaseBackend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  double lossAt = 0, products = 0;

  void loss(const LossArgs& args) override {
    inner().loss(args);
    lossAt = now();
  }
  void linear(const LinearArgs& args) override {
    timed([&] { inner().linear(args); });
  }
  void linearBackward(const LinearBackwardArgs& args) override {
    timed([&] { inner().linearBackward(args); });
  }
  void attention(const AttentionArgs& args) override {
    timed([&] { inner().attention(args); });
  }
  void attentionBackward(const AttentionBackwardArgs& args) override {
    timed([&] { inner().attentionBackward(args); });
  }

 private:
  template <typename Work>
  void timed(const Work& work) {
    const double begin = now();
    work();
    products += now() - begin;
  }
};

// Multiply-adds counted as two, of one image's forward.
double forwardFlops(const DitConfig& c, double attention) {
  const auto C = static_cast<double>(c.hidden), T = static_cast<double>(c.tokens());
  const auto M = static_cast<double>(c.mlpHidden), depth = static_cast<double>(c.depth);
  const auto patch = static_cast<double>(c.patch * c.patch);
  const double block = 2 * T * (4 * C * C + 2 * C * M) + attention * T * T * C + 12 * C * C;
  const double ends = 2 * T * C * patch * static_cast<double>(c.channels + c.outChannels());
  return depth * block + ends + 4 * C * C;
}

struct Measured {
  double step = 1e9, forward = 1e9, apply = 1e9, products = 1e9;
};

void run(Test& test, const char* name, DitConfig config, int64_t rows) {
  for (const Precision precision : {Precision::F32, Precision::BF16}) {
    if (!test.backend().supports(precision)) continue;
    const auto weights = initialWeights(ditParams(config), 1);
    const Values x = test.random(DType::F32, {rows, config.latentCount()});
    const std::vector<float> values = x.as<float>();
    const std::vector<int32_t> labels(static_cast<size_t>(rows), 1);
    double plainStep = 0, share = 0;
    size_t plainBytes = 0;
    for (const int64_t every : {0, 1, 4}) {
      auto* phases = new PhaseBackend(openBackend({.device = "cpu"}));
      Ops ops{std::unique_ptr<Backend>(phases)};
      Trainer trainer(ops, config, ScheduleConfig{}, precision, *weights,
                      {.bound = config.learnSigma,
                       .checkpointing = {every},
                       .microBatch = rows,
                       .globalBatch = rows});
      const TrainingRows batch{
          .n = rows, .x = values.data(), .labels = labels.data(), .globalBatch = rows};
      Measured best;
      for (int i = 0; i < 7; i++) {
        phases->products = 0;
        const double begin = now();
        trainer.accumulate(batch, {});
        const double end = now();
        trainer.apply({.lr = 1e-4f});
        best.apply = std::min(best.apply, now() - end);
        if (i == 0) continue;  // compiles and packs
        if (end - begin < best.step) {
          best.step = end - begin;
          best.products = phases->products;
        }
        best.forward = std::min(best.forward, phases->lossAt - begin);
      }
      if (every == 0) {
        plainStep = best.step;
        share = best.forward / best.step;
        plainBytes = trainer.info().activationBytes;
      }
      // The backward has twice the products of the forward, and attention's has five for its two.
      const double flops =
          static_cast<double>(rows) *
          (3 * forwardFlops(config, 0) + (forwardFlops(config, 14) - forwardFlops(config, 0)));
      const double whole = best.step + best.apply;
      std::printf(
          "%s %s, %2lld rows, every %lld: activations %6.1f MiB (%3.0f %%), forward %6.1f ms, "
          "forward+backward %7.1f ms (x %.3f, allowed x %.3f), apply %5.1f ms, %6.1f images/s, "
          "%5.0f GFLOP/s, %2.0f %% outside products\n",
          name, precisionName(precision), static_cast<long long>(rows),
          static_cast<long long>(every),
          static_cast<double>(trainer.info().activationBytes) / (1 << 20),
          100.0 * static_cast<double>(trainer.info().activationBytes) /
              static_cast<double>(plainBytes),
          1e3 * best.forward, 1e3 * best.step, best.step / plainStep, 1.05 * (1 + share),
          1e3 * best.apply, static_cast<double>(rows) / whole, flops / whole * 1e-9,
          100 * (1 - best.products / whole));
    }
  }
}

DitConfig model(int64_t depth, int64_t hidden, int64_t heads) {
  return {.depth = depth, .hidden = hidden, .heads = heads, .mlpHidden = 4 * hidden, .patch = 2};
}

DIT_BENCH("bench/trainer/S2") { run(test, "DiT-S/2", model(12, 384, 6), 16); }
DIT_BENCH("bench/trainer/B2") { run(test, "DiT-B/2", model(12, 768, 12), 8); }
DIT_BENCH("bench/trainer/demo") {
  DitConfig demo = model(6, 128, 4);
  demo.patch = 4;
  demo.channels = 1;
  demo.classes = 10;
  demo.learnSigma = false;
  run(test, "demo", demo, 128);
}

}  // namespace
}  // namespace dit::test
