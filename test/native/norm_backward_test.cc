// layerNormModulateBackward.
#include <cmath>
#include <complex>

#include "copy_bench.h"
#include "harness.h"
#include "oracle_training.h"

namespace dit::test {
namespace {

using Complex = std::complex<double>;

constexpr DType kActs[] = {DType::F32, DType::BF16};

DIT_CASE("oracle/layerNormModulateBackward") {
  constexpr int64_t kR = 2, kT = 3, kC = 5;
  constexpr double kExact = 1e-9;
  const auto x = test.random(DType::F64, {kR * kT * kC}, 1, 0.3).v;
  const auto shift = test.random(DType::F64, {kR * kC}).v;
  const auto scale = test.random(DType::F64, {kR * kC}).v;
  const auto dY = test.random(DType::F64, {kR * kT * kC}).v;
  const auto dResidual = test.random(DType::F64, {kR * kT * kC}).v;
  auto complex = [](const std::vector<double>& v) {
    return std::vector<Complex>(v.begin(), v.end());
  };
  auto forward = [&](const std::vector<Complex>& in, const std::vector<Complex>& shifts,
                     const std::vector<Complex>& scales) {
    return oracle::layerNormModulate<Complex>(kR, kT, kC, in, shifts, scales);
  };
  const auto got = oracle::layerNormModulateBackward<double>(kR, kT, kC, x, scale, dY, dResidual);
  std::vector<double> dX = oracle::complexStep(
      x, dY, [&](const auto& moved) { return forward(moved, complex(shift), complex(scale)); });
  for (size_t i = 0; i < dX.size(); i++) dX[i] += dResidual[i];
  const auto dShift = oracle::complexStep(
      shift, dY, [&](const auto& moved) { return forward(complex(x), moved, complex(scale)); });
  const auto dScale = oracle::complexStep(
      scale, dY, [&](const auto& moved) { return forward(complex(x), complex(shift), moved); });
  EXPECT(relativeL2(got.dX, dX) < kExact, relativeL2(got.dX, dX));
  EXPECT(relativeL2(got.dShift, dShift) < kExact, relativeL2(got.dShift, dShift));
  EXPECT(relativeL2(got.dScale, dScale) < kExact, relativeL2(got.dScale, dScale));
}

enum class Residual { None, Apart, InPlace };

struct NormCase {
  DType act = DType::F32;
  int64_t rows = 1, tokens = 1, c = 1;
  Residual residual = Residual::Apart;
  double deviation = 1, mean = 0.3;  // of x
};

// Columns 3C .. 4C of a modulation [E, 6C] hold shift, 4C .. 5C scale; their gradients lie alike.
constexpr int64_t kVectors = 6, kShift = 3, kScale = 4;

// Numbers of many magnitudes: sums of normal bf16 numbers are nearly exact in float, and no
// measure.
Values wideRandom(Test& test, DType act, Shape shape) {
  const Values magnitude = test.random(DType::F32, shape, 4);
  std::vector<double> v = test.random(DType::F32, shape, 1, 0.1).v;
  for (size_t i = 0; i < v.size(); i++) v[i] *= std::exp2(-std::abs(magnitude.v[i]));
  return Values::of(act, shape, v);
}

struct NormInputs {
  Values x, table, dY, dResidual;
  std::vector<int32_t> index;

