#include <cmath>
#include <cstring>
#include <limits>

#include "core/rng.h"
#include "harness.h"
#include "oracle.h"

namespace dit::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The reference of the normal numbers: normal4, one after another.
std::vector<double> normals(uint64_t seed, NoiseStream stream, uint32_t index, int64_t n) {
  std::vector<double> z;
  for (uint64_t block = 0; static_cast<int64_t>(z.size()) < n; block++) {
    float four[4];
    normal4(seed, stream, index, block, four);
    z.insert(z.end(), four, four + 4);
  }
  z.resize(static_cast<size_t>(n));
  return z;
}

DIT_KERNEL_CASE("noise") {
  const uint64_t seed = 0x123456789abcdef0;
  for (const Shape& shape : {Shape{1}, Shape{1, 4, 32, 32}, Shape{3, 7, 5}, Shape{4099}}) {
    DeviceTensor y = test.output(DType::F32, shape);
    test.ops().noise({.seed = seed, .stream = 1, .index = 7, .y = y});
    const std::vector<double> got = y.download().v;
    // The same bits on every device and every processor.
    EXPECT(got == normals(seed, NoiseStream::Step, 7, shape.count()));
  }
}

// Known answers of Philox 4x32-10, from the authors' Random123 distribution (kat_vectors).
DIT_CASE("noise/philox") {
  const Philox4 zeros = philox(0, {{0, 0, 0, 0}});
  EXPECT(zeros.v[0] == 0x6627e8d5 && zeros.v[1] == 0xe169c58d && zeros.v[2] == 0xbc57ac4c &&
         zeros.v[3] == 0x9b00dbd8);
  const Philox4 ones = philox(~uint64_t{0}, {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}});
  EXPECT(ones.v[0] == 0x408f276d && ones.v[1] == 0x41c83b0e && ones.v[2] == 0xa20bc7c6 &&
         ones.v[3] == 0x6d5451fd);
}

// Against the library's functions, in double precision: all that is lost is the rounding to float.
DIT_CASE("noise/normal4") {
  constexpr uint64_t kSeed = 42, kBlocks = 1 << 18;
  double worst = 0;
  for (uint64_t block = 0; block < kBlocks; block++) {
    const Philox4 bits = philox(kSeed, {{static_cast<uint32_t>(block), 0, 3, 1}});
    float four[4];
    normal4(kSeed, NoiseStream::Step, 3, block, four);
    for (int i = 0; i < 4; i++) {
      const double u = (bits.v[i / 2 * 2] / 256 + 0.5) / (1 << 24);
      const double turn = (bits.v[i / 2 * 2 + 1] / 256 + 0.5) / (1 << 24) * 2 * M_PI;
      const double z = std::sqrt(-2 * std::log(u)) * (i % 2 ? std::sin(turn) : std::cos(turn));
      // Half a unit in the last place of a float, and 1e-9 of the radius.
      const double allowed = std::abs(z) * 0x1p-24 + 1e-9 * std::sqrt(-2 * std::log(u));
      worst = std::max(worst, std::abs(four[i] - z) / allowed);
    }
  }
  EXPECT(worst <= 1, worst);
  // The ends of what a uniform number can be.
  EXPECT(std::abs(exactLog(uniformOpen(0)) - std::log(0x1p-25)) < 1e-9);
  const double least = -0x1p-25 - 0x1p-51;  // log(1 - 2^-25)
  EXPECT(std::abs(exactLog(uniformOpen(~0u)) / least - 1) < 1e-12, exactLog(uniformOpen(~0u)));
}

DIT_KERNEL_CASE("noise/moments") {
  DeviceTensor y = test.output(DType::F32, {1 << 18});
  test.ops().noise({.seed = 1, .stream = 0, .index = 0, .y = y});
  double mean = 0, square = 0, fourth = 0;
  const double n = 1 << 18;
  for (double v : y.download().v) {
    mean += v / n;
    square += v * v / n;
    fourth += v * v * v * v / n;
  }
  EXPECT(std::abs(mean) < 0.01 && std::abs(square - 1) < 0.01 && std::abs(fourth - 3) < 0.1, mean,
         " ", square, " ", fourth);
}

DIT_KERNEL_CASE("guide") {
  constexpr int64_t kCo = 8, kH = 5, kW = 9;
  const Values model = test.random(DType::F32, {5, kCo, kH, kW});
  const std::vector<int32_t> cond{0, 3, 4}, uncond{1, -1, 2};
  const Values scale = Values::of(DType::F32, {3}, {4, 1.5, 7.25});
  for (int64_t channels : {0, 3, 8}) {
    DeviceTensor y = test.output(DType::F32, {3, kCo, kH, kW});
    test.ops().guide({.model = test.upload(model),
                      .cond = test.upload(cond),
                      .uncond = test.upload(uncond),
                      .scale = test.upload(scale),
                      .channels = channels,
                      .y = y});
    EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
      return oracle::guide<T>(kCo, kH * kW, model.as<T>(), cond, uncond, scale.as<T>(), channels);
    });
  }
}

// ---- solverUpdate --------------------------------------------------------------------------

