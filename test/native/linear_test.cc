#include <array>
#include <cmath>
#include <numeric>

#include "harness.h"
#include "oracle_training.h"
#include "product_sum.h"

namespace dit::test {
namespace {

// Where the residual of a product comes from.
enum class Residual { None, InPlace, Separate, SeparateColumns, Shared };

struct LinearCase {
  int64_t r, m, n, k;
  DType type, output;
  Epilogue epilogue = Epilogue::Bias;
  bool gate = false;
  Residual residual = Residual::None;
  bool columns = false;  // y is a slice of columns of a wider table
  int64_t hint = 0;      // rows that the weight is prepared for; 0: m
  bool trained = false;  // a weight of prepareTrainedLinear
  bool kept = false;     // the product is an output too
  bool tf32 = false;     // F32 tensors, operands rounded to TF32

  Precision precision() const {
    if (tf32) return Precision::TF32;
    return type == DType::BF16 ? Precision::BF16 : Precision::F32;
  }
  std::string name() const {
    const char* epilogues[] = {"bias", "gelu", "residual"};
    const char* residuals[] = {"", "-in-place", "-separate", "-separate-columns", "-shared"};
    return detail::concat(
        "linear/", tf32 ? "TF32" : dtypeName(type), "-", dtypeName(output), "/",
        epilogues[static_cast<int>(epilogue)], residuals[static_cast<int>(residual)],
        gate ? "-gated" : "", columns ? "-columns" : "", hint ? "-hint" + std::to_string(hint) : "",
        trained ? "-trained" : "", kept ? "-kept" : "", "/", r, "x", m, "x", n, "x", k);
  }
};

constexpr int64_t kEntries = 5;             // of the gate's table
constexpr int64_t kBefore = 3, kAfter = 6;  // columns beside a slice

// Inputs of a case, and a run of rows [begin, begin + count) of it into a fresh output.
class Fixture {
 public:
  Fixture(Test& test, const LinearCase& c)
      : test_(test),
        c_(c),
        x_(test.random(c.type, {c.r, c.m, c.k})),
        w_(test.random(c.type, {c.n, c.k}, 1 / std::sqrt(static_cast<double>(c.k)))),
        bias_(test.random(DType::F32, {c.n})),
        gate_(test.random(DType::F32, {kEntries, c.n})),
        index_(test.randomIndex({c.r}, kEntries)),
        residual_(c.residual == Residual::Shared ? test.random(DType::F32, {1, c.m, c.n})
                                                 : test.random(c.output, {c.r, c.m, c.n})) {
    weight_ = c.trained ? test.ops().prepareTrainedLinear({.values = test.upload(w_),
                                                           .rows = c.hint ? c.hint : c.r * c.m,
                                                           .precision = c.precision()})
                        : prepare(w_);
  }

  std::unique_ptr<PreparedWeight> prepare(const Values& values) {
    const std::vector<float> floats = values.as<float>();
    std::vector<uint16_t> halves;
    for (float value : floats) halves.push_back(floatToBf16(value));
    const bool bf16 = values.dtype == DType::BF16;
    void* data = bf16 ? static_cast<void*>(halves.data()) : const_cast<float*>(floats.data());
    return test_.ops().prepareLinear({.values = Tensor(data, values.dtype, values.shape),
                                      .rows = c_.hint ? c_.hint : c_.m,
                                      .precision = c_.precision()});
  }