  NormInputs(Test& test, const NormCase& s)
      : x(test.random(DType::F32, {s.rows, s.tokens, s.c}, s.deviation, s.mean)),
        table(test.random(DType::F32, {s.rows + 1, kVectors * s.c})),
        dY(wideRandom(test, s.act, x.shape)),
        dResidual(test.random(DType::F32, x.shape)) {
    for (int64_t r = 0; r < s.rows; r++) index.push_back(static_cast<int32_t>(s.rows - r));
  }
};

Values columnsOf(const Values& all, int64_t vector, int64_t c) {
  Values columns{all.dtype, {all.shape[0], c}, {}};
  for (int64_t i = 0; i < all.count(); i++) {
    if (i % (kVectors * c) / c == vector) columns.v.push_back(all.v[i]);
  }
  return columns;
}

void checkNormBackward(Test& test, const NormCase& s) {
  const NormInputs in(test, s);
  DeviceTensor dX = test.output(DType::F32, in.x.shape);
  DeviceTensor modulation = test.output(DType::F32, {s.rows, kVectors * s.c});
  LayerNormModulateBackwardArgs args{
      .x = test.upload(in.x),
      .scale = {test.upload(in.table).columns(kScale * s.c, s.c), test.upload(in.index)},
      .dY = test.upload(in.dY),
      .dX = dX,
      .dShift = modulation.tensor().columns(kShift * s.c, s.c),
      .dScale = modulation.tensor().columns(kScale * s.c, s.c)};
  if (s.residual == Residual::InPlace) dX.upload(in.dResidual);
  if (s.residual != Residual::None) {
    args.dResidual = s.residual == Residual::InPlace ? dX.tensor() : test.upload(in.dResidual);
  }
  test.ops().layerNormModulateBackward(args);

  const Values all = modulation.download();
  const Values got[] = {dX.download(), columnsOf(all, kShift, s.c), columnsOf(all, kScale, s.c)};
  for (int64_t vector : {0, 1, 2, 5}) {
    for (double v : columnsOf(all, vector, s.c).v) EXPECT(std::isnan(v), "vector ", vector);
  }
  auto oracle = [&]<typename T>(T) {
    std::vector<T> scales;
    for (int32_t i : in.index) {
      const double* scale = &in.table.v[(i * kVectors + kScale) * s.c];
      scales.insert(scales.end(), scale, scale + s.c);
    }
    const bool residual = s.residual != Residual::None;
    return oracle::layerNormModulateBackward<T>(s.rows, s.tokens, s.c, in.x.as<T>(), scales,
                                                in.dY.as<T>(),
                                                residual ? in.dResidual.as<T>() : std::vector<T>());
  };
  const auto want = oracle(double{});
  const auto naive = oracle(float{});
  auto expect = [&](const char* name, const Values& result, const std::vector<double>& truth,
                    const std::vector<float>& inFloat) {
    const std::string problem = compare(result, truth, {inFloat.begin(), inFloat.end()});
    EXPECT(problem.empty(), name, " of ", in.x.shape, ": ", problem);
  };
  expect("dX", got[0], want.dX, naive.dX);
  expect("dShift", got[1], want.dShift, naive.dShift);
  expect("dScale", got[2], want.dScale, naive.dScale);
}

DIT_KERNEL_CASE("layerNormModulateBackward") {
  for (DType act : kActs) {
    for (Residual residual : {Residual::None, Residual::Apart, Residual::InPlace}) {
      constexpr int64_t kShapes[][3] = {{1, 7, 20},  {3, 5, 131},  {3, 33, 24},
                                        {1, 49, 96}, {2, 64, 384}, {1, 6, 1152},
                                        {3, 70, 17}, {1, 18, 768}, {1, 17, 1280}};
      for (const auto& s : kShapes) checkNormBackward(test, {act, s[0], s[1], s[2], residual});
    }
  }
}

// One token a row: dShift is dY, rounding has nowhere to hide.
DIT_KERNEL_CASE("layerNormModulateBackward/one-token") {
  for (DType act : kActs) checkNormBackward(test, {act, 3, 1, 131});
}

// A mean far from 0: sums of squares would have no digit left.
DIT_KERNEL_CASE("layerNormModulateBackward/large-mean") {
  checkNormBackward(test, {.tokens = 16, .c = 1152, .mean = 300});
}

// Tokens of equal channels have no variance: eps keeps their gradient finite, and of dY only what
// differs from its mean counts.
DIT_KERNEL_CASE("layerNormModulateBackward/constant") {
  checkNormBackward(test, {.rows = 2, .tokens = 5, .c = 40, .deviation = 0, .mean = 2.5});
}

// The bits depend neither on the number of threads nor on the rows beside a row.
DIT_KERNEL_CASE("layerNormModulateBackward/bits") {
  for (DType act : kActs) {
    const NormCase s{.act = act, .rows = 2, .tokens = 350, .c = 200};
    const NormInputs in(test, s);
    const Tensor x = test.upload(in.x), dY = test.upload(in.dY);
    const Tensor dResidual = test.upload(in.dResidual);
    const RowVector scale{test.upload(in.table).columns(0, s.c), test.upload(in.index)};
    auto run = [&](Ops& ops, int64_t first, int64_t rows) {
      DeviceTensor dX = test.output(DType::F32, {rows, s.tokens, s.c});
      DeviceTensor dShift = test.output(DType::F32, {rows, s.c});
      DeviceTensor dScale = test.output(DType::F32, {rows, s.c});
      ops.layerNormModulateBackward({.x = x.slice(first, rows),
                                     .scale = {scale.table, scale.index.slice(first, rows)},
                                     .dY = dY.slice(first, rows),
                                     .dResidual = dResidual.slice(first, rows),
                                     .dX = dX,
                                     .dShift = dShift,
                                     .dScale = dScale});
      return std::vector{dX.bytes(), dShift.bytes(), dScale.bytes()};
    };
    const auto want = run(test.ops(), 0, 2), second = run(test.ops(), 1, 1);
    for (int threads : {1, 2, 5}) {
      Ops ops(openBackend({.device = test.options().device, .threads = threads}));
      EXPECT(run(ops, 0, 2) == want, threads, " threads");
      EXPECT(run(ops, 1, 1) == second, threads, " threads, one row");
    }
    for (size_t i = 0; i < want.size(); i++) {
      EXPECT(std::equal(second[i].begin(), second[i].end(), want[i].end() - second[i].size()),
             "result ", i);
    }
  }
}

// DiT-S/2 with 16 images.
DIT_BENCH("layerNormModulateBackward") {
  const Shape shape{16, 256, 384};
  benchCopy(test);
  for (DType act : kActs) {
    const Tensor x = test.upload(test.random(DType::F32, shape));
    const Tensor dY = test.upload(test.random(act, shape));
    const RowVector scale{test.upload(test.random(DType::F32, {16, 384})),
                          test.upload(test.randomIndex({16}, 16))};
    const DeviceTensor dX = test.output(DType::F32, shape);
    const DeviceTensor sums = test.output(DType::F32, {16, 768});
    test.backend().zero(dX);
    test.bench(detail::concat("layerNormModulateBackward ", dtypeName(act)), 0,
               3.0 * static_cast<double>(x.bytes()) + static_cast<double>(dY.bytes()), [&] {
                 test.ops().layerNormModulateBackward({.x = x,
                                                       .scale = scale,
                                                       .dY = dY,
                                                       .dResidual = dX,
                                                       .dX = dX,
                                                       .dShift = sums.tensor().columns(0, 384),
                                                       .dScale = sums.tensor().columns(384, 384)});
               });
  }
}

}  // namespace
}  // namespace dit::test
