// The small operations of training: siluBackward, conditionEmbeddingBackward, unpatchifyBackward,
// drawLatents, qSample and cast.
#include <cmath>
#include <complex>

#include "copy_bench.h"
#include "harness.h"
#include "oracle_training.h"

namespace dit::test {
namespace {

using Complex = std::complex<double>;

constexpr DType kActs[] = {DType::F32, DType::BF16};

std::vector<Complex> complex(const std::vector<double>& v) { return {v.begin(), v.end()}; }

// ---- the oracle -----------------------------------------------------------------------------

DIT_CASE("oracle/training-ops") {
  constexpr double kExact = 1e-9;
  std::vector<double> x, dX;
  for (double v = -30; v < 30; v += 0.83) x.push_back(v), dX.push_back(oracle::siluDerivative(v));
  const std::vector<double> ones(x.size(), 1);
  const auto silu = oracle::complexStep(x, ones, [](std::vector<Complex> moved) {
    for (Complex& value : moved) value = oracle::silu(value);
    return moved;
  });
  EXPECT(relativeL2(dX, silu) < kExact, relativeL2(dX, silu));

  constexpr int64_t kE = 5, kC = 3, kRows = 4;
  const std::vector<int32_t> label{3, 0, 3, 1, 3};
  const auto t = test.random(DType::F64, {kE * kC}).v, dY = test.random(DType::F64, {kE * kC}).v;
  const auto table = test.random(DType::F64, {kRows * kC}).v;
  const auto before = test.random(DType::F64, {kRows * kC}).v;
  const auto got = oracle::conditionEmbeddingBackward<double>(kC, dY, label, before);
  auto dTable = oracle::complexStep(table, dY, [&](const std::vector<Complex>& moved) {
    return oracle::conditionEmbedding<Complex>(kC, complex(t), moved, label, {});
  });
  for (size_t i = 0; i < dTable.size(); i++) dTable[i] += before[i];
  EXPECT(relativeL2(got, dTable) < kExact, relativeL2(got, dTable));

  constexpr int64_t kR = 2, kH = 6, kW = 9, kP = 3;
  const auto tokens = test.random(DType::F64, {kR * kC * kH * kW}).v;
  const auto dImage = test.random(DType::F64, {kR * kC * kH * kW}).v;
  const auto dTokens = oracle::complexStep(tokens, dImage, [&](const std::vector<Complex>& moved) {
    return oracle::unpatchify<Complex>(kR, kC, kH, kW, kP, moved);
  });
  const auto unpatchified = oracle::unpatchifyBackward<double>(kR, kC, kH, kW, kP, dImage);
  EXPECT(relativeL2(unpatchified, dTokens) < kExact, relativeL2(unpatchified, dTokens));
}

// ---- siluBackward ---------------------------------------------------------------------------

DIT_KERNEL_CASE("siluBackward") {
  for (bool inPlace : {false, true}) {
    for (const Shape& shape : {Shape{37}, Shape{3, 20}, Shape{5, 1152}, Shape{70001}}) {
      const Values x = test.random(DType::F32, shape, 4), dY = test.random(DType::F32, shape);
      DeviceTensor dX = test.output(DType::F32, shape);
      if (inPlace) dX.upload(dY);
      test.ops().siluBackward(
          {.x = test.upload(x), .dY = inPlace ? dX.tensor() : test.upload(dY), .dX = dX});
      EXPECT_MATCHES(dX.download(), [&]<typename T>(T) {
        std::vector<T> want = dY.as<T>();
        for (size_t i = 0; i < want.size(); i++) {
          want[i] *= oracle::siluDerivative(static_cast<T>(x.v[i]));
        }
        return want;
      });
    }
  }
}

// Where exp overflows or vanishes the derivative is 0 or 1; NaN stays NaN.
DIT_KERNEL_CASE("siluBackward/extremes") {
  const std::vector<double> in{-3e38, -200, 90, 200, 3e38, 0, NAN};
  DeviceTensor dX = test.output(DType::F32, {7});
  test.ops().siluBackward({.x = test.upload(Values::of(DType::F32, {7}, in)),
                           .dY = test.upload({DType::F32, {7}, std::vector<double>(7, 1)}),
                           .dX = dX});
  const std::vector<double> got = dX.download().v;
  for (int i : {0, 1}) EXPECT(std::abs(got[i]) < 1e-36, in[i], " ", got[i]);
  for (int i : {2, 3, 4}) EXPECT(got[i] == 1, in[i], " ", got[i]);
  EXPECT(got[5] == 0.5 && std::isnan(got[6]), got[5], " ", got[6]);
}

// ---- conditionEmbeddingBackward -------------------------------------------------------------

DIT_KERNEL_CASE("conditionEmbeddingBackward") {
  for (int64_t c : {1, 20, 64, 131}) {
    for (const std::vector<int32_t>& label :
         {std::vector<int32_t>{10}, {3, 0, 10}, {7, 3, 7, 7, 0, 3, 7, 7, 7}}) {
      const Values dY = test.random(DType::F32, {static_cast<int64_t>(label.size()), c});
      const Values before = test.random(DType::F32, {11, c});
      DeviceTensor dTable = test.output(DType::F32, {11, c});
      dTable.upload(before);
      test.ops().conditionEmbeddingBackward(
          {.dY = test.upload(dY), .label = test.upload(label), .dTable = dTable});
      // A sum in a fixed order, of the same numbers: exactly the oracle's in float.
      const std::vector<float> want =
          oracle::conditionEmbeddingBackward<float>(c, dY.as<float>(), label, before.as<float>());
      EXPECT(dTable.download().as<float>() == want, label.size(), " entries of ", c);
    }
  }
}

// Labels that are none. The CPU refuses them; a GPU, whose labels the host does not see, leaves
// them out.
DIT_KERNEL_CASE("conditionEmbeddingBackward/labels") {
  const bool refuses = test.backend().name() == "cpu";
  const Values before = test.random(DType::F32, {11, 8}), dY = test.random(DType::F32, {3, 8});
  Values after = before;
  for (const auto& [entry, label] : {std::pair{0, 4}, {2, 5}}) {
    for (int64_t i = 0; i < 8 && !refuses; i++) {
      double& value = after.v[static_cast<size_t>(label * 8 + i)];
      value = rounded(DType::F32, value + dY.v[static_cast<size_t>(entry * 8 + i)]);
    }
  }
  for (int32_t wrong : {11, -1, 1 << 30}) {
    DeviceTensor dTable = test.output(DType::F32, {11, 8});
    dTable.upload(before);
    const Tensor label = test.upload(std::vector<int32_t>{4, wrong, 5});
    const ConditionEmbeddingBackwardArgs args{test.upload(dY), label, dTable};
    if (refuses) {
      const std::string message = EXPECT_ERROR(Shape, test.ops().conditionEmbeddingBackward(args));
      const std::string want =
          detail::concat("conditionEmbeddingBackward: label 1 must be 0 to 10, got ", wrong);
      EXPECT(message == want, message);
    } else {
      test.ops().conditionEmbeddingBackward(args);
    }
    EXPECT(dTable.download().v == after.v, "with label ", wrong);
  }
}

// ---- unpatchifyBackward ---------------------------------------------------------------------

DIT_KERNEL_CASE("unpatchifyBackward") {
  struct {
    int64_t rows, c, h, w, p;
  } const kCases[] = {{2, 4, 8, 8, 2},  {1, 8, 32, 32, 2}, {3, 3, 6, 9, 3},
                      {2, 4, 8, 16, 4}, {1, 1, 5, 3, 1},   {1, 4, 16, 8, 8}};
  for (DType act : kActs) {
    for (const auto& s : kCases) {
      const Values dY = test.random(DType::F32, {s.rows, s.c, s.h, s.w});
      DeviceTensor dX = test.output(act, {s.rows, s.h / s.p * (s.w / s.p), s.p * s.p * s.c});
      test.ops().unpatchifyBackward({.dY = test.upload(dY), .patch = s.p, .dX = dX});
      EXPECT_MATCHES(dX.download(), [&]<typename T>(T) {
        return oracle::unpatchifyBackward<T>(s.rows, s.c, s.h, s.w, s.p, dY.as<T>());
      });
    }
  }
}

// ---- drawLatents, qSample, cast -------------------------------------------------------------

DIT_KERNEL_CASE("drawLatents") {
  constexpr float kScale = 0.18215f, kShift = 0.0609f;
  for (bool inPlace : {false, true}) {
    for (const Shape& shape : {Shape{1, 1, 3, 5}, Shape{3, 4, 7, 7}, Shape{2, 4, 64, 65}}) {
      const Values mean = test.random(DType::F32, shape, 5), z = test.random(DType::F32, shape);
      const Values deviation = test.random(DType::F32, shape, 0.1, 0.5);
      DeviceTensor y = test.output(DType::F32, shape);
      if (inPlace) y.upload(mean);
      test.ops().drawLatents({.mean = inPlace ? y.tensor() : test.upload(mean),
                              .deviation = test.upload(deviation),
                              .z = test.upload(z),
                              .scale = kScale,
                              .shift = kShift,
                              .y = y});
      EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
        return oracle::drawLatents<T>(mean.as<T>(), deviation.as<T>(), z.as<T>(), kScale, kShift);
      });
    }
  }
}