  // [count, m, n] of what was written, after a check that nothing else was.
  Values run(int64_t begin, int64_t count, std::vector<char>* bits = nullptr,
             Values* kept = nullptr) {
    const int64_t before = c_.columns ? kBefore : 0, after = c_.columns ? kAfter : 0;
    const int64_t wide = before + c_.n + after;
    DeviceTensor out = test_.output(c_.output, {count, c_.m, wide});
    LinearArgs args;
    args.x = test_.upload(rows(x_, begin, count));
    args.weight = weight_.get();
    args.bias = test_.upload(bias_);
    args.y = c_.columns ? out.tensor().columns(before, c_.n) : out.tensor();
    args.epilogue = c_.epilogue;
    if (c_.gate) {
      // A slice of columns, as the modulation's table is.
      Values table{DType::F32, {kEntries, c_.n + 1}, {}};
      for (int64_t i = 0; i < kEntries; i++) {
        table.v.push_back(0);
        table.v.insert(table.v.end(), &gate_.v[i * c_.n], &gate_.v[i * c_.n] + c_.n);
      }
      args.gate = {test_.upload(table).columns(1, c_.n), test_.upload(rows(index_, begin, count))};
    }
    switch (c_.residual) {
      case Residual::None:
        break;
      case Residual::InPlace:
        out.upload(widened(rows(residual_, begin, count), before, after));
        args.residual = args.y;
        break;
      case Residual::Separate:
        args.residual = test_.upload(rows(residual_, begin, count));
        break;
      case Residual::SeparateColumns:
        args.residual = test_.upload(widened(rows(residual_, begin, count), 1, 2)).columns(1, c_.n);
        break;
      case Residual::Shared:
        args.residual = test_.upload(residual_);
        break;
    }
    DeviceTensor product = test_.output(c_.type, {count, c_.m, c_.n});
    if (c_.kept) args.kept = product;
    test_.ops().linear(args);

    if (kept) *kept = product.download();
    if (bits) *bits = out.bytes();
    const Values all = out.download();
    Values written{c_.output, {count, c_.m, c_.n}, {}};
    bool untouched = true;
    for (int64_t i = 0; i < all.count(); i++) {
      const int64_t column = i % wide;
      if (column >= before && column < before + c_.n) {
        written.v.push_back(all.v[i]);
      } else {
        untouched = untouched && (c_.residual == Residual::InPlace || std::isnan(all.v[i]));
      }
    }
    Test& test = test_;
    EXPECT(untouched, "wrote beside the slice");
    return written;
  }

  // A naive run finishes the product as it was kept.
  template <typename T>
  std::vector<T> oracle() const {
    const std::vector<T> gate = gates<T>(), residual = residuals<T>();
    if (!c_.kept) return linear<T>(c_.epilogue, gate, residual);
    std::vector<T> kept = product<T>();
    if constexpr (std::is_same_v<T, float>) {
      for (float& value : kept) value = static_cast<float>(rounded(c_.type, value));
    }
    return oracle::linearFinish<T>(c_.m, c_.n, kept, gate, residual);
  }

  template <typename T>
  std::vector<T> product() const {
    return linear<T>(Epilogue::Bias, {}, {});
  }

 private:
  template <typename T>
  std::vector<T> linear(Epilogue epilogue, const std::vector<T>& gate,
                        const std::vector<T>& residual) const {
    return oracle::linear<T>(c_.r, c_.m, c_.n, c_.k, operand<T>(x_), operand<T>(w_), bias_.as<T>(),
                             epilogue, gate, residual, productSum(test_, c_.precision()));
  }

  // A naive run rounds what the device rounds.
  template <typename T>
  std::vector<T> operand(const Values& values) const {
    std::vector<T> numbers = values.as<T>();
    if (c_.tf32 && std::is_same_v<T, float>) {
      for (T& number : numbers) number = static_cast<T>(roundedToTf32(number));
    }
    return numbers;
  }

  template <typename T>
  std::vector<T> gates() const {
    const std::vector<int32_t> index(index_.v.begin(), index_.v.end());
    return c_.gate ? oracle::pick(gate_.as<T>(), c_.n, index) : std::vector<T>{};
  }

  template <typename T>
  std::vector<T> residuals() const {
    std::vector<T> residual = residual_.as<T>();
    if (c_.residual == Residual::Shared) {
      const std::vector<T> one = residual;
      for (int64_t r = 1; r < c_.r; r++) residual.insert(residual.end(), one.begin(), one.end());
    }
    if (c_.residual == Residual::None) residual.clear();
    return residual;
  }

  static Values rows(const Values& all, int64_t begin, int64_t count) {
    const int64_t size = all.count() / all.shape[0];
    Shape shape{count};
    for (int i = 1; i < all.shape.rank(); i++) shape.append(all.shape[i]);
    return {all.dtype, shape, {&all.v[begin * size], &all.v[begin * size] + count * size}};
  }

