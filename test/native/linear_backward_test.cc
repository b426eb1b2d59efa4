#include <cmath>
#include <complex>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "harness.h"
#include "oracle_linear_backward.h"
#include "product_sum.h"

namespace dit::test {
namespace {

using Complex = std::complex<double>;

constexpr double kExact = 1e-9;  // relative error of a derivative in double

// What a naive run in T makes of an intermediate result that is stored in `type`.
template <typename T>
auto storedAs(DType type) {
  return [type](T value) {
    return std::is_same_v<T, float> ? static_cast<T>(rounded(type, value)) : value;
  };
}

template <typename T>
std::vector<T> toTf32(std::vector<T> values) {
  for (T& value : values) value = static_cast<T>(roundedToTf32(value));
  return values;
}

template <typename T>
std::vector<T> sum(std::vector<T> a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); i++) a[i] += b[i];
  return a;
}

// ---- the oracle -----------------------------------------------------------------------------

std::vector<Complex> complex(const std::vector<double>& v) { return {v.begin(), v.end()}; }

DIT_CASE("oracle/linear-backward") {
  constexpr int64_t kR = 2, kM = 3, kRows = kR * kM, kN = 5, kK = 4;
  const auto x = test.random(DType::F64, {kRows * kK}).v, w = test.random(DType::F64, {kN * kK}).v;
  const auto bias = test.random(DType::F64, {kN}).v, dY = test.random(DType::F64, {kRows * kN}).v;
  auto forward = [&](const std::vector<Complex>& in, const std::vector<Complex>& weight,
                     const std::vector<Complex>& offsets) {
    return oracle::linear<Complex>(kR, kM, kN, kK, in, weight, offsets, Epilogue::Bias);
  };
  for (const bool gelu : {false, true}) {
    // x, or what x is the gelu of.
    std::vector<Complex> active = complex(x);
    if (gelu) {
      for (Complex& value : active) value = oracle::gelu(value);
    }
    const auto got = gelu ? oracle::linearBackward<double>(kRows, kN, kK, {}, w, dY, x)
                          : oracle::linearBackward<double>(kRows, kN, kK, x, w, dY);
    const auto dX = oracle::complexStep(x, dY, [&](std::vector<Complex> moved) {
      if (gelu) {
        for (Complex& value : moved) value = oracle::gelu(value);
      }
      return forward(moved, complex(w), complex(bias));
    });
    const auto dWeight = oracle::complexStep(w, dY, [&](const std::vector<Complex>& moved) {
      return forward(active, moved, complex(bias));
    });
    const auto dBias = oracle::complexStep(bias, dY, [&](const std::vector<Complex>& moved) {
      return forward(active, complex(w), moved);
    });
    EXPECT(relativeL2(got.dX, dX) < kExact, relativeL2(got.dX, dX));
    EXPECT(relativeL2(got.dWeight, dWeight) < kExact, relativeL2(got.dWeight, dWeight));
    EXPECT(relativeL2(got.dBias, dBias) < kExact, relativeL2(got.dBias, dBias));
    std::vector<double> used;
    for (const Complex& value : active) used.push_back(value.real());
    EXPECT(relativeL2(got.x, used) < kExact, relativeL2(got.x, used));
  }
}

// ---- linearBackward -------------------------------------------------------------------------

enum class DX { Act, F32, Added, Absent, ThroughGelu };

struct BackwardCase {
  int64_t r, m, n, k;
  DType type;
  DX dX = DX::Act;
  bool tf32 = false;  // F32 tensors, operands of the products rounded to TF32

  Precision precision() const {
    if (tf32) return Precision::TF32;
    return type == DType::BF16 ? Precision::BF16 : Precision::F32;
  }
  DType dXType() const { return dX == DX::F32 || dX == DX::Added ? DType::F32 : type; }

  std::string name() const {
    const char* kinds[] = {"act", "f32", "added", "absent", "gelu"};
    return detail::concat("linearBackward/", tf32 ? "TF32" : dtypeName(type), "/dx-",
                          kinds[static_cast<int>(dX)], "/", r, "x", m, "x", n, "x", k);
  }
};