DIT_KERNEL_CASE("qSample") {
  for (const Shape& shape : {Shape{1, 1, 3, 5}, Shape{3, 4, 7, 7}, Shape{5, 4, 64, 65}}) {
    const Values x0 = test.random(DType::F32, shape), z = test.random(DType::F32, shape);
    const Values signal = test.random(DType::F32, {shape[0]});
    const Values noise = test.random(DType::F32, {shape[0]});
    DeviceTensor y = test.output(DType::F32, shape);
    test.ops().qSample({.x0 = test.upload(x0),
                        .z = test.upload(z),
                        .signal = test.upload(signal),
                        .noise = test.upload(noise),
                        .y = y});
    EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
      return oracle::qSample<T>(shape.count() / shape[0], x0.as<T>(), z.as<T>(), signal.as<T>(),
                                noise.as<T>());
    });
  }
}

// Rounds as the host does, to the bit, or copies; not even a small number is lost in F32.
DIT_KERNEL_CASE("cast") {
  for (DType act : kActs) {
    for (const Shape& shape : {Shape{1}, Shape{3, 7, 20}, Shape{70001}}) {
      Values x = test.random(DType::F32, shape, 3);
      x.v[0] = act == DType::F32 ? 0x1p-140 : 1 + 0x1p-8;
      DeviceTensor y = test.output(act, shape);
      test.ops().cast({.x = test.upload(x), .y = y});
      EXPECT(y.download().v == Values::of(act, shape, x.v).v, dtypeName(act), " ", shape);
    }
  }
}

