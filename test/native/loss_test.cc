// The training loss: terms and gradient.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "fixture.h"
#include "harness.h"
#include "model/diffusion.h"
#include "oracle_loss.h"

namespace dit::test {
namespace {

constexpr double kBits = 1.4426950408889634;  // a nat in bits

Values asBytes(const std::vector<LossStep>& steps) {
  std::vector<unsigned char> raw(steps.size() * sizeof(LossStep));
  std::memcpy(raw.data(), steps.data(), raw.size());
  return {DType::U8,
          {static_cast<int64_t>(steps.size()), static_cast<int64_t>(sizeof(LossStep))},
          std::vector<double>(raw.begin(), raw.end())};
}

std::vector<LossStep> stepsAt(const std::vector<int64_t>& timesteps) {
  const Schedule schedule = makeSchedule(makeBetas({}), spaceTimesteps(1000, "1000"));
  std::vector<LossStep> steps;
  for (int64_t t : timesteps) steps.push_back(makeLossStep(schedule, t));
  return steps;
}

struct Inputs {
  Values model, noise, x0;
  std::vector<LossStep> steps;
  bool bound = true;
  float scale = 1;
};

struct Outputs {
  std::vector<double> mse, vb, dEps, dV;
  std::vector<char> bytes;  // of terms and dModel
};

// Rows [first, first + n) alone.
Values rowsOf(const Values& x, int64_t first, int64_t n) {
  const int64_t row = x.count() / x.shape[0];
  return {x.dtype,
          {n, x.shape[1], x.shape[2], x.shape[3]},
          {x.v.begin() + first * row, x.v.begin() + (first + n) * row}};
}

Outputs run(Test& test, Ops& ops, const Inputs& in) {
  const int64_t rows = in.noise.shape[0];
  DeviceTensor dModel(ops.backend(), DType::F32, in.model.shape);
  DeviceTensor terms(ops.backend(), DType::F32, {rows, 2});
  ops.loss({.model = test.upload(in.model),
            .noise = test.upload(in.noise),
            .x0 = test.upload(in.x0),
            .steps = test.upload(asBytes(in.steps)),
            .bound = in.bound,
            .scale = in.scale,
            .dModel = dModel,
            .terms = terms});
  Outputs out;
  const Values t = terms.download(), d = dModel.download();
  const int64_t n = in.noise.count() / rows, perRow = in.model.count() / rows;
  for (int64_t row = 0; row < rows; row++) {
    out.mse.push_back(t.v[2 * row]);
    out.vb.push_back(t.v[2 * row + 1]);
    const auto begin = d.v.begin() + row * perRow;
    out.dEps.insert(out.dEps.end(), begin, begin + n);
    out.dV.insert(out.dV.end(), begin + n, begin + perRow);
  }
  out.bytes = terms.bytes();
  const std::vector<char> gradient = dModel.bytes();
  out.bytes.insert(out.bytes.end(), gradient.begin(), gradient.end());
  return out;
}

// Images in [-1, 1] with both ends among them, a model that is near the noise.
Inputs randomInputs(Test& test, const Shape& shape, int64_t co, double error,
                    const std::vector<int64_t>& timesteps) {
  Inputs in;
  in.noise = test.random(DType::F32, shape);
  in.x0 = test.random(DType::F32, shape, 0.8);
  for (double& x : in.x0.v) x = std::clamp(x, -1.0, 1.0);
  in.model = test.random(DType::F32, {shape[0], co, shape[2], shape[3]}, error);
  const int64_t n = shape[1] * shape[2] * shape[3], perRow = co * shape[2] * shape[3];
  for (int64_t i = 0; i < in.noise.count(); i++) {
    double& eps = in.model.v[i / n * perRow + i % n];
    eps = rounded(DType::F32, eps + in.noise.v[i]);
  }
  in.steps = stepsAt(timesteps);
  return in;
}

void checkLoss(Test& test, const Inputs& in) {
  const Shape& shape = in.noise.shape;
  const Outputs got = run(test, test.ops(), in);
  const oracle::LossSetup setup{.rows = shape[0],
                                .c = shape[1],
                                .co = in.model.shape[1],
                                .hw = shape[2] * shape[3],
                                .bound = in.bound,
                                .scale = in.scale};
  const auto oracle = [&]<typename T>(T) {
    return oracle::loss<T>(setup, in.model.as<T>(), in.noise.as<T>(), in.x0.as<T>(), in.steps);
  };
  const auto want = oracle(double{});
  const auto naive = oracle(float{});
  const auto same = [&](const char* what, const std::vector<double>& values,
                        const std::vector<double>& exact, const std::vector<float>& rough) {
    const int64_t n = static_cast<int64_t>(values.size());
    const std::string problem =
        compare({DType::F32, {n}, values}, exact, std::vector<double>(rough.begin(), rough.end()));
    EXPECT(problem.empty(), what, " ", shape, ": ", problem);
  };
  same("mse", got.mse, want.mse, naive.mse);
  same("vb", got.vb, want.vb, naive.vb);
  same("dEps", got.dEps, want.dEps, naive.dEps);
  // Each row by itself, for v's gradient falls by orders of magnitude with t.
  const size_t n = want.dV.size() / static_cast<size_t>(shape[0]);
  for (size_t begin = 0; n > 0 && begin < want.dV.size(); begin += n) {
    const auto part = [&](const auto& all) {
      return std::vector(all.begin() + static_cast<int64_t>(begin),
                         all.begin() + static_cast<int64_t>(begin + n));
    };
    same("dV", part(got.dV), part(want.dV), part(naive.dV));
  }
}

DIT_KERNEL_CASE("loss") {
  checkLoss(test, randomInputs(test, {5, 4, 32, 32}, 8, 1, {0, 1, 17, 500, 999}));
  checkLoss(test, randomInputs(test, {5, 4, 32, 32}, 8, 0.1, {999, 0, 300, 2, 0}));
  checkLoss(test, randomInputs(test, {3, 3, 5, 7}, 6, 0.5, {3, 0, 250}));
  checkLoss(test, randomInputs(test, {1, 1, 31, 37}, 2, 0.5, {0}));
  checkLoss(test, randomInputs(test, {3, 3, 37, 41}, 6, 0.01, {10, 100, 990}));
  Inputs scaled = randomInputs(test, {4, 4, 8, 8}, 8, 1, {0, 40, 400, 800});
  scaled.scale = 0.0625f;
  checkLoss(test, scaled);
}

// Without the bound, with and without channels for it.
DIT_KERNEL_CASE("loss/mse-alone") {
  for (int64_t co : {3, 6}) {
    Inputs in = randomInputs(test, {3, 3, 19, 23}, co, 1, {0, 17, 999});
    in.bound = false;
    in.scale = 0.25f;
    checkLoss(test, in);
    for (double vb : run(test, test.ops(), in).vb) EXPECT(vb == 0, vb);
  }
}

// The derivatives that set the tolerance are those of the oracle's terms.
DIT_CASE("loss/oracle") {
  const std::vector<LossStep> steps = stepsAt({0, 1, 100, 999});
  for (const LossStep& step : steps) {
    const Values random = test.random(DType::F64, {200, 2});
    for (int64_t i = 0; i < 200; i++) {
      const double difference = random.v[2 * i], v = random.v[2 * i + 1];
      for (double x0 : {-1.0, 0.2, 1.0}) {
        using Complex = std::complex<double>;
        const double want =
            oracle::boundTerm<Complex>(step, x0, difference, {v, 1e-100}).imag() / 1e-100;
        const double got = oracle::boundDerivative(step, x0, difference, v);
        EXPECT(std::abs(got - want) <= 1e-8 * std::abs(want) + 1e-13, got, " instead of ", want);
      }
    }
  }
}

// The bits of a row depend neither on the other rows nor on the number of threads.
DIT_KERNEL_CASE("loss/bits") {
  const Inputs in = randomInputs(test, {3, 4, 33, 35}, 8, 0.5, {0, 20, 700});
  const std::vector<char> want = run(test, test.ops(), in).bytes;
  for (int threads : {1, 2, 3, 7}) {
    Ops ops(openBackend({.device = test.options().device, .threads = threads}));
    EXPECT(run(test, ops, in).bytes == want, threads, " threads");
  }
  for (int64_t row = 0; row < 3; row++) {
    Inputs alone = in;
    alone.model = rowsOf(in.model, row, 1);
    alone.noise = rowsOf(in.noise, row, 1);
    alone.x0 = rowsOf(in.x0, row, 1);
    alone.steps = {in.steps[row]};
    const std::vector<char> got = run(test, test.ops(), alone).bytes;
    const int64_t terms = 2 * sizeof(float), model = alone.model.count() * 4;
    EXPECT(std::equal(got.begin(), got.begin() + terms, want.begin() + row * terms), row);
    EXPECT(std::equal(got.begin() + terms, got.end(), want.begin() + 3 * terms + row * model), row);
  }
}

// Rows of one element each, for values by themselves: the mean of p lies `distance` above that of
// q, at t = 0 x0.
struct Point {
  double x0, distance;
  double logVarianceMin, logVarianceMax, v;
};

Inputs pointInputs(const std::vector<Point>& points, bool decoder) {
  const Shape shape{static_cast<int64_t>(points.size()), 1, 1, 1};
  Inputs in;
  std::vector<double> model, noise, x0;
  for (const Point& p : points) {
    model.insert(model.end(), {0, p.v});
    noise.push_back(p.distance);
    x0.push_back(p.x0);
    in.steps.push_back({.meanFromEps = 1,
                        .logVarianceMin = static_cast<float>(p.logVarianceMin),
                        .logVarianceMax = static_cast<float>(p.logVarianceMax),
                        .decoder = decoder});
  }
  in.model = Values::of(DType::F32, {shape[0], 2, 1, 1}, model);
  in.noise = Values::of(DType::F32, shape, noise);
  in.x0 = Values::of(DType::F32, shape, x0);
  return in;
}

std::vector<double> column(const Fixture& file, const std::string& name) {
  const Tensor& t = file.at(name);
  return {t.as<float>(), t.as<float>() + t.count()};
}

void expectFixture(Test& test, const Fixture& file, const std::string& name,
                   const std::vector<double>& got) {
  const Tensor& want = file.at(name);
  DIT_CHECK(want.count() == static_cast<int64_t>(got.size()), ErrorCode::Internal, name, " has ",
            want.count(), " values, got ", static_cast<int64_t>(got.size()));
  const std::vector<float> values(got.begin(), got.end());
  const Tolerance allowed = suggestedTolerance(file.name(), name);
  const Tolerance error = difference(values.data(), want.as<float>(), want.count());
  EXPECT(error.relL2 <= allowed.relL2 && error.maxAbs <= allowed.maxAbs, name, ": relative L2 ",
         error.relL2, " of ", allowed.relL2, ", max abs ", error.maxAbs, " of ", allowed.maxAbs);
}

std::vector<double> times(double factor, std::vector<double> values) {
  for (double& value : values) value *= factor;
  return values;
}

// Each term of the reference, from rows of one element.
DIT_KERNEL_CASE("loss/reference-terms") {
  const Fixture file("dit_tiny_training/loss_terms.safetensors");
  const std::vector<double> x = column(file, "x"), means = column(file, "means"),
                            logScales = column(file, "log_scales"), z = column(file, "z"),
                            mean1 = column(file, "mean1"), mean2 = column(file, "mean2"),
                            logvar1 = column(file, "logvar1"), logvar2 = column(file, "logvar2");
  std::vector<Point> likelihood, divergence, cdf;
  for (size_t i = 0; i < x.size(); i++) {
    // v = -1 gives the log variance 2 log_scale, and d logvar / d v is 1.
    likelihood.push_back({x[i], means[i] - x[i], 2 * logScales[i], 2 * logScales[i] + 2, -1});
    // v = 1 gives logvar2, and d logvar / d v is half of the range.
    divergence.push_back({0, mean2[i] - mean1[i], logvar1[i], logvar2[i], 1});
    // The bin at x = -1 is the whole tail below its upper end.
    cdf.push_back({-1, 1.0 / 255 - z[i], 0, 0, 0});
  }
  Outputs got = run(test, test.ops(), pointInputs(likelihood, true));
  expectFixture(test, file, "log_likelihood_nats", times(-1 / kBits, got.vb));
  expectFixture(test, file, "grad.log_scales", times(-2 / kBits, got.dV));

  got = run(test, test.ops(), pointInputs(divergence, false));
  expectFixture(test, file, "normal_kl_nats", times(1 / kBits, got.vb));
  for (size_t i = 0; i < x.size(); i++) got.dV[i] /= kBits * (logvar2[i] - logvar1[i]) / 2;
  expectFixture(test, file, "grad.logvar2", got.dV);

  got = run(test, test.ops(), pointInputs(cdf, true));
  for (double& bits : got.vb) bits = std::exp(-bits / kBits);
  expectFixture(test, file, "cdf", got.vb);
}

// The loss of whole models, with t = 0 and the last among the rows.
DIT_KERNEL_CASE("loss/reference-models") {
  for (const char* name : {"dit_tiny_training/micro24_grads.safetensors",
                           "dit_tiny_training/a96h4_grads.safetensors"}) {
    const Fixture file(name);
    const auto values = [&](const char* tensor) {
      return Values{DType::F32, file.at(tensor).shape, column(file, tensor)};
    };
    const int64_t* t = file.at("t").as<int64_t>();
    Inputs in;
    in.model = values("model_output");
    in.noise = values("noise");
    in.x0 = values("x_start");
    in.steps = stepsAt({t, t + file.at("t").count()});
    in.scale = 1.0f / static_cast<float>(in.steps.size());  // the mean over the rows
    const Outputs got = run(test, test.ops(), in);
    std::vector<double> sum, gradient;
    const size_t n = got.dEps.size() / got.mse.size();
    for (size_t row = 0; row < got.mse.size(); row++) {
      sum.push_back(got.mse[row] + got.vb[row]);
      for (const std::vector<double>* part : {&got.dEps, &got.dV}) {
        const auto begin = part->begin() + static_cast<int64_t>(row * n);
        gradient.insert(gradient.end(), begin, begin + static_cast<int64_t>(n));
      }
    }
    expectFixture(test, file, "terms.mse", got.mse);
    expectFixture(test, file, "terms.vb", got.vb);
    expectFixture(test, file, "terms.loss", sum);
    expectFixture(test, file, "grad.model_output", gradient);
  }
}

// The largest relative errors of a likelihood and of its gradient.
struct Worst {
  double value = 0, gradient = 0;
};

// |got - want| / |want|. Where P is almost 1 the oracle has no digits of a value below 1e-12; a
// gradient may pass through 0, where its error counts against 1e-3.
void note(Worst& worst, double value, double gradient, double wantValue, double wantGradient) {
  const auto error = [](double got, double want, double least) {
    const double e = std::abs(got - want) / std::max(std::abs(want), least);
    return std::isnan(e) ? std::numeric_limits<double>::infinity() : e;
  };
  worst.value = std::max(worst.value, error(value, wantValue, 1e-12));
  worst.gradient = std::max(worst.gradient, error(gradient, wantGradient, 1e-3));
}

// From the middle of the distribution out to where P is 1e-12, for bins from a hundredth of a
// deviation to several.
DIT_KERNEL_CASE("loss/likelihood") {
  std::vector<Point> points;
  for (double half : {0.01, 0.1, 0.4, 1.0, 3.0}) {  // of the bin, in deviations
    const double logVarianceMin = rounded(DType::F32, -2 * std::log(255 * half));
    for (double x0 : {-1.0, 0.0, 1.0}) {
      for (double z = -12; z <= 12; z += 0.05) {
        points.push_back({x0, z / (255 * half), logVarianceMin, logVarianceMin + 2, -1});
      }
    }
  }
  const Inputs in = pointInputs(points, true);
  const Outputs got = run(test, test.ops(), in);
  Worst ours, naive;
  int64_t clamped = 0, far = 0;
  for (size_t i = 0; i < points.size(); i++) {
    using Long = std::complex<long double>;
    const LossStep& step = in.steps[i];
    const double x0 = in.x0.v[i], d = in.noise.v[i];
    const Long bits = oracle::boundTerm<Long>(step, x0, Long(d), Long(-1, 1e-100L));
    const double value = static_cast<double>(bits.real());
    const double slope = static_cast<double>(bits.imag() / 1e-100L);
    const bool isClamped = value > -std::log2(1.0001e-12);
    clamped += isClamped;
    far += value > -std::log2(1e-7) && !isClamped;
    note(ours, got.vb[i], got.dV[i], value, slope);
    if (isClamped) {
      EXPECT(got.dV[i] == 0, "gradient ", got.dV[i], " where the probability is clamped");
      continue;
    }
    const float difference = static_cast<float>(d);
    note(naive, oracle::boundTerm(step, x0, difference, -1.0f),
         oracle::boundDerivative(step, x0, difference, -1.0f), value, slope);
  }
  EXPECT(clamped > 500 && far > 200, clamped, " ", far);
  EXPECT(ours.value < 1e-5, ours.value);
  EXPECT(ours.gradient < 1e-5, ours.gradient);
  // The form that cancels would not pass.
  EXPECT(naive.value > 0.1 && naive.gradient > 0.9, naive.value, " ", naive.gradient);
  std::printf("largest relative errors of value and gradient: %.1e %.1e (cancelling: %.1e %.1e)\n",
              ours.value, ours.gradient, naive.value, naive.gradient);
}

// What is not finite stays visible (but an infinite variance at t = 0: P is 0, so clamped), and the
// rows beside it are as they were.
DIT_KERNEL_CASE("loss/not-finite") {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const bool inV : {false, true}) {
      Inputs in = randomInputs(test, {3, 1, 5, 5}, 2, 0.5, {0, 0, 500});
      const Outputs clean = run(test, test.ops(), in);
      in.model.v[50 + (inV ? 25 : 0) + 7] = bad;
      in.model.v[100 + (inV ? 25 : 0) + 7] = bad;
      const Outputs got = run(test, test.ops(), in);
      EXPECT(got.mse[0] == clean.mse[0] && got.vb[0] == clean.vb[0]);
      for (size_t row : {1, 2}) {
        EXPECT(std::isfinite(got.mse[row]) == inV, row, ": ", got.mse[row]);
        const bool clamped = row == 1 && inV && std::isinf(bad);
        EXPECT(std::isfinite(got.mse[row] + got.vb[row]) == clamped, row, ": ", got.vb[row]);
      }
    }
  }
}