// Where the device has no bf16 or no TF32, asking for it must say so.
bool precisionIsHere(Test& test, DType type, Precision precision) {
  if (test.backend().supports(precision)) return true;
  const Tensor values = test.upload(test.random(type, {1, 1}));
  EXPECT_ERROR(Device, test.ops().prepareTrainedLinear(
                           {.values = values, .rows = 1, .precision = precision}));
  return false;
}
bool precisionIsHere(Test& test, DType type) {
  return precisionIsHere(test, type, type == DType::BF16 ? Precision::BF16 : Precision::F32);
}

class Fixture {
 public:
  Fixture(Test& test, const BackwardCase& c)
      : test_(test),
        c_(c),
        x_(test.random(c.type, {c.r, c.m, c.k})),
        w_(test.random(c.type, {c.n, c.k}, 1 / std::sqrt(static_cast<double>(c.n)))),
        dY_(test.random(c.type, {c.r, c.m, c.n})),
        dX_(test.random(DType::F32, {c.r, c.m, c.k})),
        dWeight_(test.random(DType::F32, {c.n, c.k})),
        dBias_(test.random(DType::F32, {c.n})),
        weight_(test.ops().prepareTrainedLinear(
            {.values = test.upload(w_), .rows = c.r * c.m, .precision = c.precision()})) {}

  // Results: x, dX, dWeight, dBias, where the last two were not 0 before, nor dX where it is added
  // to. dX of nobody stays poisoned.
  std::vector<DeviceTensor> run(int times = 1) const {
    const bool gelu = c_.dX == DX::ThroughGelu;
    std::vector<DeviceTensor> out;
    out.push_back(test_.output(c_.type, x_.shape));
    out.push_back(test_.output(c_.dXType(), x_.shape));
    out.push_back(test_.output(DType::F32, dWeight_.shape));
    out.push_back(test_.output(DType::F32, dBias_.shape));
    if (!gelu) out[0].upload(x_);
    if (c_.dX == DX::Added) out[1].upload(dX_);
    out[2].upload(dWeight_);
    out[3].upload(dBias_);
    LinearBackwardArgs args{
        .x = out[0], .dY = test_.upload(dY_), .dWeight = out[2], .dBias = out[3]};
    if (gelu) args.preActivation = test_.upload(x_);
    // Without dX it is there for its precision only.
    if (c_.dX != DX::Absent || c_.tf32) args.weight = weight_.get();
    if (c_.dX != DX::Absent) {
      args.dX = out[1];
      args.addToDx = c_.dX == DX::Added;
    }
    for (int i = 0; i < times; i++) test_.ops().linearBackward(args);
    return out;
  }

  template <typename T>
  std::vector<std::vector<T>> oracle(int times) const {
    const bool gelu = c_.dX == DX::ThroughGelu;
    const std::vector<T> x = x_.as<T>(), w = w_.as<T>(), dY = dY_.as<T>();
    const ProductSum adds = productSum(test_, c_.precision());
    auto d = oracle::linearBackward<T>(c_.r * c_.m, c_.n, c_.k, gelu ? std::vector<T>{} : x, w, dY,
                                       gelu ? x : std::vector<T>{}, storedAs<T>(c_.type), adds);
    if (c_.tf32 && std::is_same_v<T, float>) {
      // A naive run rounds the operands of the products, nothing else.
      const auto products = oracle::linearBackward<T>(
          c_.r * c_.m, c_.n, c_.k, toTf32(d.x), toTf32(w), toTf32(dY), {}, oracle::Exactly(), adds);
      d.dX = products.dX;
      d.dWeight = products.dWeight;
      for (size_t i = 0; gelu && i < x.size(); i++) d.dX[i] *= oracle::geluDerivative(x[i]);
    }
    std::vector<std::vector<T>> want{d.x, c_.dX == DX::Added ? dX_.as<T>() : d.dX, dWeight_.as<T>(),
                                     dBias_.as<T>()};
    for (int i = 0; i < times; i++) {
      if (c_.dX == DX::Added) want[1] = sum(want[1], d.dX);
      want[2] = sum(want[2], d.dWeight);
      want[3] = sum(want[3], d.dBias);
    }
    return want;
  }

