#include <string>
#include <type_traits>

#include "harness.h"
#include "oracle_attention_backward.h"

namespace dit::test {
namespace {

struct AttentionCase {
  int64_t rows, tokens, heads, d;
};

// scale: how far apart scores are; 1 gives normal scores, 8 a softmax that picks few keys.
Values attend(Test& test, DType act, const AttentionCase& c, const Values& qkv, bool tf32 = false) {
  const int64_t channels = c.heads * c.d;
  DeviceTensor y = test.output(act, {c.rows, c.tokens, channels});
  test.ops().attention({.qkv = test.upload(qkv), .y = y, .heads = c.heads, .tf32 = tf32});
  return y.download();
}

void check(Test& test, DType act, const AttentionCase& c, double scale = 1) {
  const int64_t channels = c.heads * c.d;
  const Values qkv = test.random(act, {c.rows, c.tokens, 3 * channels}, scale);
  EXPECT_MATCHES(attend(test, act, c, qkv), [&]<typename T>(T) {
    return oracle::attention<T>(c.rows, c.tokens, channels, c.heads, qkv.as<T>());
  });
}

DIT_CASES(attentionCases) {
  // DiT's head dimensions and odd ones, each with an odd number of rows or of heads.
  constexpr AttentionCase kCases[] = {
      {3, 256, 2, 72}, {1, 256, 3, 64}, {3, 16, 2, 12},   {1, 49, 3, 24},
      {2, 49, 2, 32},  {1, 49, 1, 80},  {1, 144, 1, 128}, {1, 1, 2, 7},
      {2, 131, 3, 9},  {1, 300, 1, 72}, {1, 64, 1, 512},  {1, 257, 1, 512},
  };
  for (DType act : {DType::F32, DType::BF16}) {
    for (const AttentionCase& c : kCases) {
      const std::string name = detail::concat("attention/", act == DType::F32 ? "f32" : "bf16",
                                              "/d", c.d, "/t", c.tokens);
      addCase(CaseKind::Kernel, name, [=](Test& test) { check(test, act, c); });
    }
  }
}

// Operands may be rounded to TF32, as the naive run's inputs are. Where the device has no TF32,
// nothing may change.
DIT_KERNEL_CASE("attention/tf32") {
  constexpr AttentionCase kCases[] = {{2, 256, 2, 72}, {1, 130, 3, 64}, {2, 49, 2, 32},
                                      {2, 131, 3, 9},  {1, 49, 1, 80},  {1, 144, 1, 128},
                                      {3, 1, 2, 7},    {1, 65, 1, 512}};
  for (const AttentionCase& c : kCases) {
    const int64_t channels = c.heads * c.d;
    const Values qkv = test.random(DType::F32, {c.rows, c.tokens, 3 * channels});
    const Values y = attend(test, DType::F32, c, qkv, /*tf32=*/true);
    if (!test.backend().supports(Precision::TF32)) {
      EXPECT(y.v == attend(test, DType::F32, c, qkv).v);
      continue;
    }
    EXPECT_MATCHES(y, [&]<typename T>(T) {
      std::vector<T> inputs = qkv.as<T>();
      if constexpr (std::is_same_v<T, float>) {
        for (T& x : inputs) x = static_cast<T>(roundedToTf32(x));
      }
      return oracle::attention<T>(c.rows, c.tokens, channels, c.heads, inputs);
    });
    // It does round.
    EXPECT(c.tokens == 1 || y.v != attend(test, DType::F32, c, qkv).v);
  }
}

// Scores far apart: the running maximum moves, and most probabilities vanish.
DIT_KERNEL_CASE("attention/f32/sharp") { check(test, DType::F32, {1, 300, 2, 72}, 6); }
DIT_KERNEL_CASE("attention/bf16/sharp") { check(test, DType::BF16, {1, 300, 2, 72}, 6); }

// What the derivative needs. In bf16 the terms of the sum are within 9e-5 (simd_math.h: exp2), and
// so is its logarithm, beside what the naive run may err by.
DIT_KERNEL_CASE("attention/log-sum-exp") {
  constexpr AttentionCase kCases[] = {{3, 256, 2, 72}, {2, 131, 3, 9},  {1, 300, 2, 16},
                                      {3, 1, 2, 7},    {1, 65, 1, 512}, {1, 131, 2, 72}};
  for (DType act : {DType::F32, DType::BF16}) {
    for (const AttentionCase& c : kCases) {
      for (double scale : {1, 6}) {
        const int64_t channels = c.heads * c.d;
        const Values qkv = test.random(act, {c.rows, c.tokens, 3 * channels}, scale);
        const DeviceTensor y = test.output(act, {c.rows, c.tokens, channels});
        const DeviceTensor logSumExp = test.output(DType::F32, {c.rows, c.heads, c.tokens});
        test.ops().attention(
            {.qkv = test.upload(qkv), .y = y, .heads = c.heads, .logSumExp = logSumExp});
        const auto want = [&]<typename T>(T) {
          return oracle::attentionLogSumExp<T>(c.rows, c.tokens, channels, c.heads, qkv.as<T>());
        };
        if (act == DType::F32) {
          EXPECT_MATCHES(logSumExp.download(), want);
        } else {
          const std::vector<double> got = logSumExp.download().v, exact = want(double{});
          const std::vector<float> naive = want(float{});
          double error = 0, naiveError = 0;
          for (size_t i = 0; i < got.size(); i++) {
            error = std::max(error, std::abs(got[i] - exact[i]));
            naiveError = std::max(naiveError, std::abs(naive[i] - exact[i]));
          }
          EXPECT(error <= 9e-5 + 2 * naiveError, error, ", naive ", naiveError);
        }
        // y is the same with and without it.
        EXPECT(y.download().v == attend(test, act, c, qkv).v);
      }
    }
  }
}

// Each token attends to itself alone: y = v, whatever the size of the scores.
DIT_KERNEL_CASE("attention/extreme-scores") {
  constexpr int64_t kTokens = 160, kD = 64;
  for (DType act : {DType::F32, DType::BF16}) {
    Values qkv = test.random(act, {1, kTokens, 3 * kD});
    for (int64_t t = 0; t < kTokens; t++) {
      // Tokens on a circle, so far out that the best score leads by more than 2^7.
      for (int64_t i = 0; i < 2 * kD; i++) qkv.v[t * 3 * kD + i] = 0;
      const double angle = 2 * M_PI * static_cast<double>(t) / kTokens;
      for (int64_t part = 0; part < 2; part++) {
        double* at = &qkv.v[t * 3 * kD + part * kD];
        at[0] = rounded(act, 3e4 * std::cos(angle));
        at[1] = rounded(act, 3e4 * std::sin(angle));
      }
    }
    const Values y = attend(test, act, {1, kTokens, 1, kD}, qkv);
    std::vector<double> want;
    for (int64_t t = 0; t < kTokens; t++) {
      const double* v = &qkv.v[t * 3 * kD + 2 * kD];
      want.insert(want.end(), v, v + kD);
    }
    // bf16 rounds points of the circle, so that a neighbour may win: there, only finite.
    const double error = relativeL2(y.v, want);
    EXPECT(act == DType::F32 ? error < 1e-6 : std::isfinite(error), error);
  }
}

// The bits of a row depend neither on the other rows nor on the threads that share the work.
DIT_KERNEL_CASE("attention/bits") {
  for (DType act : {DType::F32, DType::BF16}) {
    for (int64_t d : {72, 512}) {
      const int64_t tokens = 200, heads = d == 72 ? 3 : 1, c = heads * d;
      const Values qkv = test.random(act, {5, tokens, 3 * c});
      const Values third{act,
                         {1, tokens, 3 * c},
                         {qkv.v.begin() + 2 * tokens * 3 * c, qkv.v.begin() + 3 * tokens * 3 * c}};
      const DeviceTensor all = test.output(act, {5, tokens, c});
      const DeviceTensor one = test.output(act, {1, tokens, c});
      const DeviceTensor allSums = test.output(DType::F32, {5, heads, tokens});
      const DeviceTensor oneSums = test.output(DType::F32, {1, heads, tokens});
      const auto sameRow = [](const DeviceTensor& rows, const DeviceTensor& row) {
        const std::vector<char> want = rows.bytes(), got = row.bytes();
        return std::equal(got.begin(), got.end(), want.begin() + 2 * got.size());
      };
      test.ops().attention(
          {.qkv = test.upload(qkv), .y = all, .heads = heads, .logSumExp = allSums});
      for (int threads : {1, 2, 3, 7}) {
        Ops ops(openBackend({.device = test.options().device, .threads = threads}));
        ops.attention({.qkv = test.upload(third), .y = one, .heads = heads, .logSumExp = oneSums});
        EXPECT(sameRow(all, one), threads, " threads");
        EXPECT(sameRow(allSums, oneSums), threads, " threads, logSumExp");
      }
    }
  }
}

void bench(Test& test, DType act, int64_t rows, int64_t tokens, int64_t heads, int64_t d) {
  const int64_t c = heads * d;
  const Tensor qkv = test.upload(test.random(act, {rows, tokens, 3 * c}));
  const DeviceTensor y = test.output(act, {rows, tokens, c});
  test.bench(detail::concat(dtypeName(act), " R ", rows, " T ", tokens, " heads ", heads, " x ", d),
             4.0 * rows * heads * tokens * tokens * d, 0,
             [&] { test.ops().attention({.qkv = qkv, .y = y, .heads = heads}); });
}

DIT_BENCH("attention") {
  for (DType act : {DType::F32, DType::BF16}) {
    bench(test, act, 2, 256, 16, 72);  // XL/2 at 256 px, guided
    bench(test, act, 1, 256, 16, 72);
    bench(test, act, 2, 1024, 16, 72);  // at 512 px
    bench(test, act, 2, 256, 12, 64);   // B/2
    bench(test, act, 1, 1024, 1, 512);  // the VAE at 256 px
    bench(test, act, 1, 4096, 1, 512);  // at 512 px
  }
}

}  // namespace
}  // namespace dit::test
