// The operations of a DiT and of the VAE at the sizes that bench/peers/torch_ops.py times in
// PyTorch, under the same labels.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "beside_torch.h"
#include "harness.h"
#include "tuned.h"

namespace dit::test {
namespace {

constexpr int kWeights = 12;  // of a product, taken in turn as the blocks of a model do

struct AttentionSize {
  int64_t rows, tokens, heads, d;
};
struct ConvSize {
  int64_t side, in, out, kernel;
  bool residual;
};
struct NormSize {
  int64_t side, channels;
};
struct Scale {
  std::string name;
  int64_t hidden, heads, tokens;
  std::vector<int64_t> rows;
  std::vector<AttentionSize> attention;
  int64_t adamW;
  std::vector<ConvSize> convolutions;
  std::vector<NormSize> groupNorms;
};

std::vector<Scale> scales() {
  return {
      {.name = "xl",
       .hidden = 1152,
       .heads = 16,
       .tokens = 256,
       .rows = {64, 2},
       .attention = {{64, 256, 16, 72}, {16, 1024, 16, 72}, {64, 256, 16, 64}, {16, 1024, 16, 64}},
       .adamW = int64_t{1} << 26,
       .convolutions = {{64, 512, 512, 3, true},
                        {128, 512, 256, 3, false},
                        {256, 128, 128, 3, true}},
       .groupNorms = {{256, 128}, {128, 256}}},
      {.name = "tiny",
       .hidden = 144,
       .heads = 2,
       .tokens = 16,
       .rows = {4, 2},
       .attention = {{4, 16, 2, 72}, {2, 64, 2, 64}},
       .adamW = int64_t{1} << 12,
       .convolutions = {{8, 32, 32, 3, true}, {8, 32, 64, 3, false}},
       .groupNorms = {{8, 32}}}};
}

struct Product {
  const char* name;
  int64_t n, k;
};

std::vector<Product> products(int64_t c) {
  return {{"qkv", 3 * c, c}, {"proj", c, c}, {"fc1", 4 * c, c}, {"fc2", c, 4 * c}};
}

std::vector<float> weightValues(Test& test, Shape shape) {
  const double inputs = static_cast<double>(shape.count() / shape[0]);
  return test.random(DType::F32, shape, 1 / std::sqrt(inputs)).as<float>();
}

// The row of a table for each row of a round: its own.
RowVector ownRows(Test& test, const DeviceTensor& table) {
  std::vector<int32_t> index(static_cast<size_t>(table.tensor().shape[0]));
  std::iota(index.begin(), index.end(), 0);
  return {table, test.upload(index)};
}

// A product with the epilogue that the model uses: bias; bias, gate and residual; bias and GELU.
class LinearBench {
 public:
  LinearBench(Test& test, const Scale& scale, Precision precision, const Product& product,
              int64_t rows)
      : act_(activationType(precision)),
        n_(product.n),
        k_(product.k),
        tokens_(rows * scale.tokens),
        label_(detail::concat("linear.", product.name, " ", tokens_, "x", n_, "x", k_, " ",
                              precisionName(precision))),
        x_(drawn(test, act_, {rows, scale.tokens, k_})),
        residual_(drawn(test, act_, {rows, scale.tokens, n_}, 2)),
        bias_(drawn(test, DType::F32, {n_}, 3)),
        gate_(drawn(test, DType::F32, {rows, n_}, 4)),
        y_(test.output(act_, {rows, scale.tokens, n_})),
        args_{.x = x_, .bias = bias_, .y = y_} {
    std::vector<float> values = weightValues(test, {n_, k_});
    for (int i = 0; i < kWeights; i++) {
      weights_.push_back(
          test.ops().prepareLinear({.values = Tensor(values.data(), DType::F32, {n_, k_}),
                                    .rows = scale.tokens,
                                    .precision = precision}));
    }
    const std::string name = product.name;
    if (name == "fc1") args_.epilogue = Epilogue::BiasGelu;
    if (name == "proj" || name == "fc2") {
      args_.epilogue = Epilogue::BiasResidual;
      args_.gate = ownRows(test, gate_);
      args_.residual = residual_;
    }
    bias_.download();  // all of it is there, for other streams, too
  }

  void run(Test& test) {
    size_t next = 0;
    test.bench(label_, 2.0 * static_cast<double>(tokens_ * n_ * k_), 0, [&] {
      args_.weight = weights_[next++ % kWeights].get();
      test.ops().linear(args_);
    });
  }

