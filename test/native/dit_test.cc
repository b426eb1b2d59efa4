// The DiT forward: against the reference's fixtures, and against the oracle at sizes they lack.
#include "model/dit.h"

#include "dit_model.h"
#include "dit_oracle.h"
#include "fixture.h"
#include "harness.h"

namespace dit::test {
namespace {

void expectClose(Test& test, const std::string& fixture, const Fixture& file,
                 const std::string& tensor, const float* got, int64_t offset, int64_t count) {
  const Tolerance limit = suggestedTolerance(fixture, tensor);
  const Tolerance off = difference(got, file.at(tensor).as<float>() + offset, count);
  EXPECT(off.relL2 <= limit.relL2 && off.maxAbs <= limit.maxAbs, fixture, " ", tensor, ": rel L2 ",
         off.relL2, " (", limit.relL2, "), max abs ", off.maxAbs, " (", limit.maxAbs, ")");
}

DIT_CASES(fixtureCases) {
  for (const std::string name : {"a96h4", "b144h2", "micro24"}) {
    const std::string path = "dit_tiny_forward/" + name + "/";
    addCase(CaseKind::Plain, "dit/fixture/" + name, [=](Test& test) {
      const Fixture file(path + "forward.safetensors");
      FixtureWeights weights(path + "model.safetensors");
      Model model(test, fixtureConfig(name), weights, Precision::F32, 4);
      const int64_t perRow = file.at("out").count() / file.at("out").shape[0];
      const std::vector<float> x = floats(file.at("x"));
      const std::vector<int32_t> y = labels(file.at("y"));

      const auto out = model.denoise(x, floats(file.at("t")), y);
      expectClose(test, path + "forward.safetensors", file, "out", out.data(), 0,
                  file.at("out").count());
      const auto fractional = model.denoise(x, floats(file.at("t_fractional")), y);
      expectClose(test, path + "forward.safetensors", file, "out_t_fractional", fractional.data(),
                  0, file.at("out").count());

      // forward_with_cfg takes the first half of x for both halves; the first half of its result
      // is the guided output with the conditional rest.
      const int64_t half = file.at("cfg.x").shape[0] / 2;
      const std::vector<float> both = floats(file.at("cfg.x")), t = floats(file.at("cfg.t"));
      const std::vector<int32_t> classes = labels(file.at("cfg.y"));
      const std::vector<float> first(both.begin(), both.begin() + both.size() / 2);
      struct Guided {
        const char* tensor;
        float scale;
        int32_t channels;
      };
      for (const Guided& guided :
           {Guided{"cfg.out_scale4", 4, 3}, Guided{"cfg.out_scale1p5", 1.5, 3},
            Guided{"cfg_all.out_scale4", 4, 4}}) {
        const auto got =
            model.denoise(first, {t.begin(), t.begin() + half},
                          {classes.begin(), classes.begin() + half}, guided.scale, guided.channels);
        expectClose(test, path + "forward.safetensors", file, guided.tensor, got.data(), 0,
                    half * perRow);
      }
    });
  }

  // bf16: at most twice the error of a naive run in bf16.
  addCase(CaseKind::Plain, "dit/bf16", [](Test& test) {
    if (!test.backend().supports(Precision::BF16)) return;
    const DitConfig config = fixtureConfig("a96h4");
    const std::string path = "dit_tiny_forward/a96h4/";
    const Fixture file(path + "forward.safetensors");
    FixtureWeights weights(path + "model.safetensors");
    Model model(test, config, weights, Precision::BF16, 2);
    const std::vector<float> x = floats(file.at("x")), t = floats(file.at("t"));
    const std::vector<int32_t> y = labels(file.at("y"));
    const auto got = model.denoise(x, t, y);
    const Tensor& truth = file.at("out_f64");
    const std::vector<double> want(truth.as<double>(), truth.as<double>() + truth.count());
    std::vector<double> naive;
    DitOracle<float> oracle(config, weights, /*bf16=*/true);
    for (size_t i = 0; i < y.size(); i++) {
      const auto row = oracle.forward(
          {x.begin() + i * config.latentCount(), x.begin() + (i + 1) * config.latentCount()}, t[i],
          y[i]);
      naive.insert(naive.end(), row.begin(), row.end());
    }
    const double error = relativeL2({got.begin(), got.end()}, want);
    const double limit = 2 * relativeL2(naive, want);
    EXPECT(error <= limit && limit < 0.1, error, " against ", limit);
  });
}

// Sizes that the fixtures do not have.
struct Size {
  const char* name;
  DitConfig config;
};

DIT_CASES(sizeCases) {
  const DitConfig base{.depth = 2,
                       .hidden = 48,
                       .heads = 3,
                       .mlpHidden = 192,
                       .patch = 2,
                       .channels = 4,
                       .height = 8,
                       .width = 8,
                       .classes = 7,
                       .nullClass = true,
                       .learnSigma = true};
  std::vector<Size> sizes;
  const auto add = [&](const char* name, auto change) {
    DitConfig config = base;
    change(config);
    sizes.push_back({name, config});
  };
  add("wide", [](DitConfig& c) { c.height = 4, c.width = 14; });
  add("tall", [](DitConfig& c) { c.height = 12, c.width = 4; });
  add("pixels", [](DitConfig& c) { c.channels = 1, c.patch = 1, c.height = 5, c.width = 7; });
  add("rgb", [](DitConfig& c) { c.channels = 3, c.patch = 4; });
  add("no-sigma", [](DitConfig& c) { c.learnSigma = false; });
  add("no-null-class", [](DitConfig& c) { c.nullClass = false; });
  add("narrow-mlp", [](DitConfig& c) { c.mlpHidden = 50; });
  add("head-dim-64", [](DitConfig& c) { c.hidden = 128, c.heads = 2, c.mlpHidden = 512; });
  add("head-dim-72", [](DitConfig& c) { c.hidden = 144, c.heads = 2, c.mlpHidden = 576; });
  for (const Size& size : sizes) {
    addCase(
        CaseKind::Plain, std::string("dit/size/") + size.name, [config = size.config](Test& test) {
          RandomWeights weights(config, 5);
          Model model(test, config, weights, Precision::F32, 3);
          const int64_t count = config.latentCount();
          const Values x = test.random(DType::F32, {3, count});
          const std::vector<float> t = {0, 999, 500.25f};
          const std::vector<int32_t> y = {0, 6, static_cast<int32_t>(config.labelRows() - 1)};
          const auto got = model.denoise(x.as<float>(), t, y);
          DitOracle<double> truth(config, weights);
          DitOracle<float> naive(config, weights);
          std::vector<double> want, rough;
          for (int64_t i = 0; i < 3; i++) {
            const auto row =
                truth.forward({x.v.begin() + i * count, x.v.begin() + (i + 1) * count}, t[i], y[i]);
            want.insert(want.end(), row.begin(), row.end());
            const std::vector<float> xf = x.as<float>();
            const auto low =
                naive.forward({xf.begin() + i * count, xf.begin() + (i + 1) * count}, t[i], y[i]);
            rough.insert(rough.end(), low.begin(), low.end());
          }
          const double error = relativeL2({got.begin(), got.end()}, want);
          const double limit = 2 * relativeL2(rough, want);
          EXPECT(error <= limit && limit < 1e-3, error, " against ", limit);
        });
  }
}

DIT_CASE("dit/errors") {
  const DitConfig good = fixtureConfig("micro24");
  FixtureWeights weights("dit_tiny_forward/micro24/model.safetensors");
  const auto make = [&](auto change) {
    DitConfig config = good;
    change(config);
    Dit dit(test.ops(), config, weights, Precision::F32, 2, {});
  };
  EXPECT_ERROR(Option, make([](DitConfig& c) { c.heads = 5; }));
  EXPECT_ERROR(Option, make([](DitConfig& c) { c.depth = 0; }));
  EXPECT_ERROR(Option, make([](DitConfig& c) { c.width = 7; }));
  EXPECT_ERROR(Format, make([](DitConfig& c) { c.depth = 3; }));
  EXPECT_ERROR(Format, make([](DitConfig& c) { c.classes = 9; }));
  Model model(test, good, weights, Precision::F32, 2);
  const std::vector<float> x(static_cast<size_t>(good.latentCount()));
  EXPECT_ERROR(Option, model.denoise(x, {1}, {static_cast<int32_t>(good.labelRows())}));
}

DIT_CASE("dit/position") {
  // A table that is loaded wins over the computed one; the computed one is the reference's.
  for (const std::string name : {"a96h4", "b144h2", "micro24"}) {
    const Fixture file("dit_tiny_forward/" + name + "/forward.safetensors");
    const std::vector<float> table = positionEmbedding(fixtureConfig(name));
    const Tolerance off =
        difference(table.data(), file.at("pos_embed").as<float>(), file.at("pos_embed").count());
    EXPECT(off.maxAbs < 1e-7, name, " ", off.maxAbs);
  }
}

}  // namespace
}  // namespace dit::test
