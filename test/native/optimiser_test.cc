// squaredNorm and adamW.
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/parallel.h"
#include "fixture.h"
#include "harness.h"
#include "oracle_loss.h"

namespace dit::test {
namespace {

DIT_KERNEL_CASE("squaredNorm") {
  for (int64_t n : {1, 3, 64, 1000, 16384, 16385, 100003}) {
    const Values x = test.random(DType::F32, {n}, 3);
    const Tensor on = test.upload(x);
    const DeviceTensor out = test.output(DType::F64, {1});
    test.ops().squaredNorm({.x = on, .out = out});
    long double want = 0;
    for (double v : x.v) want += static_cast<long double>(v) * v;
    const double got = out.download().v[0];
    EXPECT(std::abs(got - static_cast<double>(want)) <= 1e-14 * got, n, ": ", got);
    for (int threads : {1, 2, 3, 7}) {
      Ops ops(openBackend({.device = test.options().device, .threads = threads}));
      ops.squaredNorm({.x = on, .out = out});
      EXPECT(out.download().v[0] == got, n, ": ", threads, " threads");
    }
  }
}

// Not finite exactly when a number is not, wherever it stands.
DIT_KERNEL_CASE("squaredNorm/not-finite") {
  constexpr int64_t kN = 16384 + 69;
  const DeviceTensor out = test.output(DType::F64, {1});
  const auto norm = [&](const std::vector<double>& x) {
    test.ops().squaredNorm({.x = test.upload(Values::of(DType::F32, {kN}, x)), .out = out});
    return out.download().v[0];
  };
  const double large = rounded(DType::F32, 3e38);
  const double sum = norm(std::vector<double>(kN, large));
  EXPECT(std::abs(sum / (large * large * kN) - 1) < 1e-12, sum);
  EXPECT(norm(std::vector<double>(kN, 0)) == 0);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double bad : {std::nan(""), kInfinity, -kInfinity}) {
    for (const int64_t at : {int64_t{0}, int64_t{37}, int64_t{16383}, int64_t{16384}, kN - 1}) {
      std::vector<double> x(kN, 1);
      x[at] = bad;
      EXPECT(!std::isfinite(norm(x)), bad, " at ", at);
    }
  }
}

// What a step reads and changes, on the device.
struct State {
  DeviceTensor param, grad, m, v, ema;

  State(Ops& ops, int64_t n)
      : param(ops.backend(), DType::F32, {n}),
        grad(ops.backend(), DType::F32, {n}),
        m(ops.backend(), DType::F32, {n}),
        v(ops.backend(), DType::F32, {n}),
        ema(ops.backend(), DType::F32, {n}) {}

  // With the other fields of args.
  void step(Ops& ops, AdamWArgs args) const {
    args.param = param;
    args.grad = grad;
    args.m = m;
    args.v = v;
    args.ema = ema;
    ops.adamW(args);
  }
};

struct Start {
  Values param, grad, m, v, ema;

  Start(Test& test, int64_t n)
      : param(test.random(DType::F32, {n})),
        grad(test.random(DType::F32, {n}, 0.3)),
        m(test.random(DType::F32, {n}, 0.1)),
        v(test.random(DType::F32, {n}, 0.3)),
        ema(test.random(DType::F32, {n})) {
    for (double& square : v.v) square = rounded(DType::F32, square * square);
  }

