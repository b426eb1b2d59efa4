// Is the harness able to fail? Each check is shown something wrong.
#include <cmath>
#include <limits>

#include "harness.h"
#include "oracle.h"

namespace dit::test {
namespace {

const Options kOptions;

DIT_CASE("harness/compare") {
  const std::vector<double> want{1, 2, 3, 4}, naive{1, 2, 3, 4 + 1e-6};
  auto problem = [&](std::vector<double> got) {
    return compare({DType::F64, {4}, std::move(got)}, want, naive);
  };
  EXPECT(problem({1, 2, 3, 4 + 1.9e-6}).empty());
  EXPECT(!problem({1, 2, 3, 4 + 2.1e-6}).empty());
  EXPECT(!problem({1, 2, 3, NAN}).empty());
  EXPECT(!problem({1, 2, 3, std::numeric_limits<double>::infinity()}).empty());
  EXPECT(!problem({1, 2, 3}).empty());
  // Where the naive run is exact, so must the result be.
  EXPECT(!compare({DType::F64, {1}, {1 + 1e-15}}, {1}, {1}).empty());
  EXPECT(compare({DType::F64, {1}, {1}}, {1}, {1}).empty());
}

DIT_CASE("harness/failures") {
  Test inner("harness/failures/inner, which is meant to fail", kOptions);
  {
    Test& test = inner;
    EXPECT(1 + 1 == 3, "meant");
    EXPECT_ERROR(Shape, fail(ErrorCode::Device, "meant"));
    EXPECT_ERROR(Shape, );
    EXPECT_MATCHES((Values{DType::F32, {1}, {1.5}}),
                   [&]<typename T>(T) { return std::vector<T>{1}; });
  }
  EXPECT(inner.failures() == 4, inner.failures());
}

DIT_CASE("harness/random") {
  const Values x = test.random(DType::F32, {20000});
  double mean = 0, square = 0;
  for (double v : x.v) {
    mean += v / x.v.size();
    square += v * v / x.v.size();
    EXPECT(v != 0);
  }
  EXPECT(std::abs(mean) < 0.03 && std::abs(square - 1) < 0.05, mean, " ", square);
  EXPECT(test.random(DType::F32, {3}).v != Test("other", kOptions).random(DType::F32, {3}).v);
  for (double v : test.random(DType::BF16, {100}).v) EXPECT(v == rounded(DType::BF16, v));
}

DIT_CASE("harness/guards") {
  DeviceTensor tensor = test.output(DType::F32, {5});
  for (double v : tensor.download().v) EXPECT(std::isnan(v), v);
  const Values values{DType::F32, {5}, {1, 2, 3, 4, 5}};
  tensor.upload(values);
  EXPECT(tensor.download().v == values.v);
  const float zero = 0;
  test.backend().upload({tensor.tensor().as<float>() + 5, DType::F32, {1}}, &zero);
  EXPECT_ERROR(Internal, tensor.download());
}

// Complex step: the derivative of silu at x is Im silu(x + ih) / h.
DIT_CASE("oracle/complex-step") {
  const double x = 0.7, h = 1e-100, s = 1 / (1 + std::exp(-x));
  const double derivative = oracle::silu(std::complex<double>(x, h)).imag() / h;
  EXPECT(std::abs(derivative - s * (1 + x * (1 - s))) < 1e-15, derivative);
}

}  // namespace
}  // namespace dit::test