  void check(const std::vector<DeviceTensor>& got, int times) const {
    Test& test = test_;
    const char* names[] = {"x", "dX", "dWeight", "dBias"};
    const auto want = oracle<double>(times);
    const auto naive = oracle<float>(times);
    for (size_t i = 0; i < want.size(); i++) {
      const Values values = got[i].download();
      if (i == 1 && c_.dX == DX::Absent) {
        for (double value : values.v) EXPECT(std::isnan(value), "dX was written");
        continue;
      }
      const std::string problem =
          compare(values, want[i], std::vector<double>(naive[i].begin(), naive[i].end()));
      EXPECT(problem.empty(), names[i], " after ", times, ": ", problem);
    }
  }

 private:
  Test& test_;
  BackwardCase c_;
  Values x_, w_, dY_, dX_, dWeight_, dBias_;
  std::unique_ptr<PreparedWeight> weight_;
};

void checkBackward(Test& test, const BackwardCase& c) {
  if (!precisionIsHere(test, c.type, c.precision())) return;
  const Fixture fixture(test, c);
  const std::vector<DeviceTensor> once = fixture.run(), again = fixture.run();
  fixture.check(once, 1);
  for (size_t i = 0; i < once.size(); i++) {
    EXPECT(once[i].bytes() == again[i].bytes(), "another run gave other bits of result ", i);
  }
  fixture.check(fixture.run(3), 3);
}

DIT_CASES(linearBackwardCases) {
  std::vector<BackwardCase> cases;
  for (DType type : {DType::F32, DType::BF16}) {
    // Sizes: tiny, odd, one row, vectors' lengths and their neighbours, wide, deep, many rows.
    const int64_t sizes[][4] = {
        {1, 1, 1, 1},       {3, 5, 7, 3},       {1, 1, 96, 64},     {3, 1, 130, 72},
        {1, 3, 33, 65},     {3, 49, 33, 65},    {1, 17, 130, 31},   {2, 64, 96, 16},
        {2, 256, 8, 72},    {16, 1, 513, 48},   {1, 16, 384, 384},  {32, 256, 24, 40},
        {3, 200, 520, 136}, {2, 130, 200, 264}, {3, 100, 136, 150}, {1, 133, 52, 76}};
    for (const auto& [r, m, n, k] : sizes) {
      for (DX dX : {DX::Act, DX::F32, DX::Added, DX::Absent, DX::ThroughGelu}) {
        if (type == DType::F32 && dX == DX::F32) continue;  // the same as Act
        cases.push_back({r, m, n, k, type, dX});
      }
    }
  }
  for (const BackwardCase& c : std::vector<BackwardCase>(cases)) {
    if (c.type != DType::F32) continue;
    cases.push_back(c);
    cases.back().tf32 = true;
  }
  for (const BackwardCase& c : cases) {
    addCase(CaseKind::Plain, c.name(), [c](Test& test) { checkBackward(test, c); });
  }
}

// The values are replaced in place, as the optimiser does it: forward and backward follow.
DIT_CASE("linearBackward/changed-weight") {
  constexpr int64_t kR = 2, kM = 9, kN = 40, kK = 50;
  for (DType type : {DType::F32, DType::BF16}) {
    if (!precisionIsHere(test, type)) continue;
    const Values x = test.random(type, {kR, kM, kK}), dY = test.random(type, {kR, kM, kN});
    const Values bias = test.random(DType::F32, {kN});
    DeviceTensor values = test.output(type, {kN, kK});
    const auto weight = test.ops().prepareTrainedLinear({.values = values, .rows = kR * kM});
    const Tensor in = test.upload(x), offsets = test.upload(bias), dOut = test.upload(dY);
    size_t held = 0;
    for (int round = 0; round < 3; round++) {
      const Values w = test.random(type, {kN, kK});
      values.upload(w);
      weight->changed();
      DeviceTensor y = test.output(type, {kR, kM, kN}), dX = test.output(type, {kR, kM, kK});
      test.ops().linear({.x = in, .weight = weight.get(), .bias = offsets, .y = y});
      test.ops().linearBackward({.x = in,
                                 .weight = weight.get(),
                                 .dY = dOut,
                                 .dX = dX,
                                 .dWeight = test.upload(test.random(DType::F32, {kN, kK})),
                                 .dBias = test.upload(bias)});
      EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
        return oracle::linear<T>(kR, kM, kN, kK, x.as<T>(), w.as<T>(), bias.as<T>(),
                                 Epilogue::Bias);
      });
      EXPECT_MATCHES(dX.download(), [&]<typename T>(T) {
        return oracle::linearBackward<T>(kR * kM, kN, kK, x.as<T>(), w.as<T>(), dY.as<T>()).dX;
      });
      EXPECT(round == 0 || weight->bytes() == held, "memory grew from ", held, " to ",
             weight->bytes());
      held = weight->bytes();
    }
  }
}