struct SolverSetup {
  int64_t lanes, rows, c, co, h, w;
  bool givenNoise = false;
};

Values asBytes(const std::vector<SolverStep>& steps) {
  const size_t bytes = steps.size() * sizeof(SolverStep);
  std::vector<unsigned char> raw(bytes);
  std::memcpy(raw.data(), steps.data(), bytes);
  return {DType::U8,
          {static_cast<int64_t>(steps.size()), static_cast<int64_t>(sizeof(SolverStep))},
          std::vector<double>(raw.begin(), raw.end())};
}

void checkSolver(Test& test, const SolverSetup& s, const std::vector<SolverStep>& steps,
                 double historyScale = 1) {
  const Shape latent{s.lanes, s.c, s.h, s.w}, past{s.lanes, kSolverHistory, s.c, s.h, s.w};
  const Values model = test.random(DType::F32, {s.rows, s.co, s.h, s.w});
  const Values x = test.random(DType::F32, latent), noise = test.random(DType::F32, latent);
  const Values history = test.random(DType::F32, past, historyScale);
  DeviceTensor gotX = test.output(DType::F32, latent), gotPast = test.output(DType::F32, past);
  gotX.upload(x);
  gotPast.upload(history);
  test.ops().solverUpdate({.model = test.upload(model),
                           .steps = test.upload(asBytes(steps)),
                           .x = gotX,
                           .history = gotPast,
                           .noise = s.givenNoise ? test.upload(noise) : Tensor()});
  const int64_t n = s.c * s.h * s.w;
  // x and history of all lanes, one after the other: lanes without a step keep theirs.
  auto oracle = [&]<typename T>(bool wantHistory) {
    std::vector<T> wantX = x.as<T>(), wantPast = history.as<T>();
    for (const SolverStep& step : steps) {
      std::vector<double> z = normals(step.seed, NoiseStream::Step, step.noiseIndex, n);
      if (s.givenNoise) {
        z.assign(noise.v.begin() + step.lane * n, noise.v.begin() + (step.lane + 1) * n);
      }
      oracle::solverUpdate<T>(step, s.co, s.c, s.h * s.w, model.as<T>(),
                              std::vector<T>(z.begin(), z.end()), wantX, wantPast);
    }
    return wantHistory ? wantPast : wantX;
  };
  // A slot of NaN that no step wrote stays as it is; elsewhere nothing may be NaN.
  auto withoutNan = [](auto values) {
    for (auto& value : values) value = std::isnan(value) ? 0 : value;
    return values;
  };
  Values pastNow = gotPast.download();
  for (size_t i = 0; i < history.v.size(); i++) {
    if (std::isnan(history.v[i]) && std::isnan(pastNow.v[i])) pastNow.v[i] = 0;
  }
  EXPECT_MATCHES(gotX.download(),
                 [&]<typename T>(T) { return oracle.template operator()<T>(false); });
  EXPECT_MATCHES(pastNow,
                 [&]<typename T>(T) { return withoutNan(oracle.template operator()<T>(true)); });
}

// Every coefficient at work.
SolverStep fullStep(int32_t lane, int32_t cond, int32_t uncond) {
  return {.lane = lane,
          .condRow = cond,
          .uncondRow = uncond,
          .guidanceChannels = 3,
          .guidance = 4,
          .x0FromX = 1.25f,
          .x0FromModel = -0.75f,
          .clip = kInfinity,
          .epsFromX = 0.5f,
          .epsFromX0 = -0.3f,
          .epsFromModel = 0.125f,
          .xFromX = 0.9f,
          .xFromX0 = 0.33f,
          .xFromEps = -0.21f,
          .xFromHistory = {0.4f, -0.15f},
          .historySlot = 1,
          .noise = 0.6f,
          .learnedVariance = 0,
          .logVarianceMin = -5,
          .logVarianceMax = -1,
          .noiseIndex = 11,
          .seed = 0xfedcba9876543210};
}

DIT_KERNEL_CASE("solverUpdate/full") {
  checkSolver(test, {.lanes = 3, .rows = 4, .c = 4, .co = 4, .h = 8, .w = 8},
              {fullStep(2, 0, 3), fullStep(0, 1, -1)});
}

DIT_KERNEL_CASE("solverUpdate/learned-variance") {
  SolverStep step = fullStep(0, 0, 1);
  step.learnedVariance = 1;
  checkSolver(test, {.lanes = 1, .rows = 2, .c = 4, .co = 8, .h = 32, .w = 32}, {step});
}

DIT_KERNEL_CASE("solverUpdate/clip") {
  SolverStep step = fullStep(1, 1, 0);
  step.clip = 1;
  checkSolver(test, {.lanes = 2, .rows = 2, .c = 4, .co = 4, .h = 5, .w = 7}, {step});
}

