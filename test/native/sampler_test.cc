// Lanes and rounds: the reference's trajectories, and that nothing but its own request decides what
// a lane becomes.
#include "model/sampler.h"

#include <cmath>
#include <limits>
#include <random>

#include "dit_model.h"
#include "dit_oracle.h"
#include "fixture.h"
#include "harness.h"

namespace dit::test {
namespace {

std::vector<float> finish(Sampler& sampler, int64_t lane) {
  while (!sampler.finished(lane)) sampler.round({});
  std::vector<float> latent = sampler.latent(lane);
  sampler.stop(lane);
  return latent;
}

std::shared_ptr<const Plan> plan(PlanOptions options) {
  return std::make_shared<const Plan>(makePlan({}, options));
}

DIT_CASES(trajectoryCases) {
  struct Trajectory {
    const char* name;
    PlanOptions plan;
    float guidance;
  };
  const auto options = [](SamplerKind sampler, double eta, bool clip) {
    return PlanOptions{
        .sampler = sampler, .spacing = "10", .eta = eta, .clip = clip, .learnedVariance = true};
  };
  for (const Trajectory& trajectory :
       {Trajectory{"ddim_cfg4_eta0", options(SamplerKind::Ddim, 0, false), 4},
        Trajectory{"ddim_cfg4_eta1", options(SamplerKind::Ddim, 1, false), 4},
        Trajectory{"ddpm_cfg4", options(SamplerKind::Ddpm, 0, false), 4},
        Trajectory{"ddpm_cfg4_clip", options(SamplerKind::Ddpm, 0, true), 4},
        Trajectory{"ddpm_nocfg", options(SamplerKind::Ddpm, 0, false), 1}}) {
    addCase(CaseKind::Plain, std::string("sampler/trajectory/") + trajectory.name,
            [trajectory](Test& test) {
              const std::string path =
                  std::string("sampling_trajectory/a96h4_") + trajectory.name + ".safetensors";
              const Fixture file(path);
              FixtureWeights weights("dit_tiny_forward/a96h4/model.safetensors");
              const DitConfig config = fixtureConfig("a96h4");
              Model model(test, config, weights, Precision::F32, 2);
              Sampler& sampler = model.sampler;

              const int64_t n = file.at("final").shape[0], count = config.latentCount();
              const int64_t batch = file.at("x_init").shape[0], steps = file.at("noise").shape[0];
              const float* noise = file.at("noise").as<float>();
              const float* start = file.at("x_init").as<float>();
              for (int64_t i = 0; i < n; i++) {
                LaneSpec spec;
                spec.plan = plan(trajectory.plan);
                spec.label = static_cast<int32_t>(file.at("y").as<int64_t>()[i]);
                spec.guidance = trajectory.guidance;
                spec.guidanceChannels = 3;
                spec.noise.assign(start + i * count, start + (i + 1) * count);
                for (int64_t k = 0; k < steps; k++) {
                  const float* z = noise + (k * batch + i) * count;
                  spec.stepNoise.insert(spec.stepNoise.end(), z, z + count);
                }
                EXPECT(sampler.start(std::move(spec)) == i);
              }
              std::vector<float> xs, predictions, wantXs, wantPredictions;
              const auto append = [](std::vector<float>& to, const std::vector<float>& values) {
                to.insert(to.end(), values.begin(), values.end());
              };
              for (int64_t k = 0; k < steps; k++) {
                sampler.round({});
                for (int64_t i = 0; i < n; i++) {
                  append(xs, sampler.latent(i));
                  append(predictions, sampler.prediction(i));
                  const int64_t at = (k * batch + i) * count;
                  const float* x = file.at("x").as<float>() + at;
                  const float* x0 = file.at("pred_xstart").as<float>() + at;
                  append(wantXs, {x, x + count});
                  append(wantPredictions, {x0, x0 + count});
                }
              }
              const auto expectClose = [&](const char* tensor, const std::vector<float>& got,
                                           const float* want) {
                const Tolerance limit = suggestedTolerance(path, tensor);
                const Tolerance off =
                    difference(got.data(), want, static_cast<int64_t>(got.size()));
                EXPECT(off.relL2 <= limit.relL2 && off.maxAbs <= limit.maxAbs, tensor, ": rel L2 ",
                       off.relL2, " (", limit.relL2, "), max abs ", off.maxAbs, " (", limit.maxAbs,
                       ")");
              };
              expectClose("x", xs, wantXs.data());
              expectClose("pred_xstart", predictions, wantPredictions.data());
              expectClose("final", {xs.end() - n * count, xs.end()}, file.at("final").as<float>());
              EXPECT(sampler.finished(0) && sampler.finished(1));
            });
  }
}

// A lane alone, and the same lane among others that join and leave at random, all of them set aside
// now and then and resumed in some other lane.
DIT_CASES(batchCases) {
  for (const Precision precision : {Precision::F32, Precision::BF16}) {
    addCase(CaseKind::Plain, std::string("sampler/batch-invariance/") + precisionName(precision),
            [precision](Test& test) {
              if (!test.backend().supports(precision)) return;
              DitConfig config = fixtureConfig("a96h4");
              RandomWeights weights(config, 3);
              Model model(test, config, weights, precision, 4);
              Sampler& sampler = model.sampler;
              std::mt19937 random(11);
              const auto pick = [&](int n) { return static_cast<int>(random() % n); };
              const auto randomSpec = [&] {
                const SamplerKind kinds[] = {SamplerKind::Ddpm, SamplerKind::Ddim,
                                             SamplerKind::DpmSolver};
                const char* spacings[] = {"3", "8", "20", "ddim10"};
                LaneSpec spec;
                spec.plan = plan({.sampler = kinds[pick(3)],
                                  .spacing = spacings[pick(4)],
                                  .eta = 0.5 * pick(3),
                                  .clip = pick(2) == 1,
                                  .learnedVariance = true});
                spec.label = pick(10);
                spec.seed = random();
                spec.guidance = pick(3) == 0 ? 1.0f : 1.0f + static_cast<float>(pick(5));
                spec.guidanceChannels = 3 + pick(2);
                if (pick(4) == 0) spec.guidanceFrom = 0.2f, spec.guidanceTo = 0.7f;
                if (pick(4) == 0) {
                  spec.label = -1;
                  for (int64_t i = 0; i < config.hidden; i++) {
                    spec.vector.push_back(static_cast<float>(pick(1000)) / 500 - 1);
                  }
                }
                return spec;
              };
              for (int trial = 0; trial < 12; trial++) {
                const LaneSpec spec = randomSpec();
                const std::vector<float> alone = finish(sampler, sampler.start(spec));
                for (float value : alone) EXPECT(std::isfinite(value));
                std::vector<int64_t> others;
                for (int i = pick(3); i >= 0; i--) others.push_back(sampler.start(randomSpec()));
                for (int i = pick(6); i > 0; i--) sampler.round({});
                int64_t lane = sampler.start(spec);
                while (!sampler.finished(lane)) {
                  sampler.round({});
                  for (int64_t& other : others) {
                    if (other < 0 || (!sampler.finished(other) && pick(10) > 0)) continue;
                    sampler.stop(other);
                    other = pick(2) ? sampler.start(randomSpec()) : -1;
                  }
                  if (sampler.finished(lane) || pick(3) > 0) continue;
                  SuspendedLane aside = sampler.suspend(lane);
                  if (!others.empty() && others[0] >= 0) {
                    // Somebody else's lane from now on, and back.
                    SuspendedLane other = sampler.suspend(others[0]);
                    others[0] = sampler.resume(std::move(other));
                  }
                  for (int i = pick(4); i > 0; i--) sampler.round({});
                  lane = sampler.resume(std::move(aside));
                }
                EXPECT(sampler.latent(lane) == alone, "trial ", trial);
                EXPECT(sampler.latent(lane) == sampler.latent(lane));
                for (int64_t i = 0; i < sampler.maxLanes(); i++) sampler.stop(i);
                EXPECT(finish(sampler, sampler.start(spec)) == alone, "again, trial ", trial);
              }
            });
  }
}

struct Small {
  explicit Small(Test& test)
      : weights(config, 9), model(test, config, weights, Precision::F32, 3) {}
  LaneSpec spec(int32_t label, uint64_t seed) const {
    LaneSpec lane;
    lane.plan = plan({.sampler = SamplerKind::DpmSolver, .spacing = "6"});
    lane.label = label;
    lane.seed = seed;
    lane.guidance = 3;
    lane.guidanceChannels = 4;
    return lane;
  }
  DitConfig config = fixtureConfig("micro24");
  RandomWeights weights;
  Model model;
};

DIT_CASE("sampler/seed-and-label") {
  Small small(test);
  Sampler& sampler = small.model.sampler;
  const auto a = finish(sampler, sampler.start(small.spec(1, 7)));
  EXPECT(a == finish(sampler, sampler.start(small.spec(1, 7))));
  EXPECT(a != finish(sampler, sampler.start(small.spec(2, 7))));
  EXPECT(a != finish(sampler, sampler.start(small.spec(1, 8))));
  EXPECT(a != finish(sampler, sampler.start(small.spec(1, 7 + (uint64_t{1} << 32)))));
}

// A vector that equals a row of the label table is that label.
DIT_CASE("sampler/vector") {
  Small small(test);
  Sampler& sampler = small.model.sampler;
  const auto want = finish(sampler, sampler.start(small.spec(3, 1)));
  const Tensor table = small.weights.read("y_embedder.embedding_table.weight", false);
  LaneSpec spec = small.spec(-1, 1);
  const float* row = table.as<float>() + 3 * small.config.hidden;
  spec.vector.assign(row, row + small.config.hidden);
  EXPECT(want == finish(sampler, sampler.start(spec)));
}

DIT_CASE("sampler/guidance") {
  Small small(test);
  Sampler& sampler = small.model.sampler;
  // Guidance outside of its interval is no guidance; an interval that holds all is plain guidance.
  LaneSpec plain = small.spec(1, 5);
  const auto guided = finish(sampler, sampler.start(plain));
  LaneSpec never = plain;
  never.guidanceFrom = never.guidanceTo = 0.123456f;
  LaneSpec one = plain;
  one.guidance = 1;
  EXPECT(finish(sampler, sampler.start(never)) == finish(sampler, sampler.start(one)));
  LaneSpec half = plain;
  half.guidanceTo = 0.5f;
  const auto partly = finish(sampler, sampler.start(half));
  EXPECT(partly != guided && partly != finish(sampler, sampler.start(one)));
}

// A round that is stopped on its way has changed nothing.
DIT_CASE("sampler/stopped-round") {
  Small small(test);
  Sampler& sampler = small.model.sampler;
  const auto want = finish(sampler, sampler.start(small.spec(2, 3)));
  const int64_t lane = sampler.start(small.spec(2, 3));
  int calls = 0;
  for (int stopAt = 1; !sampler.finished(lane); stopAt++) {
    calls = 0;
    const int64_t before = sampler.step(lane);
    try {
      sampler.round([&] {
        if (++calls == 1 + stopAt % 40) fail(ErrorCode::Aborted, "stop");
      });
      EXPECT(sampler.step(lane) == before + 1);
    } catch (const Error& error) {
      EXPECT(error.code() == ErrorCode::Aborted && sampler.step(lane) == before);
    }
  }
  EXPECT(sampler.latent(lane) == want);
}

DIT_CASE("sampler/pixels") {
  Small small(test);
  const std::vector<float> latent(static_cast<size_t>(small.config.latentCount()), 0.5f);
  const Picture picture = small.model.sampler.picture(latent, {});
  EXPECT(picture.height == 8 && picture.width == 8 && picture.channels == 4);
  for (uint8_t byte : picture.bytes) EXPECT(byte == 191, static_cast<int>(byte));
}

}  // namespace
}  // namespace dit::test