// What is not finite stays so: a bad step has to show in the gradients.
DIT_CASE("linearBackward/not-finite") {
  constexpr int64_t kM = 20, kN = 24, kK = 33;
  const auto weight = test.ops().prepareTrainedLinear(
      {.values = test.upload(test.random(DType::F32, {kN, kK})), .rows = kM});
  for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    Values dY = test.random(DType::F32, {1, kM, kN});
    dY.v[3 * kN + 5] = bad;
    DeviceTensor dX = test.output(DType::F32, {1, kM, kK});
    DeviceTensor dWeight = test.output(DType::F32, {kN, kK});
    DeviceTensor dBias = test.output(DType::F32, {kN});
    dWeight.upload(test.random(DType::F32, {kN, kK}));
    dBias.upload(test.random(DType::F32, {kN}));
    test.ops().linearBackward({.x = test.upload(test.random(DType::F32, {1, kM, kK})),
                               .weight = weight.get(),
                               .dY = test.upload(dY),
                               .dX = dX,
                               .dWeight = dWeight,
                               .dBias = dBias});
    const Values ofX = dX.download(), ofWeight = dWeight.download(), ofBias = dBias.download();
    for (int64_t i = 0; i < ofX.count(); i++) {
      EXPECT(std::isfinite(ofX.v[i]) == (i / kK != 3), "dX ", i, ": ", ofX.v[i]);
    }
    for (int64_t i = 0; i < ofWeight.count(); i++) {
      EXPECT(std::isfinite(ofWeight.v[i]) == (i / kK != 5), "dWeight ", i, ": ", ofWeight.v[i]);
    }
    for (int64_t i = 0; i < kN; i++) EXPECT(std::isfinite(ofBias.v[i]) == (i != 5), i);
  }
}

DIT_CASE("linearBackward/errors") {
  constexpr int64_t kM = 4, kN = 6, kK = 5;
  const std::vector<float> host(kN * kK);
  const auto prepared = test.ops().prepareLinear(
      {.values = Tensor(const_cast<float*>(host.data()), DType::F32, {kN, kK}),
       .rows = kM,
       .precision = Precision::F32});
  const auto trained = test.ops().prepareTrainedLinear(
      {.values = test.upload(test.random(DType::F32, {kN, kK})), .rows = kM});
  auto run = [&](const PreparedWeight* weight, int64_t n, int64_t k, DType type = DType::F32) {
    test.ops().linearBackward({.x = test.upload(test.random(type, {1, kM, k})),
                               .weight = weight,
                               .dY = test.upload(test.random(type, {1, kM, n})),
                               .dX = test.output(type, {1, kM, k}),
                               .dWeight = test.upload(test.random(DType::F32, {n, k})),
                               .dBias = test.upload(test.random(DType::F32, {n}))});
  };
  run(trained.get(), kN, kK);
  EXPECT_ERROR(Internal, run(prepared.get(), kN, kK));
  EXPECT_ERROR(Shape, run(nullptr, kN, kK));
  EXPECT_ERROR(Shape, run(trained.get(), kN + 1, kK));
  EXPECT_ERROR(Shape, run(trained.get(), kN, kK + 1));
  EXPECT_ERROR(Shape, run(trained.get(), kN, kK, DType::BF16));
}

