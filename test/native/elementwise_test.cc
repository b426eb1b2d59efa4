#include <cmath>

#include "harness.h"
#include "oracle.h"

namespace dit::test {
namespace {

constexpr DType kActs[] = {DType::F32, DType::BF16};

DIT_KERNEL_CASE("silu") {
  for (DType act : kActs) {
    for (const Shape& shape : {Shape{1}, Shape{5, 1152}, Shape{3, 7, 11}, Shape{70000}}) {
      const Values x = test.random(DType::F32, shape, 4);
      DeviceTensor y = test.output(act, shape);
      test.ops().silu({.x = test.upload(x), .y = y});
      EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
        std::vector<T> want;
        for (T value : x.as<T>()) want.push_back(oracle::silu(value));
        return want;
      });
    }
  }
}

// Where exp overflows or vanishes silu is 0 or x; NaN stays NaN.
DIT_KERNEL_CASE("silu/extremes") {
  const std::vector<double> in{-3e38, -200, -90, 90, 200, 3e38, 0, NAN};
  for (DType act : kActs) {
    DeviceTensor y = test.output(act, {8});
    test.ops().silu({.x = test.upload(Values::of(DType::F32, {8}, in)), .y = y});
    const std::vector<double> got = y.download().v;
    for (int i : {0, 1, 2}) EXPECT(std::abs(got[i]) < 1e-36, in[i], " ", got[i]);
    for (int i : {3, 4, 5, 6}) EXPECT(got[i] == rounded(act, in[i]), in[i], " ", got[i]);
    EXPECT(std::isnan(got[7]), got[7]);
  }
}

// exp itself, through silu(x) / x: two units in the last place over its whole range.
DIT_KERNEL_CASE("silu/accuracy") {
  std::vector<double> in;
  for (double x = -86; x < 86; x += 0.00713) in.push_back(x);
  const int64_t n = static_cast<int64_t>(in.size());
  const Values x = Values::of(DType::F32, {n}, in);
  DeviceTensor y = test.output(DType::F32, {n});
  test.ops().silu({.x = test.upload(x), .y = y});
  const Values got = y.download();
  for (int64_t i = 0; i < n; i++) {
    const double want = oracle::silu(x.v[i]);
    const double units = std::abs(got.v[i] - want) / std::abs(want) * 0x1p24;
    if (!(units <= 4)) test.fail(__FILE__, __LINE__, detail::concat(x.v[i], ": ", units));
  }
}

DIT_KERNEL_CASE("timestepEmbedding") {
  const Values t = Values::of(DType::F32, {6}, {0, 1, 17.25, 500, 998.5, 999});
  for (DType act : kActs) {
    DeviceTensor y = test.output(act, {6, 256});
    test.ops().timestepEmbedding({.t = test.upload(t), .y = y});
    const Values got = y.download();
    EXPECT_MATCHES(got, [&]<typename T>(T) { return oracle::timestepEmbedding(t.as<T>()); });
    for (int i = 0; i < 128; i++) EXPECT(got.v[i] == 1 && got.v[128 + i] == 0, "t = 0, i = ", i);
  }
}

DIT_KERNEL_CASE("conditionEmbedding") {
  constexpr int64_t kC = 41;
  const std::vector<int32_t> label{3, -1, 0, 10, -1};
  const Values t = test.random(DType::F32, {5, kC}), table = test.random(DType::F32, {11, kC});
  const Values vectors = test.random(DType::F32, {5, kC});
  DeviceTensor y = test.output(DType::F32, {5, kC});
  test.ops().conditionEmbedding({.t = test.upload(t),
                                 .table = test.upload(table),
                                 .label = test.upload(label),
                                 .vectors = test.upload(vectors),
                                 .y = y});
  EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
    return oracle::conditionEmbedding<T>(kC, t.as<T>(), table.as<T>(), label, vectors.as<T>());
  });
  // Without vectors.
  const std::vector<int32_t> labels{1, 2, 3, 4, 5};
  DeviceTensor plain = test.output(DType::F32, {5, kC});
  test.ops().conditionEmbedding(
      {.t = test.upload(t), .table = test.upload(table), .label = test.upload(labels), .y = plain});
  EXPECT_MATCHES(plain.download(), [&]<typename T>(T) {
    return oracle::conditionEmbedding<T>(kC, t.as<T>(), table.as<T>(), labels, {});
  });
}

DIT_KERNEL_CASE("toRgb8") {
  for (DType act : kActs) {
    const Values x = test.random(act, {1, 37, 41, 3}, 0.7);
    DeviceTensor y = test.output(DType::U8, x.shape);
    test.ops().toRgb8({.x = test.upload(x), .y = y});
    EXPECT_MATCHES(y.download(), [&]<typename T>(T) { return oracle::toRgb8(x.as<T>()); });
  }
  const Values edges = Values::of(DType::F32, {7}, {-1e30, -1.01, -1, 0, 0.996, 1, 1e30});
  DeviceTensor y = test.output(DType::U8, {7});
  test.ops().toRgb8({.x = test.upload(edges), .y = y});
  EXPECT(y.download().v == (std::vector<double>{0, 0, 0, 128, 254, 255, 255}));
}

DIT_BENCH("elementwise") {
  const Tensor x = test.upload(test.random(DType::F32, {1 << 20}));
  for (DType act : kActs) {
    const DeviceTensor y = test.output(act, {1 << 20});
    test.bench(detail::concat("silu ", dtypeName(act), " [1048576]"), 0,
               static_cast<double>(x.bytes() + y.tensor().bytes()),
               [&] { test.ops().silu({.x = x, .y = y}); });
  }
  const Tensor t = test.upload(test.random(DType::F32, {50}, 300, 500));
  const DeviceTensor frequencies = test.output(DType::F32, {50, 256});
  test.bench("timestepEmbedding [50, 256]", 0, static_cast<double>(frequencies.tensor().bytes()),
             [&] { test.ops().timestepEmbedding({.t = t, .y = frequencies}); });
  const Tensor table = test.upload(test.random(DType::F32, {1001, 1152}));
  const Tensor label = test.upload(std::vector<int32_t>(50, 207));
  const Tensor embedded = test.upload(test.random(DType::F32, {50, 1152}));
  const DeviceTensor condition = test.output(DType::F32, {50, 1152});
  test.bench("conditionEmbedding [50, 1152]", 0, static_cast<double>(embedded.bytes()) * 3, [&] {
    test.ops().conditionEmbedding({.t = embedded, .table = table, .label = label, .y = condition});
  });
  const Tensor image = test.upload(test.random(DType::F32, {1, 512, 512, 3}));
  const DeviceTensor rgb = test.output(DType::U8, {1, 512, 512, 3});
  test.bench("toRgb8 [1, 512, 512, 3]", 0, static_cast<double>(image.bytes()) * 1.25,
             [&] { test.ops().toRgb8({.x = image, .y = rgb}); });
}

}  // namespace
}  // namespace dit::test