  static Values widened(const Values& values, int64_t before, int64_t after) {
    const int64_t n = values.shape[-1];
    Values wide{values.dtype, {values.shape[0], values.shape[1], before + n + after}, {}};
    for (int64_t i = 0; i < values.count() / n; i++) {
      wide.v.insert(wide.v.end(), before, 7);
      wide.v.insert(wide.v.end(), &values.v[i * n], &values.v[i * n] + n);
      wide.v.insert(wide.v.end(), after, 7);
    }
    return wide;
  }

  Test& test_;
  LinearCase c_;
  Values x_, w_, bias_, gate_, index_, residual_;
  std::unique_ptr<PreparedWeight> weight_;
};

// Where the device has no bf16 or no TF32, asking for it must say so.
bool precisionIsHere(Test& test, const LinearCase& c) {
  if (test.backend().supports(c.precision())) return true;
  float value = 0;
  EXPECT_ERROR(Device, test.ops().prepareLinear({.values = Tensor(&value, DType::F32, {1, 1}),
                                                 .rows = 1,
                                                 .precision = c.precision()}));
  EXPECT_ERROR(Device,
               test.ops().prepareTrainedLinear({.values = test.upload(test.random(c.type, {1, 1})),
                                                .rows = 1,
                                                .precision = c.precision()}));
  return false;
}

void checkLinear(Test& test, const LinearCase& c) {
  if (!precisionIsHere(test, c)) return;
  Fixture fixture(test, c);
  std::vector<char> together, again;
  Values kept;
  const Values got = fixture.run(0, c.r, &together, &kept);
  EXPECT_MATCHES(got, [&]<typename T>(T) { return fixture.oracle<T>(); });
  if (c.kept) EXPECT_MATCHES(kept, [&]<typename T>(T) { return fixture.product<T>(); });

  // The same bits again, and with a prepared weight for each row alone.
  fixture.run(0, c.r, &again);
  EXPECT(together == again, "another run gave other bits");
  if (c.trained) return;
  std::vector<char> alone;
  for (int64_t r = 0; r < c.r; r++) {
    std::vector<char> row;
    fixture.run(r, 1, &row);
    alone.insert(alone.end(), row.begin(), row.end());
  }
  EXPECT(together == alone, "a row depends on the others");
}

DIT_CASES(linearCases) {
  std::vector<LinearCase> cases;
  for (DType type : {DType::F32, DType::BF16}) {
    // Sizes: tiny, odd, vectors' lengths and their neighbours, wide, deep.
    const int64_t sizes[][4] = {
        {1, 1, 1, 1},     {3, 5, 7, 3},    {1, 4, 4, 4},     {3, 16, 64, 64}, {3, 49, 33, 65},
        {1, 17, 130, 31}, {2, 64, 96, 16}, {3, 1, 100, 257}, {2, 256, 8, 72}, {1, 3, 513, 12}};
    for (const auto& [r, m, n, k] : sizes) {
      for (DType output : {DType::F32, DType::BF16}) {
        if (type == DType::F32 && output == DType::BF16) continue;  // y is of x's type or F32
        const LinearCase plain{r, m, n, k, type, output};
        cases.push_back(plain);
        LinearCase c = plain;
        c.epilogue = Epilogue::BiasGelu;
        cases.push_back(c);
        c.columns = true;
        cases.push_back(c);
        c = plain;
        c.epilogue = Epilogue::BiasResidual;
        for (Residual residual :
             {Residual::InPlace, Residual::Separate, Residual::SeparateColumns, Residual::Shared}) {
          c.residual = residual;
          for (const bool gate : {false, true}) {
            c.gate = gate;
            cases.push_back(c);
          }
        }
        c.columns = true;
        cases.push_back(c);
        c.residual = Residual::InPlace;
        cases.push_back(c);
      }
    }
    // A weight prepared for other products than it is used in.
    for (int64_t hint : {1, 16, 1000}) {
      cases.push_back(
          {.r = 2, .m = 24, .n = 100, .k = 60, .type = type, .output = type, .hint = hint});
    }
    // As large as in DiT-XL/2.
    LinearCase large{.r = 1, .m = 64, .n = 1152, .k = 1152, .type = type, .output = type};
    large.epilogue = Epilogue::BiasResidual;
    large.gate = true;
    large.residual = Residual::InPlace;
    cases.push_back(large);
    cases.push_back({.r = 1,
                     .m = 16,
                     .n = 3456,
                     .k = 1152,
                     .type = type,
                     .output = DType::F32,
                     .columns = true});
    cases.push_back({.r = 1, .m = 32, .n = 576, .k = 4608, .type = type, .output = type});
    // So many rows that a GPU's blocks share what they read, and not a whole number of tiles.
    cases.push_back({.r = 3, .m = 200, .n = 264, .k = 200, .type = type, .output = type});
    // Odd sizes for the larger tiles of a GPU.
    for (const auto& [r, m, n, k] : {std::array<int64_t, 4>{3, 100, 520, 72}, {2, 130, 390, 41}}) {
      LinearCase odd{.r = r, .m = m, .n = n, .k = k, .type = type, .output = type};
      odd.epilogue = Epilogue::BiasGelu;
      cases.push_back(odd);
    }
  }
  // The same with trained weights. Where something follows the product, it can be kept.
  for (const LinearCase& c : std::vector<LinearCase>(cases)) {
    LinearCase other = c;
    other.kept = c.epilogue != Epilogue::Bias;
    if (other.kept) cases.push_back(other);
    other.trained = true;
    cases.push_back(other);
    if (other.kept) {
      other.kept = false;
      cases.push_back(other);
    }
  }
  // Rows for the largest tiles of a GPU that has many multiprocessors.
  for (DType type : {DType::F32, DType::BF16}) {
    for (const auto& [r, m, n, k] :
         {std::array<int64_t, 4>{2, 2048, 576, 64}, {1, 2048, 1024, 24}}) {
      cases.push_back({.r = r,
                       .m = m,
                       .n = n,
                       .k = k,
                       .type = type,
                       .output = type,
                       .epilogue = Epilogue::BiasResidual,
                       .gate = true,
                       .residual = Residual::Separate});
    }
  }
  // Odd multiples of four numbers of fp32: 16 bytes.
  for (Epilogue epilogue : {Epilogue::Bias, Epilogue::BiasGelu}) {
    cases.push_back({.r = 1,
                     .m = 133,
                     .n = 52,
                     .k = 76,
                     .type = DType::F32,
                     .output = DType::F32,
                     .epilogue = epilogue});
  }
  // The same in TF32.
  for (const LinearCase& c : std::vector<LinearCase>(cases)) {
    if (c.type != DType::F32) continue;
    cases.push_back(c);
    cases.back().tf32 = true;
  }
  for (const LinearCase& c : cases) {
    addCase(CaseKind::Plain, c.name(), [c](Test& test) { checkLinear(test, c); });
  }
}

// TF32 rounds to the nearest, both operands: 0.75 units above 1 become one. All sums are exact.
DIT_CASE("linear/rounds-to-TF32") {
  constexpr int64_t kM = 64, kN = 32, kK = 32;
  const double unit = std::ldexp(1.0, -10), above = 1 + 0.75 * unit;
  const auto all = [](Shape shape, double value) {
    return Values::of(DType::F32, shape,
                      std::vector<double>(static_cast<size_t>(shape.count()), value));
  };
  const auto is = [&](const DeviceTensor& result, int64_t terms) {
    for (const double y : result.download().v) {
      EXPECT(y == static_cast<double>(terms) * (1 + unit), "got ", y, " of ", terms, " terms");
    }
  };
  for (const bool trained : {false, true}) {
    LinearCase c{.r = 1, .m = kM, .n = kN, .k = kK, .type = DType::F32, .output = DType::F32};
    c.tf32 = true;
    if (!precisionIsHere(test, c)) continue;
    for (const bool ofX : {true, false}) {
      const double activation = ofX ? above : 1.0;
      const Values w = all({kN, kK}, ofX ? 1.0 : above);
      std::unique_ptr<PreparedWeight> weight;
      if (trained) {
        weight = test.ops().prepareTrainedLinear(
            {.values = test.upload(w), .rows = kM, .precision = Precision::TF32});
      } else {
        weight = Fixture(test, c).prepare(w);
      }
      const Tensor x = test.upload(all({1, kM, kK}, activation));
      const Tensor bias = test.upload(all({kN}, 0));
      DeviceTensor y = test.output(DType::F32, {1, kM, kN});
      test.ops().linear({.x = x, .weight = weight.get(), .bias = bias, .y = y});
      is(y, kK);
      if (!trained) continue;
      DeviceTensor dX = test.output(DType::F32, {1, kM, kK});
      test.ops().linearBackward({.x = x,
                                 .weight = weight.get(),
                                 .dY = test.upload(all({1, kM, kN}, activation)),
                                 .dX = dX,
                                 .dWeight = test.upload(all({kN, kK}, 0)),
                                 .dBias = bias});
      is(dX, kN);
    }
  }
}

// Weights stored in another type than that of the products are converted, bf16 by rounding.
DIT_CASE("linear/converts-weights") {
  const int64_t m = 8, n = 40, k = 50;
  const Values bias = test.random(DType::F32, {n});
  for (DType type : {DType::F32, DType::BF16}) {
    LinearCase c{.r = 1, .m = m, .n = n, .k = k, .type = type, .output = type};
    if (!precisionIsHere(test, c)) continue;
    const DType other = type == DType::F32 ? DType::BF16 : DType::F32;
    const Values w = test.random(other, {n, k}), x = test.random(type, {1, m, k});
    const Values used = Values::of(type, w.shape, w.v);
    Fixture fixture(test, c);
    const auto converted = fixture.prepare(w), exact = fixture.prepare(used);
    DeviceTensor a = test.output(type, {1, m, n}), b = test.output(type, {1, m, n});
    const Tensor in = test.upload(x), offsets = test.upload(bias);
    test.ops().linear({.x = in, .weight = converted.get(), .bias = offsets, .y = a});
    test.ops().linear({.x = in, .weight = exact.get(), .bias = offsets, .y = b});
    EXPECT(a.bytes() == b.bytes());
  }
}

// What is not finite stays so, in its own row only.
DIT_CASE("linear/not-finite") {
  LinearCase c{.r = 1, .m = 4, .n = 20, .k = 33, .type = DType::F32, .output = DType::F32};
  Values x = test.random(DType::F32, {1, c.m, c.k}), w = test.random(DType::F32, {c.n, c.k});
  x.v[0 * c.k + 5] = NAN;
  x.v[2 * c.k + 7] = INFINITY;
  Fixture fixture(test, c);
  const auto weight = fixture.prepare(w);
  DeviceTensor y = test.output(DType::F32, {1, c.m, c.n});
  test.ops().linear({.x = test.upload(x),
                     .weight = weight.get(),
                     .bias = test.upload(test.random(DType::F32, {c.n})),
                     .y = y});
  const Values got = y.download();
  for (int64_t j = 0; j < c.n; j++) {
    EXPECT(std::isnan(got.v[j]), got.v[j]);
    EXPECT(std::isfinite(got.v[c.n + j]), got.v[c.n + j]);
    EXPECT(std::isinf(got.v[2 * c.n + j]), got.v[2 * c.n + j]);
    EXPECT(std::isfinite(got.v[3 * c.n + j]), got.v[3 * c.n + j]);
  }
}

DIT_CASE("linear/errors") {
  LinearCase c{.r = 1, .m = 4, .n = 6, .k = 5, .type = DType::F32, .output = DType::F32};
  Fixture fixture(test, c);
  const auto weight = fixture.prepare(test.random(DType::F32, {c.n, c.k}));
  DeviceTensor y = test.output(DType::F32, {1, c.m, c.n});
  const Tensor bias = test.upload(test.random(DType::F32, {c.n}));
  auto run = [&](const Values& x, const Tensor& out, const Tensor& offsets) {
    test.ops().linear({.x = test.upload(x), .weight = weight.get(), .bias = offsets, .y = out});
  };
  // Another K; another N; another type than the weight's.
  EXPECT_ERROR(Shape, run(test.random(DType::F32, {1, c.m, c.k + 1}), y, bias));
  DeviceTensor wide = test.output(DType::F32, {1, c.m, c.n + 1});
  EXPECT_ERROR(Shape, run(test.random(DType::F32, {1, c.m, c.k}), wide,
                          test.upload(test.random(DType::F32, {c.n + 1}))));
  EXPECT_ERROR(Shape, run(test.random(DType::BF16, {1, c.m, c.k}), y, bias));
  // A gate that is not in the table. A GPU's index the host does not see.
  if (test.backend().name() != "cpu") return;
  EXPECT_ERROR(Shape, test.ops().linear({.x = test.upload(test.random(DType::F32, {1, c.m, c.k})),
                                         .weight = weight.get(),
                                         .bias = bias,
                                         .y = y,
                                         .epilogue = Epilogue::BiasResidual,
                                         .gate = {test.upload(test.random(DType::F32, {2, c.n})),
                                                  test.upload(std::vector<int32_t>{2})},
                                         .residual = y}));
}

// The products of DiT-XL/2 for two rows of 256 tokens, and a block's modulation of 16 conditions.
// Each repeat takes the next of several weights, as the blocks of a model do: none is in a cache.
void benchLinear(Test& test, const char* label, const LinearCase& c) {
  if (!precisionIsHere(test, c)) return;
  constexpr int kWeights = 12;
  const Tensor x = test.upload(test.random(c.type, {c.r, c.m, c.k}));
  const Tensor bias = test.upload(test.random(DType::F32, {c.n}));
  const Tensor gate = test.upload(test.random(DType::F32, {1, c.n}));
  const Tensor index = test.upload(std::vector<int32_t>(c.r, 0));
  const std::vector<float> values =
      test.random(DType::F32, {c.n, c.k}, 1 / std::sqrt(static_cast<double>(c.k))).as<float>();
  std::vector<std::unique_ptr<PreparedWeight>> weights;
  for (int i = 0; i < kWeights; i++) {
    weights.push_back(test.ops().prepareLinear(
        {.values = Tensor(const_cast<float*>(values.data()), DType::F32, {c.n, c.k}),
         .rows = c.m,
         .precision = c.precision()}));
  }
  DeviceTensor out = test.output(c.output, {c.r, c.m, (c.columns ? 4 : 1) * c.n});
  out.upload(test.random(c.output, out.tensor().shape));
  LinearArgs args{.x = x,
                  .bias = bias,
                  .y = c.columns ? out.tensor().columns(c.n, c.n) : out.tensor(),
                  .epilogue = c.epilogue};
  if (c.gate) args.gate = {gate, index};
  if (c.residual == Residual::InPlace) args.residual = args.y;
  size_t next = 0;
  test.bench(detail::concat(label, " ", dtypeName(c.type), " ", c.r, "x", c.m, "x", c.n, "x", c.k),
             2.0 * static_cast<double>(c.r * c.m * c.n * c.k),
             static_cast<double>(weights[0]->bytes()), [&] {
               args.weight = weights[next++ % kWeights].get();
               test.ops().linear(args);
             });
}

DIT_BENCH("linear/dit-xl") {
  for (DType type : {DType::F32, DType::BF16}) {
    const LinearCase base{.r = 2, .m = 256, .n = 3456, .k = 1152, .type = type, .output = type};
    benchLinear(test, "qkv", base);
    LinearCase c = base;
    c.n = 4608;
    c.epilogue = Epilogue::BiasGelu;
    benchLinear(test, "fc1 + gelu", c);
    c = base;
    c.n = 1152;
    c.epilogue = Epilogue::BiasResidual;
    c.gate = true;
    c.residual = Residual::InPlace;
    benchLinear(test, "proj + residual", c);
    c.k = 4608;
    benchLinear(test, "fc2 + residual", c);
    c = base;
    c.r = 1;
    c.m = 16;
    c.n = 6912;
    c.output = DType::F32;
    c.columns = true;
    benchLinear(test, "modulation", c);
  }
}

}  // namespace
}  // namespace dit::test