  void upload(State& state) const {
    state.param.upload(param);
    state.grad.upload(grad);
    state.m.upload(m);
    state.v.upload(v);
    state.ema.upload(ema);
  }
};

Values randomDecays(Test& test, int64_t n) {
  Values decays = test.randomIndex({n / kParamGranule}, 2);
  decays.dtype = DType::U8;
  return decays;
}

void checkAdamW(Test& test, int64_t n, AdamWArgs args, bool withLow) {
  const Start start(test, n);
  const Values decays = randomDecays(test, n);
  State state(test.ops(), n);
  start.upload(state);
  const DeviceTensor low = test.output(DType::BF16, {n});
  args.decays = test.upload(decays);
  if (withLow) args.low = low;
  state.step(test.ops(), args);

  const auto oracle = [&]<typename T>(T, auto field) {
    std::vector<T> want;
    for (int64_t i = 0; i < n; i++) {
      oracle::AdamState<T> s{static_cast<T>(start.param.v[i]), static_cast<T>(start.grad.v[i]),
                             static_cast<T>(start.m.v[i]), static_cast<T>(start.v.v[i]),
                             static_cast<T>(start.ema.v[i])};
      oracle::adamW(args, decays.v[i / kParamGranule] != 0, s);
      want.push_back(field(s));
    }
    return want;
  };
  const Values param = state.param.download();
  EXPECT_MATCHES(param, [&](auto t) { return oracle(t, [](auto& s) { return s.param; }); });
  EXPECT_MATCHES(state.m.download(),
                 [&](auto t) { return oracle(t, [](auto& s) { return s.m; }); });
  EXPECT_MATCHES(state.v.download(),
                 [&](auto t) { return oracle(t, [](auto& s) { return s.v; }); });
  EXPECT_MATCHES(state.ema.download(),
                 [&](auto t) { return oracle(t, [](auto& s) { return s.ema; }); });
  EXPECT(state.grad.bytes() == std::vector<char>(static_cast<size_t>(n) * 4, 0));
  if (!withLow) return;
  const Values copy = low.download();
  for (int64_t i = 0; i < n; i++) {
    EXPECT(copy.v[i] == rounded(DType::BF16, param.v[i]), copy.v[i], " of ", param.v[i]);
  }
}

DIT_KERNEL_CASE("adamW") {
  checkAdamW(test, 64, {.lr = 1e-3f, .step = 1}, false);
  checkAdamW(test, 3 * 64, {.lr = 0.05f, .weightDecay = 0.3f, .emaDecay = 0.9f, .step = 7}, true);
  checkAdamW(test, 513 * 64,
             {.lr = 0.01f,
              .beta1 = 0.8f,
              .beta2 = 0.95f,
              .eps = 1e-3f,
              .weightDecay = 0.1f,
              .emaDecay = 0.99f,
              .gradScale = 0.3f,
              .step = 100},
             true);
  checkAdamW(test, 300 * 64, {.lr = 1e-4f, .weightDecay = 0.01f, .step = 1000000}, false);
}

// The reference's step number 7, and its EMA of a parameter that does not move.
DIT_KERNEL_CASE("adamW/reference") {
  const Fixture file("dit_tiny_training/loss_terms.safetensors");
  const auto values = [&](const std::string& name) {
    const Tensor& t = file.at(name);
    return Values{DType::F32, t.shape, {t.as<float>(), t.as<float>() + t.count()}};
  };
  const auto expect = [&](const std::string& name, const DeviceTensor& got) {
    const std::vector<float> have = got.download().as<float>();
    const Tensor& want = file.at(name);
    const Tolerance allowed = suggestedTolerance(file.name(), name);
    const Tolerance error = difference(have.data(), want.as<float>(), want.count());
    EXPECT(error.relL2 <= allowed.relL2 && error.maxAbs <= allowed.maxAbs, name, ": relative L2 ",
           error.relL2, " of ", allowed.relL2, ", max abs ", error.maxAbs);
  };
  State state(test.ops(), 64);
  const Tensor decays = test.upload(Values{DType::U8, {1}, {1}});
  const auto load = [&] {
    state.param.upload(values("adamw.param"));
    state.grad.upload(values("adamw.grad"));
    state.m.upload(values("adamw.exp_avg"));
    state.v.upload(values("adamw.exp_avg_sq"));
    state.ema.upload(values("ema.before"));
  };
  load();
  state.step(test.ops(), {.decays = decays, .lr = 0.05f, .weightDecay = 0.3f, .step = 7});
  expect("adamw.param_after", state.param);
  expect("adamw.exp_avg_after", state.m);
  expect("adamw.exp_avg_sq_after", state.v);
  for (const auto& [decay, name] :
       {std::pair{0.9999f, "0.9999"}, std::pair{0.9f, "0.9"}, std::pair{0.0f, "0"}}) {
    load();
    state.step(test.ops(), {.decays = decays, .lr = 0, .emaDecay = decay, .step = 7});
    expect(std::string("ema.after_") + name, state.ema);
    EXPECT(state.param.download().v == values("adamw.param").v);
  }
}

// The bits do not depend on the number of threads.
DIT_KERNEL_CASE("adamW/bits") {
  constexpr int64_t kN = 1537 * 64;
  const Start start(test, kN);
  const Tensor decays = test.upload(randomDecays(test, kN));
  std::vector<char> want;
  for (int threads : {1, 2, 3, 7}) {
    Ops ops(openBackend({.device = test.options().device, .threads = threads}));
    State state(ops, kN);
    start.upload(state);
    state.step(ops, {.decays = decays, .lr = 1e-3f, .weightDecay = 0.1f, .step = 3});
    std::vector<char> got;
    for (const DeviceTensor* t : {&state.param, &state.m, &state.v, &state.ema}) {
      const std::vector<char> bytes = t->bytes();
      got.insert(got.end(), bytes.begin(), bytes.end());
    }
    if (want.empty()) want = got;
    EXPECT(got == want, threads, " threads");
  }
}

// Without a gradient, rate and moments nothing moves; ties of the low copy go to even.
DIT_KERNEL_CASE("adamW/at-rest") {
  Start start(test, 64);
  const Values zero{DType::F32, {64}, std::vector<double>(64, 0)};
  start.grad = start.m = start.v = zero;
  start.ema = start.param;
  start.param.v[0] = 1 + 0x1p-8;      // halfway between 1 and 1 + 2^-7
  start.param.v[1] = 1 + 3 * 0x1p-8;  // halfway between 1 + 2^-7 and 1 + 2^-6
  start.param.v[2] = -(1 + 0x1p-8 + 0x1p-23);
  State state(test.ops(), 64);
  start.upload(state);
  const DeviceTensor low = test.output(DType::BF16, {64});
  const Tensor decays = test.upload(Values{DType::U8, {1}, {0}});
  state.step(test.ops(),
             {.low = low, .decays = decays, .lr = 0.1f, .weightDecay = 0.5f, .emaDecay = 0});
  EXPECT(state.param.download().v == start.param.v);
  EXPECT(state.ema.download().v == start.param.v);
  EXPECT(state.m.download().v == zero.v && state.v.download().v == zero.v);
  const std::vector<double> copy = low.download().v;
  EXPECT(copy[0] == 1 && copy[1] == 1 + 0x1p-6 && copy[2] == -(1 + 0x1p-7), copy[0], " ", copy[1],
         " ", copy[2]);
}

DIT_CASE("optimiser/errors") {
  const auto args = [&](int64_t n) {
    const Tensor x = test.upload(test.random(DType::F32, {n}));
    AdamWArgs all{.param = x, .grad = x, .m = x, .v = x, .ema = x};
    all.decays = test.upload(randomDecays(test, n));
    return all;
  };
  EXPECT_ERROR(Shape, test.ops().adamW(args(96)));
  AdamWArgs wrong = args(128);
  wrong.step = 0;
  EXPECT_ERROR(Shape, test.ops().adamW(wrong));
  wrong = args(128);
  wrong.v = test.upload(test.random(DType::F32, {64}));
  EXPECT_ERROR(Shape, test.ops().adamW(wrong));
  wrong = args(128);
  wrong.low = wrong.param;
  EXPECT_ERROR(Shape, test.ops().adamW(wrong));
  const Tensor x = test.upload(test.random(DType::F32, {64}));
  const DeviceTensor out = test.output(DType::F32, {1});
  EXPECT_ERROR(Shape, test.ops().squaredNorm({.x = x, .out = out}));
}

// The parameters of DiT-S/2 beside a copy of as many numbers.
DIT_BENCH("optimiser") {
  constexpr int64_t kN = 33'000'000 / kParamGranule * kParamGranule;
  State state(test.ops(), kN);
  const Values start{DType::F32, {kN}, std::vector<double>(kN, 0.01)};
  for (DeviceTensor* t : {&state.param, &state.grad, &state.m, &state.v, &state.ema}) {
    t->upload(start);
  }
  const DeviceTensor low = test.output(DType::BF16, {kN}), norm = test.output(DType::F64, {1});
  const Tensor decays = test.upload(
      Values{DType::U8, {kN / kParamGranule}, std::vector<double>(kN / kParamGranule, 1)});
  const double bytes = 4.0 * kN;
  const auto copy = [&] {
    constexpr int64_t kParts = 64;
    cpu::setThreads(test.options().threads);
    test.bench("copy [33M] F32", 0, 2 * bytes, [&] {
      cpu::parallelRuns(kN, kParts, [&](int64_t, int64_t begin, int64_t end) {
        std::memcpy(state.m.tensor().as<float>() + begin, state.v.tensor().as<float>() + begin,
                    static_cast<size_t>(end - begin) * sizeof(float));
      });
    });
  };
  copy();
  AdamWArgs args{.decays = decays, .lr = 1e-4f, .weightDecay = 0.01f, .step = 1000};
  test.bench("adamW [33M]", 0, 10 * bytes, [&] { state.step(test.ops(), args); });
  args.low = low;
  test.bench("adamW [33M] with bf16", 0, 10.5 * bytes, [&] { state.step(test.ops(), args); });
  test.bench("squaredNorm [33M]", 0, bytes,
             [&] { test.ops().squaredNorm({.x = state.grad, .out = norm}); });
}

}  // namespace
}  // namespace dit::test