DIT_CASE("loss/errors") {
  const Inputs in = randomInputs(test, {2, 3, 4, 4}, 6, 1, {0, 1});
  Inputs other = in;
  other.model = test.random(DType::F32, {2, 5, 4, 4});
  EXPECT_ERROR(Shape, run(test, test.ops(), other));
  other.model = test.random(DType::F32, {2, 3, 4, 4});
  EXPECT_ERROR(Shape, run(test, test.ops(), other));
  other = in;
  other.x0 = test.random(DType::F32, {2, 3, 4, 5});
  EXPECT_ERROR(Shape, run(test, test.ops(), other));
  other = in;
  other.steps.pop_back();
  EXPECT_ERROR(Shape, run(test, test.ops(), other));
}

DIT_BENCH("loss") {
  for (const bool decoder : {false, true}) {
    const Inputs in =
        randomInputs(test, {16, 4, 32, 32}, 8, 0.5, std::vector<int64_t>(16, decoder ? 0 : 500));
    const Tensor model = test.upload(in.model), noise = test.upload(in.noise);
    const Tensor x0 = test.upload(in.x0), steps = test.upload(asBytes(in.steps));
    const DeviceTensor dModel = test.output(DType::F32, in.model.shape);
    const DeviceTensor terms = test.output(DType::F32, {16, 2});
    const double bytes = 2.0 * model.bytes() + noise.bytes() + (decoder ? x0.bytes() : 0);
    test.bench(decoder ? "loss [16, 4, 32, 32] t = 0" : "loss [16, 4, 32, 32]", 0, bytes, [&] {
      test.ops().loss({.model = model,
                       .noise = noise,
                       .x0 = x0,
                       .steps = steps,
                       .dModel = dModel,
                       .terms = terms});
    });
  }
}

}  // namespace
}  // namespace dit::test
