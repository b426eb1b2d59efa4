#include <algorithm>
#include <string>

#include "harness.h"
#include "oracle.h"

namespace dit::test {
namespace {

const char* label(DType dtype) { return dtype == DType::F32 ? "f32" : "bf16"; }

// ---- layerNormModulate ---------------------------------------------------------------------

void checkLayerNorm(Test& test, DType in, DType out, int64_t rows, int64_t tokens, int64_t c,
                    double scale = 1, double shift = 0.3) {
  constexpr int64_t kEntries = 4;
  const Values x = test.random(in, {rows, tokens, c}, scale, shift);
  // Shift and scale are columns of one table, as the modulation of a block is.
  const Values table = test.random(DType::F32, {kEntries, 3 * c});
  std::vector<int32_t> index;
  for (int64_t r = 0; r < rows; r++) index.push_back(static_cast<int32_t>((r * 3 + 2) % kEntries));
  const Tensor onDevice = test.upload(table), indices = test.upload(index);
  DeviceTensor y = test.output(out, {rows, tokens, c});
  test.ops().layerNormModulate({.x = test.upload(x),
                                .shift = {onDevice.columns(c, c), indices},
                                .scale = {onDevice.columns(2 * c, c), indices},
                                .y = y});
  EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
    std::vector<T> shifts, scales;
    for (int32_t i : index) {
      for (int64_t j = 0; j < c; j++) {
        shifts.push_back(static_cast<T>(table.v[i * 3 * c + c + j]));
        scales.push_back(static_cast<T>(table.v[i * 3 * c + 2 * c + j]));
      }
    }
    return oracle::layerNormModulate<T>(rows, tokens, c, x.as<T>(), shifts, scales);
  });
}

DIT_CASES(layerNormCases) {
  constexpr int64_t kShapes[][3] = {{3, 16, 1152}, {1, 49, 96}, {2, 5, 24},   {1, 7, 131},
                                    {3, 1, 7},     {2, 9, 768}, {1, 3, 1280}, {1, 2, 1540}};
  for (DType in : {DType::F32, DType::BF16}) {
    for (DType out : {DType::F32, DType::BF16}) {
      for (const auto& s : kShapes) {
        addCase(CaseKind::Kernel,
                detail::concat("layerNormModulate/", label(in), "-", label(out), "/c", s[2]),
                [=](Test& test) { checkLayerNorm(test, in, out, s[0], s[1], s[2]); });
      }
    }
  }
}

// A mean far from 0: the variance from the sum of squares would have no digit left.
DIT_KERNEL_CASE("layerNormModulate/large-mean") {
  checkLayerNorm(test, DType::F32, DType::F32, 1, 16, 1152, 1, 300);
}

// A token of equal channels has no variance: eps keeps the result finite.
DIT_KERNEL_CASE("layerNormModulate/constant") {
  const Values x{DType::F32, {1, 1, 40}, std::vector<double>(40, 2.5)};
  const Values table = test.random(DType::F32, {1, 40});
  const RowVector vector{test.upload(table), test.upload(std::vector<int32_t>{0})};
  DeviceTensor y = test.output(DType::F32, {1, 1, 40});
  test.ops().layerNormModulate({.x = test.upload(x), .shift = vector, .scale = vector, .y = y});
  EXPECT(y.download().v == table.v);
}

// A row's bits do not depend on how many rows stand beside it, which may change how many tokens go
// together.
DIT_KERNEL_CASE("layerNormModulate/bits") {
  constexpr int64_t kRows = 5, kTokens = 131;
  for (int64_t c : {96, 131, 768, 1152}) {
    const Tensor x = test.upload(test.random(DType::BF16, {kRows, kTokens, c}));
    const Tensor table = test.upload(test.random(DType::F32, {3, 2 * c}));
    const Tensor index = test.upload(std::vector<int32_t>{2, 0, 1, 0, 2});
    const auto run = [&](int64_t first, int64_t rows) {
      const DeviceTensor y = test.output(DType::BF16, {rows, kTokens, c});
      test.ops().layerNormModulate({.x = x.slice(first, rows),
                                    .shift = {table.columns(0, c), index.slice(first, rows)},
                                    .scale = {table.columns(c, c), index.slice(first, rows)},
                                    .y = y});
      return y.bytes();
    };
    const std::vector<char> all = run(0, kRows);
    for (int64_t row = 0; row < kRows; row++) {
      const std::vector<char> alone = run(row, 1);
      const auto begin = all.begin() + row * static_cast<int64_t>(alone.size());
      EXPECT(std::equal(alone.begin(), alone.end(), begin), "row ", row, " of ", c, " channels");
    }
  }
}