// ---- columnSums -----------------------------------------------------------------------------

DIT_KERNEL_CASE("columnSums") {
  const int64_t sizes[][2] = {{1, 1}, {1, 40}, {3, 7}, {32, 16}, {33, 65}, {500, 130}, {8192, 24}};
  for (DType type : {DType::F32, DType::BF16}) {
    for (const auto& [m, n] : sizes) {
      const Values x = test.random(type, {m, n}), before = test.random(DType::F32, {n});
      const Tensor in = test.upload(x);
      std::vector<char> bits[2];
      for (const int threads : {1, 2}) {
        cpu::setThreads(threads);
        DeviceTensor sums = test.output(DType::F32, {n});
        sums.upload(before);
        cpu::kernels().columnSums({.x = in, .sums = sums});
        bits[threads - 1] = sums.bytes();
        EXPECT_MATCHES(sums.download(), [&]<typename T>(T) {
          std::vector<T> want(n);
          const std::vector<T> values = x.as<T>();
          for (int64_t i = 0; i < m * n; i++) want[i % n] += values[i];
          return sum(want, before.as<T>());
        });
      }
      EXPECT(bits[0] == bits[1], "the number of threads changes the result of ", m, " x ", n);
    }
  }
}

// ---- timing ---------------------------------------------------------------------------------

// The products of training: y, dX, and dW with dBias. The time of dX is what it adds to the others.
void benchTraining(Test& test, const char* label, DType type, int64_t rows, int64_t n, int64_t k) {
  if (!precisionIsHere(test, type)) return;
  const Tensor x = test.upload(test.random(type, {1, rows, k}));
  const Tensor dY = test.upload(test.random(type, {1, rows, n}));
  const Tensor bias = test.upload(test.random(DType::F32, {n}));
  const Tensor dWeight = test.upload(test.random(DType::F32, {n, k}));
  const Tensor dBias = test.upload(test.random(DType::F32, {n}));
  const auto weight = test.ops().prepareTrainedLinear(
      {.values = test.upload(test.random(type, {n, k})), .rows = rows});
  DeviceTensor y = test.output(type, {1, rows, n}), dX = test.output(type, {1, rows, k});
  const LinearArgs forward{.x = x, .weight = weight.get(), .bias = bias, .y = y};
  LinearBackwardArgs backward{
      .x = x, .weight = weight.get(), .dY = dY, .dWeight = dWeight, .dBias = dBias};

  const std::string shape =
      detail::concat(label, " ", dtypeName(type), " ", rows, "x", n, "x", k, " ");
  const double flops = 2.0 * static_cast<double>(rows * n * k);
  test.bench(shape + "forward", flops, 0, [&] { test.ops().linear(forward); });
  const double ofWeight =
      test.bench(shape + "dW", flops, 0, [&] { test.ops().linearBackward(backward); });
  backward.dX = dX;
  const double both =
      test.bench(shape + "dX + dW", 2 * flops, 0, [&] { test.ops().linearBackward(backward); });
  std::printf("%-44s %10.1f us %8.1f GFLOP/s\n", (shape + "dX alone").c_str(),
              (both - ofWeight) * 1e6, flops / (both - ofWeight) * 1e-9);
  test.bench(shape + "changed", 0, 0, [&] {
    weight->changed();
    test.ops().linear(forward);
  });
}

DIT_BENCH("linearBackward/dit") {
  for (DType type : {DType::F32, DType::BF16}) {
    for (const auto& [label, hidden, rows] :
         {std::tuple<const char*, int64_t, int64_t>{"S/2", 384, 4096},
          {"B/2", 768, 4096},
          {"demo", 160, 4096}}) {
      benchTraining(test, label, type, rows, 3 * hidden, hidden);
      benchTraining(test, label, type, rows, hidden, hidden);
      benchTraining(test, label, type, rows, 4 * hidden, hidden);
      benchTraining(test, label, type, rows, hidden, 4 * hidden);
    }
  }
}

}  // namespace
}  // namespace dit::test
