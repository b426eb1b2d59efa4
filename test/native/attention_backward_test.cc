#include <algorithm>
#include <complex>
#include <string>
#include <type_traits>

#include "harness.h"
#include "oracle_attention_backward.h"

namespace dit::test {
namespace {

struct Sizes {
  int64_t rows, tokens, heads, d;

  int64_t channels() const { return heads * d; }
};

// What attention was given and gave, and the gradient of its result.
struct Inputs {
  Values qkv, y, logSumExp, dY;
};

// y and logSumExp are those of the device's own forward.
Inputs forward(Test& test, DType act, const Sizes& s, const Values& qkv) {
  const DeviceTensor y = test.output(act, {s.rows, s.tokens, s.channels()});
  const DeviceTensor logSumExp = test.output(DType::F32, {s.rows, s.heads, s.tokens});
  test.ops().attention({.qkv = test.upload(qkv), .y = y, .heads = s.heads, .logSumExp = logSumExp});
  return {qkv, y.download(), logSumExp.download(), test.random(act, y.tensor().shape)};
}

// scale: how far apart scores are; 1 gives normal scores, 8 a softmax that picks few keys.
Inputs randomInputs(Test& test, DType act, const Sizes& s, double scale = 1) {
  return forward(test, act, s, test.random(act, {s.rows, s.tokens, 3 * s.channels()}, scale));
}

DeviceTensor backward(Test& test, Ops& ops, int64_t heads, const Inputs& in, bool tf32 = false) {
  DeviceTensor dQkv = test.output(in.qkv.dtype, in.qkv.shape);
  ops.attentionBackward({.qkv = test.upload(in.qkv),
                         .y = test.upload(in.y),
                         .logSumExp = test.upload(in.logSumExp),
                         .dY = test.upload(in.dY),
                         .heads = heads,
                         .dQkv = dQkv,
                         .tf32 = tf32});
  return dQkv;
}

void check(Test& test, const Sizes& s, const Inputs& in) {
  const Values dQkv = backward(test, test.ops(), s.heads, in).download();
  EXPECT_MATCHES(dQkv, [&]<typename T>(T) {
    return oracle::attentionBackward<T>(s.rows, s.tokens, s.channels(), s.heads, in.qkv.as<T>(),
                                        in.y.as<T>(), in.logSumExp.as<T>(), in.dY.as<T>());
  });
}

DIT_CASE("attention-backward/oracle") {
  using Complex = std::complex<double>;
  constexpr int64_t kRows = 2, kTokens = 5, kHeads = 2, kC = 6;
  const Values qkv = test.random(DType::F64, {kRows, kTokens, 3 * kC});
  const Values dY = test.random(DType::F64, {kRows, kTokens, kC});
  const std::vector<double> got = oracle::attentionBackward<double>(
      kRows, kTokens, kC, kHeads, qkv.v,
      oracle::attention<double>(kRows, kTokens, kC, kHeads, qkv.v),
      oracle::attentionLogSumExp<double>(kRows, kTokens, kC, kHeads, qkv.v), dY.v);
  std::vector<Complex> x = qkv.as<Complex>();
  std::vector<double> want;
  constexpr double kStep = 1e-30;
  for (Complex& value : x) {
    value.imag(kStep);
    const std::vector<Complex> y = oracle::attention<Complex>(kRows, kTokens, kC, kHeads, x);
    value.imag(0);
    double sum = 0;
    for (size_t i = 0; i < y.size(); i++) sum += dY.v[i] * y[i].imag() / kStep;
    want.push_back(sum);
  }
  const double error = relativeL2(got, want);
  EXPECT(error < 1e-9, error);
}

DIT_CASES(attentionBackwardCases) {
  // DiT's head dimensions and odd ones; tokens below, at and beyond a group of keys.
  constexpr Sizes kSizes[] = {
      {3, 256, 2, 72}, {1, 256, 3, 64}, {1, 130, 1, 16}, {3, 64, 5, 32},   {1, 49, 3, 40},
      {3, 2, 1, 12},   {2, 3, 3, 5},    {2, 131, 3, 9},  {1, 300, 1, 72},  {1, 65, 2, 128},
      {1, 129, 1, 80}, {1, 33, 1, 512}, {1, 193, 1, 64}, {1, 1030, 1, 16}, {1, 1024, 1, 72},
  };
  for (DType act : {DType::F32, DType::BF16}) {
    for (const Sizes& s : kSizes) {
      const std::string name = detail::concat(
          "attention-backward/", act == DType::F32 ? "f32" : "bf16", "/d", s.d, "/t", s.tokens);
      addCase(CaseKind::Kernel, name,
              [=](Test& test) { check(test, s, randomInputs(test, act, s)); });
    }
  }
}

// Operands may be rounded to TF32, as the naive run's are. Where the device has no TF32, nothing
// may change.
DIT_KERNEL_CASE("attention-backward/tf32") {
  constexpr Sizes kSizes[] = {{2, 200, 2, 72}, {1, 130, 3, 64}, {2, 49, 2, 32}, {2, 131, 3, 9},
                              {1, 49, 1, 80},  {1, 65, 2, 128}, {3, 2, 1, 12},  {1, 33, 1, 512}};
  for (const Sizes& s : kSizes) {
    const Inputs in = randomInputs(test, DType::F32, s);
    const Values dQkv = backward(test, test.ops(), s.heads, in, /*tf32=*/true).download();
    const Values inFp32 = backward(test, test.ops(), s.heads, in).download();
    if (!test.backend().supports(Precision::TF32)) {
      EXPECT(dQkv.v == inFp32.v);
      continue;
    }
    EXPECT_MATCHES(dQkv, [&]<typename T>(T) {
      std::vector<T> qkv = in.qkv.as<T>(), dY = in.dY.as<T>();
      if constexpr (std::is_same_v<T, float>) {
        for (T& x : qkv) x = static_cast<T>(roundedToTf32(x));
        for (T& x : dY) x = static_cast<T>(roundedToTf32(x));
      }
      return oracle::attentionBackward<T>(s.rows, s.tokens, s.channels(), s.heads, qkv,
                                          in.y.as<T>(), in.logSumExp.as<T>(), dY);
    });
    EXPECT(dQkv.v != inFp32.v);  // it does round
  }
}

// One token attends to itself: dV = dY, dQ = dK = 0 but for what rounding leaves, which the naive
// run's order of sums happens not to.
DIT_KERNEL_CASE("attention-backward/t1") {
  for (DType act : {DType::F32, DType::BF16}) {
    const Inputs in = randomInputs(test, act, {3, 1, 2, 7});
    std::vector<double> want;
    for (int64_t row = 0; row < 3; row++) {
      const double* dY = &in.dY.v[row * 14];
      want.resize(want.size() + 28);
      want.insert(want.end(), dY, dY + 14);
    }
    const double error = relativeL2(backward(test, test.ops(), 2, in).download().v, want);
    EXPECT(error < (act == DType::F32 ? 0x1p-20 : 0x1p-9), error);
  }
}

// Scores far apart, where most probabilities vanish, and so large that exp of one overflows.
DIT_KERNEL_CASE("attention-backward/large-scores") {
  constexpr Sizes kSizes = {1, 160, 2, 72};
  for (DType act : {DType::F32, DType::BF16}) {
    for (double scale : {6, 30}) check(test, kSizes, randomInputs(test, act, kSizes, scale));
  }
}

// Scores far below 0, where exp(-logSumExp) overflows: what stands for keys beyond the last must
// not turn it into a sum.
DIT_KERNEL_CASE("attention-backward/negative-scores") {
  constexpr Sizes s = {1, 45, 1, 72};
  for (DType act : {DType::F32, DType::BF16}) {
    Values qkv = test.random(act, {1, s.tokens, 3 * s.d});
    for (int64_t t = 0; t < s.tokens; t++) {
      for (int64_t i = 0; i < s.d; i++) {
        double *q = &qkv.v[t * 3 * s.d + i], *k = q + s.d;
        *q = rounded(act, *q + 5);
        *k = rounded(act, *k - 5);
      }
    }
    // In bf16 P and dS are rounded where they are factors. That mostly hides beside the rounding of
    // results, but here k is -5 and more: dQ sums dS k, whose greatest part cancels, for the dS of
    // a query sum to 0, and what rounding adds to each does not. So the naive run rounds them, too.
    const Inputs in = forward(test, act, s, qkv);
    const Values dQkv = backward(test, test.ops(), s.heads, in).download();
    EXPECT_MATCHES(dQkv, [&]<typename T>(T) {
      return oracle::attentionBackward<T>(
          1, s.tokens, s.d, 1, in.qkv.as<T>(), in.y.as<T>(), in.logSumExp.as<T>(), in.dY.as<T>(),
          [&](T x) { return std::is_same_v<T, float> ? static_cast<T>(rounded(act, x)) : x; });
    });
  }
}

// Scores of 1e8, whose last place is 8: nothing but numbers comes out.
DIT_KERNEL_CASE("attention-backward/extreme-scores") {
  constexpr Sizes kSizes = {1, 45, 1, 64};
  for (DType act : {DType::F32, DType::BF16}) {
    Values qkv = test.random(act, {1, kSizes.tokens, 3 * kSizes.d});
    for (int64_t t = 0; t < kSizes.tokens; t++) {
      for (int64_t part = 0; part < 2; part++) {
        double* at = &qkv.v[t * 3 * kSizes.d + part * kSizes.d];
        for (int64_t i = 0; i < kSizes.d; i++) at[i] = rounded(act, 4e3 * at[i]);
      }
    }
    const Inputs in = forward(test, act, kSizes, qkv);
    const std::vector<double> got = backward(test, test.ops(), 1, in).download().v;
    EXPECT(std::all_of(got.begin(), got.end(), [](double x) { return std::isfinite(x); }),
           dtypeName(act));
  }
}

// Forward and backward one after the other, against the exact derivative.
DIT_KERNEL_CASE("attention-backward/chain") {
  constexpr Sizes s = {2, 100, 2, 40};
  for (DType act : {DType::F32, DType::BF16}) {
    const Inputs in = randomInputs(test, act, s);
    const Values dQkv = backward(test, test.ops(), s.heads, in).download();
    EXPECT_MATCHES(dQkv, [&]<typename T>(T) {
      const std::vector<T> qkv = in.qkv.as<T>();
      std::vector<T> y = oracle::attention<T>(s.rows, s.tokens, s.channels(), s.heads, qkv);
      // The naive run keeps y as the network does.
      if constexpr (std::is_same_v<T, float>) {
        for (T& value : y) value = static_cast<T>(rounded(act, value));
      }
      return oracle::attentionBackward<T>(
          s.rows, s.tokens, s.channels(), s.heads, qkv, y,
          oracle::attentionLogSumExp<T>(s.rows, s.tokens, s.channels(), s.heads, qkv),
          in.dY.as<T>());
    });
  }
}

// The kernels for DiT's heads in bf16: tokens below, at and beyond what warpgroups and tiles have,
// several heads to a block, and whole tiles beyond the last query.
DIT_KERNEL_CASE("attention-backward/dit-heads") {
  for (const int64_t d : {64, 72}) {
    for (const int64_t tokens : {17, 63, 64, 65, 127, 128, 256, 300}) {
      for (const int64_t rows : {1, 3}) {
        const Sizes s = {rows, tokens, rows == 3 ? 2 : 1, d};
        check(test, s, randomInputs(test, DType::BF16, s));
      }
    }
    const Sizes one = {3, 1, 2, d};
    const Inputs in = randomInputs(test, DType::BF16, one);
    const std::vector<double> got = backward(test, test.ops(), 2, in).download().v;
    std::vector<double> want;
    for (int64_t row = 0; row < 3; row++) {
      const double* const dY = &in.dY.v[row * 2 * d];
      want.resize(want.size() + 4 * d);
      want.insert(want.end(), dY, dY + 2 * d);
    }
    EXPECT(relativeL2(got, want) < 0x1p-9, "one token, d ", d);
  }
}

// Every element is written, and the same again: what the result and the memory between hold before
// does not matter.
DIT_KERNEL_CASE("attention-backward/repeated") {
  for (const int64_t d : {64, 72}) {
    const Inputs in = randomInputs(test, DType::BF16, {2, 200, 3, d});
    // Other work leaves other numbers behind.
    const Inputs other = randomInputs(test, DType::BF16, {3, 256, 2, d}, 8);
    const DeviceTensor dQkv = test.output(DType::BF16, in.qkv.shape);
    const auto run = [&] {
      test.ops().attentionBackward({.qkv = test.upload(in.qkv),
                                    .y = test.upload(in.y),
                                    .logSumExp = test.upload(in.logSumExp),
                                    .dY = test.upload(in.dY),
                                    .heads = 3,
                                    .dQkv = dQkv});
      return dQkv.bytes();
    };
    const std::vector<char> want = run();
    for (int i = 0; i < 2; i++) {
      backward(test, test.ops(), 2, other);
      EXPECT(run() == want, "d ", d);
    }
  }
}

// As many tokens as DiT has at most; once, for the oracle takes seconds.
DIT_CASE("attention-backward/t4096") {
  constexpr Sizes kSizes = {1, 4096, 1, 8};
  for (DType act : {DType::F32, DType::BF16}) check(test, kSizes, randomInputs(test, act, kSizes));
}

// The bits of a row depend neither on the other rows nor on the threads that share the work.
DIT_KERNEL_CASE("attention-backward/bits") {
  const auto checkBits = [&](DType act, const Sizes& all) {
    const Inputs in = randomInputs(test, act, all);
    const auto third = [](const Values& x, int64_t m, int64_t n) {
      return Values{x.dtype, {1, m, n}, {x.v.begin() + 2 * m * n, x.v.begin() + 3 * m * n}};
    };
    const int64_t t = all.tokens, c = all.channels();
    const Inputs one = {third(in.qkv, t, 3 * c), third(in.y, t, c),
                        third(in.logSumExp, all.heads, t), third(in.dY, t, c)};
    const std::vector<char> want = backward(test, test.ops(), all.heads, in).bytes();
    for (int threads : {1, 2, 3, 7}) {
      Ops ops(openBackend({.device = test.options().device, .threads = threads}));
      EXPECT(backward(test, ops, all.heads, in).bytes() == want, threads, " threads");
      const std::vector<char> got = backward(test, ops, all.heads, one).bytes();
      EXPECT(std::equal(got.begin(), got.end(), want.begin() + 2 * got.size()), threads,
             " threads, one row");
    }
  };
  for (DType act : {DType::F32, DType::BF16}) checkBits(act, {5, 200, 3, 72});
  checkBits(DType::BF16, {4, 260, 2, 64});
}

DIT_CASE("attention-backward/errors") {
  const Inputs in = randomInputs(test, DType::F32, {1, 4, 2, 8});
  Inputs wrong = in;
  wrong.logSumExp = test.random(DType::F32, {1, 4, 2});
  EXPECT_ERROR(Shape, backward(test, test.ops(), 2, wrong));
  EXPECT_ERROR(Shape, backward(test, test.ops(), 5, in));
}

void bench(Test& test, DType act, const Sizes& s) {
  const Inputs in = randomInputs(test, act, s);
  const Tensor qkv = test.upload(in.qkv), y = test.upload(in.y), dY = test.upload(in.dY);
  const Tensor logSumExp = test.upload(in.logSumExp);
  const DeviceTensor dQkv = test.output(act, in.qkv.shape);
  const std::string label = detail::concat(dtypeName(act), " R ", s.rows, " T ", s.tokens,
                                           " heads ", s.heads, " x ", s.d);
  const double product = 2.0 * s.rows * s.heads * s.tokens * s.tokens * s.d;
  test.bench(label + " forward", 2 * product, 0, [&] {
    test.ops().attention({.qkv = qkv, .y = y, .heads = s.heads, .logSumExp = logSumExp});
  });
  test.bench(label + " backward", 5 * product, 0, [&] {
    test.ops().attentionBackward(
        {.qkv = qkv, .y = y, .logSumExp = logSumExp, .dY = dY, .heads = s.heads, .dQkv = dQkv});
  });
}

DIT_BENCH("attention-backward") {
  for (DType act : {DType::F32, DType::BF16}) {
    bench(test, act, {8, 256, 6, 64});    // S/2
    bench(test, act, {2, 256, 16, 72});   // XL/2 at 256 px
    bench(test, act, {1, 1024, 16, 72});  // at 512 px
    bench(test, act, {32, 64, 5, 32});    // the demo's model
  }
}

}  // namespace
}  // namespace dit::test