DIT_BENCH("layerNormModulate") {
  constexpr int64_t kRows = 2, kTokens = 256, kC = 1152;
  for (DType in : {DType::F32, DType::BF16}) {
    for (DType out : {DType::F32, DType::BF16}) {
      const Tensor x = test.upload(test.random(in, {kRows, kTokens, kC}));
      const RowVector vector{test.upload(test.random(DType::F32, {kRows, kC})),
                             test.upload(std::vector<int32_t>{0, 1})};
      const DeviceTensor y = test.output(out, {kRows, kTokens, kC});
      const double bytes = static_cast<double>(x.bytes() + y.tensor().bytes());
      test.bench(
          detail::concat("layerNormModulate ", label(in), "-", label(out), " [2, 256, 1152]"), 0,
          bytes, [&] {
            test.ops().layerNormModulate({.x = x, .shift = vector, .scale = vector, .y = y});
          });
    }
  }
}

// ---- groupNorm -----------------------------------------------------------------------------

void checkGroupNorm(Test& test, DType act, Shape shape, int64_t groups, bool silu,
                    double shift = 0.3, bool inPlace = false) {
  const int64_t c = shape[3];
  const Values x = test.random(act, shape, 1, shift);
  const Values gamma = test.random(DType::F32, {c}), beta = test.random(DType::F32, {c});
  DeviceTensor y = test.output(act, shape);
  if (inPlace) y.upload(x);
  test.ops().groupNorm({.x = inPlace ? y.tensor() : test.upload(x),
                        .gamma = test.upload(gamma),
                        .beta = test.upload(beta),
                        .groups = groups,
                        .silu = silu,
                        .y = y});
  EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
    return oracle::groupNorm<T>(shape[0], shape[1] * shape[2], c, groups, x.as<T>(), gamma.as<T>(),
                                beta.as<T>(), silu);
  });
}

DIT_CASES(groupNormCases) {
  struct {
    Shape shape;
    int64_t groups;
  } const kCases[] = {
      {{1, 32, 32, 128}, 32}, {{3, 5, 7, 64}, 32}, {{1, 8, 8, 512}, 32}, {{2, 9, 11, 24}, 4},
      {{1, 3, 3, 7}, 7},      {{1, 1, 1, 32}, 8},  {{1, 65, 70, 33}, 3},
  };
  for (DType act : {DType::F32, DType::BF16}) {
    for (bool silu : {true, false}) {
      for (const auto& c : kCases) {
        addCase(CaseKind::Kernel,
                detail::concat("groupNorm/", label(act), silu ? "/silu/" : "/plain/", c.shape),
                [=](Test& test) { checkGroupNorm(test, act, c.shape, c.groups, silu); });
      }
    }
  }
}

DIT_KERNEL_CASE("groupNorm/large-mean") {
  checkGroupNorm(test, DType::F32, {1, 40, 40, 64}, 32, false, 300);
}

DIT_KERNEL_CASE("groupNorm/in-place") {
  checkGroupNorm(test, DType::F32, {2, 13, 16, 64}, 32, true, 0.3, true);
  checkGroupNorm(test, DType::BF16, {2, 13, 16, 64}, 32, true, 0.3, true);
}

DIT_KERNEL_CASE("groupNorm/bits") {
  const Shape shape{3, 40, 41, 64}, oneShape{1, 40, 41, 64};
  const Values x = test.random(DType::F32, shape);
  const int64_t n = oneShape.count();
  const Values second{DType::F32, oneShape, {x.v.begin() + n, x.v.begin() + 2 * n}};
  const Tensor gamma = test.upload(test.random(DType::F32, {64}));
  const Tensor beta = test.upload(test.random(DType::F32, {64}));
  DeviceTensor all = test.output(DType::F32, shape), one = test.output(DType::F32, oneShape);
  test.ops().groupNorm({.x = test.upload(x), .gamma = gamma, .beta = beta, .y = all});
  for (int threads : {1, 2, 5}) {
    Ops ops(openBackend({.device = test.options().device, .threads = threads}));
    ops.groupNorm({.x = test.upload(second), .gamma = gamma, .beta = beta, .y = one});
    const std::vector<char> want = all.bytes(), got = one.bytes();
    EXPECT(std::equal(got.begin(), got.end(), want.begin() + got.size()), threads, " threads");
  }
}

DIT_BENCH("groupNorm") {
  const Shape shapes[] = {{1, 256, 256, 128}, {1, 128, 128, 256}, {1, 32, 32, 512}};
  for (DType act : {DType::F32, DType::BF16}) {
    for (const Shape& shape : shapes) {
      const Tensor x = test.upload(test.random(act, shape));
      const Tensor gamma = test.upload(test.random(DType::F32, {shape[3]}));
      const DeviceTensor y = test.output(act, shape);
      test.bench(detail::concat("groupNorm+silu ", label(act), " ", shape), 0,
                 3.0 * static_cast<double>(x.bytes()),
                 [&] { test.ops().groupNorm({.x = x, .gamma = gamma, .beta = gamma, .y = y}); });
    }
  }
}

}  // namespace
}  // namespace dit::test