// What the model could not say stays NaN, for whoever looks at the image: no bound takes its place.
DIT_KERNEL_CASE("solverUpdate/nan") {
  for (const float clip : {1.0f, kInfinity}) {
    const Shape latent{1, 4, 5, 7}, past{1, kSolverHistory, 4, 5, 7};
    constexpr size_t kBroken = 37;
    Values model = test.random(DType::F32, latent);
    model.v[kBroken] = NAN;
    SolverStep step = fullStep(0, 0, -1);
    step.clip = clip;
    DeviceTensor x = test.output(DType::F32, latent), history = test.output(DType::F32, past);
    x.upload(test.random(DType::F32, latent, 2));
    history.upload(test.random(DType::F32, past, 3));
    test.ops().solverUpdate({.model = test.upload(model),
                             .steps = test.upload(asBytes({step})),
                             .x = x,
                             .history = history});
    const std::vector<double> got = x.download().v, kept = history.download().v;
    const size_t slot = static_cast<size_t>(step.historySlot) * got.size();
    for (size_t i = 0; i < got.size(); i++) {
      EXPECT(std::isnan(got[i]) == (i == kBroken));
      EXPECT(std::isnan(kept[slot + i]) == (i == kBroken));
    }
  }
}

DIT_KERNEL_CASE("solverUpdate/given-noise") {
  checkSolver(test, {.lanes = 2, .rows = 2, .c = 3, .co = 6, .h = 40, .w = 40, .givenNoise = true},
              {fullStep(1, 1, 0), fullStep(0, 0, -1)});
}

// History that no step has written yet must not be read, nor noise where there is none.
DIT_KERNEL_CASE("solverUpdate/first-step") {
  SolverStep step = fullStep(0, 0, -1);
  step.xFromHistory[0] = step.xFromHistory[1] = 0;
  step.noise = 0;
  checkSolver(test, {.lanes = 1, .rows = 1, .c = 4, .co = 8, .h = 8, .w = 8}, {step}, NAN);
}

// A lane's result is the same alone and among others.
DIT_KERNEL_CASE("solverUpdate/bits") {
  const Shape latent{3, 4, 9, 9}, past{3, kSolverHistory, 4, 9, 9};
  const Values model = test.random(DType::F32, {4, 4, 9, 9});
  const Values x = test.random(DType::F32, latent), history = test.random(DType::F32, past);
  auto run = [&](const std::vector<SolverStep>& steps) {
    DeviceTensor gotX = test.output(DType::F32, latent), gotPast = test.output(DType::F32, past);
    gotX.upload(x);
    gotPast.upload(history);
    test.ops().solverUpdate({.model = test.upload(model),
                             .steps = test.upload(asBytes(steps)),
                             .x = gotX,
                             .history = gotPast});
    const std::vector<double> all = gotX.download().v;
    return std::vector<double>(all.begin() + 4 * 81, all.begin() + 2 * 4 * 81);
  };
  const std::vector<double> alone = run({fullStep(1, 0, 3)});
  EXPECT(alone == run({fullStep(2, 1, -1), fullStep(1, 0, 3), fullStep(0, 2, -1)}));
  // Idle steps do nothing.
  const SolverStep idle{.lane = -1};
  EXPECT(alone == run({idle, fullStep(1, 0, 3), idle}));
  EXPECT(run({idle, idle}) == std::vector<double>(x.v.begin() + 4 * 81, x.v.begin() + 2 * 4 * 81));
}

// One guided lane of XL/2 at 256 px.
DIT_BENCH("solver") {
  const Shape latent{1, 4, 32, 32};
  const Tensor model = test.upload(test.random(DType::F32, {2, 8, 32, 32}));
  const Tensor x = test.upload(test.random(DType::F32, latent));
  const Tensor history = test.upload(test.random(DType::F32, {1, kSolverHistory, 4, 32, 32}));
  SolverStep step = fullStep(0, 0, 1);
  for (bool noise : {false, true}) {
    step.noise = noise ? 0.6f : 0;
    step.learnedVariance = noise;
    step.xFromX = 0;  // stays finite however often it runs
    step.x0FromX = 0;
    step.epsFromX = 0;
    step.xFromHistory[1] = 0;
    const Tensor steps = test.upload(asBytes({step}));
    test.bench(
        noise ? "solverUpdate with noise [1, 4, 32, 32]" : "solverUpdate [1, 4, 32, 32]", 0,
        static_cast<double>(x.bytes()) * 6, [&] {
          test.ops().solverUpdate({.model = model, .steps = steps, .x = x, .history = history});
        });
  }
  test.bench("noise [1, 4, 32, 32]", 0, static_cast<double>(x.bytes()),
             [&] { test.ops().noise({.seed = 1, .stream = 0, .index = 0, .y = x}); });
  const DeviceTensor guided = test.output(DType::F32, {1, 8, 32, 32});
  const Tensor cond = test.upload(std::vector<int32_t>{0});
  const Tensor uncond = test.upload(std::vector<int32_t>{1});
  const Tensor scale = test.upload(Values::of(DType::F32, {1}, {4}));
  test.bench("guide [1, 8, 32, 32]", 0, static_cast<double>(model.bytes()) * 1.5, [&] {
    test.ops().guide({.model = model,
                      .cond = cond,
                      .uncond = uncond,
                      .scale = scale,
                      .channels = 3,
                      .y = guided});
  });
}

}  // namespace
}  // namespace dit::test