// ---- bits -----------------------------------------------------------------------------------

// Sizes that threads share give the same bits whatever their number.
DIT_KERNEL_CASE("training-ops/bits") {
  const Shape shape{9, 4, 60, 60};
  const Tensor a = test.upload(test.random(DType::F32, shape));
  const Tensor b = test.upload(test.random(DType::F32, shape));
  const Tensor c = test.upload(test.random(DType::F32, shape));
  const Tensor perRow = test.upload(test.random(DType::F32, {9}));
  const Tensor entries = test.upload(test.random(DType::F32, {360, 360}));
  const Tensor label = test.upload(test.randomIndex({360}, 7));
  const Values table = test.random(DType::F32, {7, 360});
  auto run = [&](Ops& ops) {
    std::vector<std::vector<char>> bits;
    DeviceTensor y = test.output(DType::F32, shape), low = test.output(DType::BF16, shape);
    ops.siluBackward({a, b, y});
    bits.push_back(y.bytes());
    ops.drawLatents({.mean = a, .deviation = b, .z = c, .scale = 0.5f, .y = y});
    bits.push_back(y.bytes());
    ops.qSample({a, b, perRow, perRow, y});
    bits.push_back(y.bytes());
    ops.cast({a, low});
    bits.push_back(low.bytes());
    DeviceTensor tokens = test.output(DType::BF16, {9, 900, 16});
    ops.unpatchifyBackward({a, 2, tokens});
    bits.push_back(tokens.bytes());
    DeviceTensor dTable = test.output(DType::F32, {7, 360});
    dTable.upload(table);
    ops.conditionEmbeddingBackward({entries, label, dTable});
    bits.push_back(dTable.bytes());
    return bits;
  };
  std::vector<std::vector<char>> want;
  for (int threads : {1, 2, 5}) {
    Ops ops(openBackend({.device = test.options().device, .threads = threads}));
    const auto got = run(ops);
    if (want.empty()) want = got;
    for (size_t i = 0; i < got.size(); i++) {
      EXPECT(got[i] == want[i], "operation ", i, ", ", threads, " threads");
    }
  }
}

// ---- benchmarks ------------------------------------------------------------------------------

// 16 latents of 64 x 64 with 8 channels, and as many numbers for the others: 2 MB a tensor.
DIT_BENCH("training-ops") {
  const Shape shape{16, 8, 64, 64};
  const Tensor a = test.upload(test.random(DType::F32, shape));
  const Tensor b = test.upload(test.random(DType::F32, shape));
  const Tensor c = test.upload(test.random(DType::F32, shape));
  const Tensor perRow = test.upload(test.random(DType::F32, {16}));
  const DeviceTensor y = test.output(DType::F32, shape);
  const double bytes = static_cast<double>(a.bytes());
  benchCopy(test);
  test.bench("siluBackward", 0, 3 * bytes, [&] { test.ops().siluBackward({a, b, y}); });
  test.bench("drawLatents", 0, 4 * bytes, [&] {
    test.ops().drawLatents({.mean = a, .deviation = b, .z = c, .scale = 0.5f, .y = y});
  });
  test.bench("qSample", 0, 3 * bytes, [&] { test.ops().qSample({a, b, perRow, perRow, y}); });
  for (DType act : kActs) {
    const DeviceTensor low = test.output(act, shape), tokens = test.output(act, {16, 1024, 32});
    const double both = bytes + static_cast<double>(low.tensor().bytes());
    test.bench(detail::concat("cast ", dtypeName(act)), 0, both, [&] {
      test.ops().cast({a, low});
    });
    test.bench(detail::concat("unpatchifyBackward ", dtypeName(act)), 0, both, [&] {
      test.ops().unpatchifyBackward({a, 2, tokens});
    });
  }
  const Tensor dY = test.upload(test.random(DType::F32, {256, 384}));
  const Tensor label = test.upload(test.randomIndex({256}, 10));
  const DeviceTensor dTable = test.output(DType::F32, {11, 384});
  test.backend().zero(dTable);
  test.bench("conditionEmbeddingBackward [256, 384]", 0, 3 * static_cast<double>(dY.bytes()), [&] {
    test.ops().conditionEmbeddingBackward({dY, label, dTable});
  });
}

}  // namespace
}  // namespace dit::test