 private:
  DType act_;
  int64_t n_, k_, tokens_;
  std::string label_;
  DeviceTensor x_, residual_, bias_, gate_, y_;
  std::vector<std::unique_ptr<PreparedWeight>> weights_;
  LinearArgs args_;
};

void linear(Test& test, const Scale& scale, Precision precision, int64_t rows) {
  for (const Product& product : products(scale.hidden)) {
    LinearBench(test, scale, precision, product, rows).run(test);
  }
}

// In bf16 by each of the candidates.
void linearVariants(Test& test, const Scale& scale, const Product& product, int64_t rows) {
  std::vector<std::string> choices;
  for (const cuda::LinearCandidate& candidate : cuda::kLinearCandidates) {
    if (hasCandidates(test.options().device)) choices.push_back("linear=" + candidate.name());
  }
  LinearBench bench(test, scale, Precision::BF16, product, rows);
  benchVariants(test, choices, [&](Test& other) { bench.run(other); });
}

// dX, dWeight += and dBias +=; of fc2 with the derivative of the GELU before it.
void linearBackward(Test& test, const Scale& scale, Precision precision) {
  const DType act = activationType(precision);
  const int64_t rows = scale.rows[0], tokens = scale.tokens;
  for (const Product& product : products(scale.hidden)) {
    const int64_t n = product.n, k = product.k;
    const std::string name = product.name;
    DeviceTensor values = test.output(act, {n, k});
    const std::vector<float> weight = weightValues(test, {n, k});
    values.upload(Values::of(act, {n, k}, {weight.begin(), weight.end()}));
    const auto prepared = test.ops().prepareTrainedLinear(
        {.values = values, .rows = rows * tokens, .precision = precision});
    const DeviceTensor x = drawn(test, act, {rows, tokens, k});
    const DeviceTensor dY = drawn(test, act, {rows, tokens, n}, 2);
    const DeviceTensor preActivation = drawn(test, act, {rows, tokens, k}, 3);
    const DeviceTensor dX = test.output(act, {rows, tokens, k});
    const DeviceTensor dWeight = drawn(test, DType::F32, {n, k}, 4);
    const DeviceTensor dBias = drawn(test, DType::F32, {n}, 5);
    LinearBackwardArgs args{
        .x = x, .weight = prepared.get(), .dY = dY, .dX = dX, .dWeight = dWeight, .dBias = dBias};
    if (name == "fc2") args.preActivation = preActivation;
    test.bench(detail::concat("linear.", name, ".backward ", rows * tokens, "x", n, "x", k, " ",
                              precisionName(precision)),
               4.0 * static_cast<double>(rows * tokens * n * k), 0,
               [&] { test.ops().linearBackward(args); });
  }
}

void attention(Test& test, const Scale& scale, Precision precision) {
  const DType act = activationType(precision);
  for (const auto& [rows, tokens, heads, d] : scale.attention) {
    const int64_t c = heads * d;
    const DeviceTensor qkv = drawn(test, act, {rows, tokens, 3 * c});
    const DeviceTensor dY = drawn(test, act, {rows, tokens, c}, 2);
    const DeviceTensor y = test.output(act, {rows, tokens, c});
    const DeviceTensor dQkv = test.output(act, {rows, tokens, 3 * c});
    const DeviceTensor logSumExp = test.output(DType::F32, {rows, heads, tokens});
    const std::string shape =
        detail::concat(rows, "x", tokens, "x", heads, "x", d, " ", precisionName(precision));
    const double product = 2.0 * static_cast<double>(rows * heads * tokens * tokens * d);
    test.bench("attention.forward " + shape, 2 * product, 0,
               [&] { test.ops().attention({.qkv = qkv, .y = y, .heads = heads}); });
    test.ops().attention({.qkv = qkv, .y = y, .heads = heads, .logSumExp = logSumExp});
    test.bench("attention.backward " + shape, 5 * product, 0, [&] {
      test.ops().attentionBackward(
          {.qkv = qkv, .y = y, .logSumExp = logSumExp, .dY = dY, .heads = heads, .dQkv = dQkv});
    });
  }
}

void norms(Test& test, const Scale& scale, Precision precision) {
  const DType act = activationType(precision);
  const int64_t rows = scale.rows[0], tokens = scale.tokens, c = scale.hidden;
  {
    const DeviceTensor x = drawn(test, act, {rows, tokens, c});
    const DeviceTensor table = drawn(test, DType::F32, {rows, c}, 2);
    const DeviceTensor y = test.output(act, {rows, tokens, c});
    const RowVector vector = ownRows(test, table);
    test.bench(detail::concat("layerNormModulate ", rows, "x", tokens, "x", c, " ",
                              precisionName(precision)),
               0, 2.0 * static_cast<double>(x.tensor().bytes()), [&] {
                 test.ops().layerNormModulate({.x = x, .shift = vector, .scale = vector, .y = y});
               });
  }
  for (const auto& [side, channels] : scale.groupNorms) {
    const DeviceTensor x = drawn(test, act, {1, side, side, channels});
    const DeviceTensor gamma = drawn(test, DType::F32, {channels}, 2);
    const DeviceTensor y = test.output(act, {1, side, side, channels});
    const int64_t groups = std::min<int64_t>(32, channels / 4);
    test.bench(
        detail::concat("groupNormSilu 1x", side, "x", side, "x", channels, " ",
                       precisionName(precision)),
        0, 3.0 * static_cast<double>(x.tensor().bytes()), [&] {
          test.ops().groupNorm({.x = x, .gamma = gamma, .beta = gamma, .groups = groups, .y = y});
        });
  }
}

void convolutions(Test& test, const Scale& scale, Precision precision) {
  const DType act = activationType(precision);
  for (const auto& [side, in, out, kernel, residual] : scale.convolutions) {
    std::vector<float> values = weightValues(test, {out, in, kernel, kernel});
    const auto weight = test.ops().prepareConv(
        {.values = Tensor(values.data(), DType::F32, {out, in, kernel, kernel}),
         .precision = precision});
    const DeviceTensor x = drawn(test, act, {1, side, side, in});
    const DeviceTensor add = drawn(test, act, {1, side, side, out}, 2);
    const DeviceTensor bias = drawn(test, DType::F32, {out}, 3);
    const DeviceTensor y = test.output(act, {1, side, side, out});
    const int64_t pad = kernel / 2;
    const Conv2dArgs args{.x = x,
                          .weight = weight.get(),
                          .bias = bias,
                          .residual = residual ? add.tensor() : Tensor{},
                          .y = y,
                          .padTop = pad,
                          .padLeft = pad,
                          .padBottom = pad,
                          .padRight = pad};
    test.bench(detail::concat("conv2d 1x", side, "x", side, "x", in, "to", out, "k", kernel, " ",
                              precisionName(precision)),
               2.0 * static_cast<double>(side * side * in * out * kernel * kernel), 0,
               [&] { test.ops().conv2d(args); });
  }
}

// With the moving average and the bf16 copy.
void adamW(Test& test, const Scale& scale) {
  const int64_t n = scale.adamW;
  const DeviceTensor param = drawn(test, DType::F32, {n}, 1),
                     grad = drawn(test, DType::F32, {n}, 2);
  const DeviceTensor ema = drawn(test, DType::F32, {n}, 3), low = test.output(DType::BF16, {n});
  const DeviceTensor m = test.output(DType::F32, {n}), v = test.output(DType::F32, {n});
  for (const DeviceTensor* moment : {&m, &v}) test.backend().zero(*moment);
  const Tensor decays =
      test.upload(Values{DType::U8,
                         {n / kParamGranule},
                         std::vector<double>(static_cast<size_t>(n / kParamGranule), 1)});
  AdamWArgs args{.param = param,
                 .grad = grad,
                 .m = m,
                 .v = v,
                 .ema = ema,
                 .low = low,
                 .decays = decays,
                 .lr = 1e-4f};
  // Read and written: all but the copy and the gradient's zeros, which are only written.
  test.bench(detail::concat("adamW ", n, " fp32"), 0, 42.0 * static_cast<double>(n), [&] {
    test.ops().adamW(args);
    args.step++;
  });
}

DIT_CASES(opsBenchCases) {
  using Run = std::function<void(Test&, const Scale&, Precision)>;
  const auto add = [](const Scale& scale, const std::string& name, Precision precision,
                      const Run& run) {
    addCase(CaseKind::Bench,
            detail::concat("ops/", scale.name, "/", name, "/", precisionName(precision)),
            [=](Test& test) {
              if (!hasTimeFor(test, scale.name) || !hasPrecision(test, precision)) return;
              run(test, scale, precision);
            });
  };
  for (const Scale& scale : scales()) {
    for (const Precision precision : {Precision::BF16, Precision::TF32}) {
      add(scale, "linear", precision, [](Test& test, const Scale& scale, Precision precision) {
        for (const int64_t rows : scale.rows) linear(test, scale, precision, rows);
      });
      add(scale, "conv", precision, convolutions);
      add(scale, "linearBackward", precision, linearBackward);
    }
    for (const Product& product : products(scale.hidden)) {
      for (const int64_t rows : scale.rows) {
        addCase(CaseKind::Bench,
                detail::concat("variants/", scale.name, "/linear.", product.name, "-",
                               rows * scale.tokens),
                [=](Test& test) {
                  if (!hasTimeFor(test, scale.name) || !hasPrecision(test, Precision::BF16)) return;
                  linearVariants(test, scale, product, rows);
                });
      }
    }
    add(scale, "attention", Precision::BF16, attention);
    add(scale, "norms", Precision::BF16, norms);
    add(scale, "adamW", Precision::F32,
        [](Test& test, const Scale& scale, Precision) { adamW(test, scale); });
  }
}

}  // namespace
}  // namespace dit::test
