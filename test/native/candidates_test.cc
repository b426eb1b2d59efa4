// What may be tried out on a device (native/cuda/tuning.h) changes no bit of a result.
#include <string>

#include "harness.h"
#include "tuned.h"

namespace dit::test {
namespace {

struct Size {
  int64_t r, m, n, k;
};

// The bits of y for each epilogue, with inputs that follow from the name of the case.
std::vector<char> outputs(Test& test, const Size& size) {
  const auto [r, m, n, k] = size;
  const Values x = test.random(DType::BF16, {r, m, k});
  std::vector<float> w = test.random(DType::F32, {n, k}, 0.1).as<float>();
  const Values bias = test.random(DType::F32, {n}), gate = test.random(DType::F32, {r, n});
  const Values residual = test.random(DType::BF16, {r, m, n});
  const auto weight = test.ops().prepareLinear(
      {.values = Tensor(w.data(), DType::F32, {n, k}), .rows = m, .precision = Precision::BF16});
  std::vector<int32_t> own;
  for (int32_t i = 0; i < r; i++) own.push_back(i);
  std::vector<char> all;
  for (const Epilogue epilogue : {Epilogue::Bias, Epilogue::BiasGelu, Epilogue::BiasResidual}) {
    const DeviceTensor y = test.output(DType::BF16, {r, m, n});
    LinearArgs args{.x = test.upload(x),
                    .weight = weight.get(),
                    .bias = test.upload(bias),
                    .y = y,
                    .epilogue = epilogue};
    if (epilogue == Epilogue::BiasResidual) {
      args.gate = {test.upload(gate), test.upload(own)};
      args.residual = test.upload(residual);
    }
    test.ops().linear(args);
    const std::vector<char> bytes = y.bytes();
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

void sameBits(Test& test, const std::string& choices, const Size& size) {
  Test plain(test.name(), test.options());
  const std::vector<char> production = outputs(plain, size);
  const Tuned tuned(choices);
  Test other(test.name(), test.options());
  EXPECT(outputs(other, size) == production, choices, " at ", size.r, "x", size.m, "x", size.n, "x",
         size.k);
}

// Rows that end within a tile and a cluster, columns that end within a tile, several groups of
// rows; K of one step, of fewer than there are stages, of more, and of no whole step;
// an odd number of columns.
constexpr Size kSizes[] = {
    {3, 100, 200, 64}, {2, 70, 71, 200}, {9, 260, 328, 24}, {1, 512, 64, 712}};

DIT_CASES(candidateCases) {
  for (const cuda::LinearCandidate& candidate : cuda::kLinearCandidates) {
    addCase(CaseKind::Plain, "candidates/linear/" + candidate.name(), [=](Test& test) {
      const std::string choice = "linear=" + candidate.name();
      if (test.options().device.starts_with("cuda") && !hasCandidates(test.options().device)) {
        const Tuned tuned(choice);
        Test other(test.name(), test.options());
        EXPECT_ERROR(Option, other.ops());
        return;
      }
      for (const Size& size : kSizes) sameBits(test, choice, size);
    });
  }
}

DIT_CASE("candidates/dependent-launches") {
  for (const Size& size : kSizes) sameBits(test, "launch=dependent", size);
}

DIT_CASE("candidates/unknown") {
  for (const char* choice : {"linear=1x1", "linear", "launch=serial", "x"}) {
    const Tuned tuned(choice);
    Test other(test.name(), test.options());
    if (test.options().device == "cpu") {
      other.ops();  // no concern of the CPU's
    } else {
      EXPECT_ERROR(Option, other.ops());
    }
  }
}

}  // namespace
}  // namespace dit::test
