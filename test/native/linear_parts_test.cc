// linearFinish, geluBackward and gateBackward. The first two are parts of linear and its backward;
// here they are called alone.
#include <cmath>
#include <complex>

#include "copy_bench.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "harness.h"
#include "oracle_training.h"

namespace dit::test {
namespace {

using Complex = std::complex<double>;

constexpr DType kActs[] = {DType::F32, DType::BF16};
constexpr double kExact = 1e-9;  // relative error of a derivative in double

// The tolerance rule for results of a part that take values of the activations' type.
template <typename Oracle>
void expectParts(Test& test, const std::vector<Values>& got, Oracle&& oracle) {
  const auto want = oracle(double{});
  const auto naive = oracle(float{});
  for (size_t i = 0; i < got.size(); i++) {
    const std::string problem =
        compare(got[i], want[i], std::vector<double>(naive[i].begin(), naive[i].end()));
    EXPECT(problem.empty(), "result ", i, ": ", problem);
  }
}

// ---- the oracle -----------------------------------------------------------------------------

DIT_CASE("oracle/linear-parts") {
  std::vector<double> x, slopes;
  for (double v = -6; v < 6; v += 0.37) x.push_back(v), slopes.push_back(oracle::geluDerivative(v));
  const std::vector<double> ones(x.size(), 1);
  const std::vector<double> want = oracle::complexStep(x, ones, [](std::vector<Complex> moved) {
    for (Complex& value : moved) value = oracle::gelu(value);
    return moved;
  });
  EXPECT(relativeL2(slopes, want) < kExact, relativeL2(slopes, want));

  constexpr int64_t kR = 2, kM = 3, kN = 4;
  const auto branch = test.random(DType::F64, {kR * kM * kN}).v;
  const auto gate = test.random(DType::F64, {kR * kN}).v;
  const auto residual = test.random(DType::F64, {kR * kM * kN}).v;
  const auto dY = test.random(DType::F64, {kR * kM * kN}).v;
  auto complex = [](const std::vector<double>& v) {
    return std::vector<Complex>(v.begin(), v.end());
  };
  const auto got = oracle::gateBackward<double>(kR, kM, kN, dY, branch, gate);
  const auto dBranch = oracle::complexStep(branch, dY, [&](const std::vector<Complex>& moved) {
    return oracle::linearFinish<Complex>(kM, kN, moved, complex(gate), complex(residual));
  });
  const auto dGate = oracle::complexStep(gate, dY, [&](const std::vector<Complex>& moved) {
    return oracle::linearFinish<Complex>(kM, kN, complex(branch), moved, complex(residual));
  });
  EXPECT(relativeL2(got.dBranch, dBranch) < kExact, relativeL2(got.dBranch, dBranch));
  EXPECT(relativeL2(got.dGate, dGate) < kExact, relativeL2(got.dGate, dGate));
}

// ---- linearFinish ---------------------------------------------------------------------------

struct FinishCase {
  DType kept, y;
  bool residual = false, gate = false, shared = false, inPlace = false, columns = false;
};

void checkFinish(Test& test, const FinishCase& c, int64_t r, int64_t m, int64_t n) {
  const Values kept = test.random(c.kept, {r, m, n}, 2);
  const Values residual =
      c.shared ? test.random(DType::F32, {1, m, n}) : test.random(c.y, {r, m, n});
  const Values table = test.random(DType::F32, {3, 2 * n});
  std::vector<int32_t> index;
  for (int64_t i = 0; i < r; i++) index.push_back(static_cast<int32_t>((2 * i + 1) % 3));
  DeviceTensor memory = test.output(c.y, {r, m, c.columns ? 3 * n : n});
  const Tensor y = c.columns ? memory.tensor().columns(n, n) : memory.tensor();
  cpu::LinearFinishArgs args{.kept = test.upload(kept), .y = y};
  if (c.residual) args.residual = c.inPlace ? y : test.upload(residual);
  if (c.gate) args.gate = {test.upload(table).columns(n, n), test.upload(index)};
  if (c.residual && c.inPlace) test.backend().upload(y, test.upload(residual).data);
  cpu::kernels().linearFinish(args);

  Values got{c.y, {r, m, n}, {}};
  const Values all = memory.download();
  const int64_t width = all.shape[2];
  for (int64_t i = 0; i < all.count(); i++) {
    const bool inside = !c.columns || (i % width >= n && i % width < 2 * n);
    if (inside) {
      got.v.push_back(all.v[i]);
    } else {
      EXPECT(std::isnan(all.v[i]), "column ", i % width, " was written");
    }
  }
  EXPECT_MATCHES(got, [&]<typename T>(T) {
    std::vector<T> gates;
    for (int32_t i : index) {
      for (int64_t j = 0; j < n; j++) gates.push_back(static_cast<T>(table.v[(2 * i + 1) * n + j]));
    }
    if (!c.gate) gates.clear();
    return oracle::linearFinish<T>(m, n, kept.as<T>(), gates,
                                   c.residual ? residual.as<T>() : std::vector<T>());
  });
}

DIT_KERNEL_CASE("linearFinish") {
  constexpr int64_t kShapes[][3] = {{1, 7, 20}, {3, 5, 97}, {2, 1, 131}, {1, 9, 3}, {3, 16, 384}};
  constexpr DType kF32 = DType::F32, kBf16 = DType::BF16;
  for (const auto& [kept, y] : {std::pair{kF32, kF32}, {kBf16, kBf16}, {kBf16, kF32}}) {
    const FinishCase gelu{kept, y}, residual{kept, y, true}, gated{kept, y, true, true};
    std::vector<FinishCase> cases{gelu, residual, gated};
    for (FinishCase c : {gelu, residual, gated}) c.columns = true, cases.push_back(c);
    for (FinishCase c : {residual, gated}) {
      c.shared = true, cases.push_back(c);
      c.shared = false, c.inPlace = true, cases.push_back(c);
      c.columns = true, cases.push_back(c);
    }
    for (const FinishCase& c : cases) {
      for (const auto& s : kShapes) checkFinish(test, c, s[0], s[1], s[2]);
    }
  }
}

// ---- geluBackward ---------------------------------------------------------------------------

DIT_KERNEL_CASE("geluBackward") {
  for (DType act : kActs) {
    for (int64_t n : {1, 20, 1000, 70001}) {
      const Values pre = test.random(act, {n}, 3), dX = test.random(act, {n});
      DeviceTensor x = test.output(act, {n}), gradient = test.output(act, {n});
      gradient.upload(dX);
      cpu::kernels().geluBackward({.pre = test.upload(pre), .x = x, .dX = gradient});
      expectParts(test, {x.download(), gradient.download()}, [&]<typename T>(T) {
        std::vector<std::vector<T>> want(2);
        const std::vector<T> in = pre.as<T>(), dOut = dX.as<T>();
        for (size_t i = 0; i < in.size(); i++) {
          want[0].push_back(oracle::gelu(in[i]));
          want[1].push_back(dOut[i] * oracle::geluDerivative(in[i]));
        }
        return want;
      });
    }
  }
}

// One by one, also where gelu is small: its oracle cancels there even in double, so the truth is
// written as a sigmoid. Its exp turns the roundings of the argument, four of them, into a relative
// error: with the argument at most 64, about 1e-5 in fp32.
DIT_KERNEL_CASE("geluBackward/accuracy") {
  std::vector<double> in;
  for (double x = -9; x < 9; x += 0.00113) in.push_back(x);
  const int64_t n = static_cast<int64_t>(in.size());
  for (DType act : kActs) {
    const Values pre = Values::of(act, {n}, in);
    DeviceTensor x = test.output(act, {n}), slope = test.output(act, {n});
    slope.upload({act, {n}, std::vector<double>(in.size(), 1)});
    cpu::kernels().geluBackward({.pre = test.upload(pre), .x = x, .dX = slope});
    const Values gotX = x.download(), gotSlope = slope.download();
    const double unit = act == DType::F32 ? 0x1p-24 : 0x1p-8;
    for (int64_t i = 0; i < n; i++) {
      const double v = pre.v[i], argument = 2 * std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
      const double wantX = v / (1 + std::exp(-argument)), wantSlope = oracle::geluDerivative(v);
      const double units = std::abs(gotX.v[i] - wantX) / (std::abs(wantX) + 1e-30) / unit;
      EXPECT(units <= 4 + 4 * std::abs(argument), v, ": ", gotX.v[i], ", not ", wantX);
      EXPECT(std::abs(gotSlope.v[i] - wantSlope) <= 4 * unit, v, ": ", gotSlope.v[i], ", not ",
             wantSlope);
    }
  }
}

// Far out x is v or 0 and the derivative 1 or 0; NaN stays NaN.
DIT_KERNEL_CASE("geluBackward/extremes") {
  const std::vector<double> in{-3e38, -1e10, -40, 40, 1e10, 3e38, 0, NAN};
  for (DType act : kActs) {
    DeviceTensor x = test.output(act, {8}), slope = test.output(act, {8});
    slope.upload({act, {8}, std::vector<double>(8, 1)});
    cpu::kernels().geluBackward(
        {.pre = test.upload(Values::of(act, {8}, in)), .x = x, .dX = slope});
    const std::vector<double> gotX = x.download().v, gotSlope = slope.download().v;
    for (int i : {0, 1, 2}) EXPECT(gotX[i] == 0 && gotSlope[i] == 0, in[i], " ", gotSlope[i]);
    for (int i : {3, 4, 5}) {
      EXPECT(gotX[i] == rounded(act, in[i]) && gotSlope[i] == 1, in[i], " ", gotSlope[i]);
    }
    EXPECT(gotX[6] == 0 && gotSlope[6] == 0.5, gotX[6], " ", gotSlope[6]);
    EXPECT(std::isnan(gotX[7]) && std::isnan(gotSlope[7]));
  }
}

// ---- gateBackward ---------------------------------------------------------------------------

struct GateInputs {
  Values dY, branch, table;
  std::vector<int32_t> index;
};

GateInputs gateInputs(Test& test, DType act, int64_t r, int64_t m, int64_t n) {
  GateInputs in{test.random(DType::F32, {r, m, n}),
                test.random(act, {r, m, n}),
                test.random(DType::F32, {r + 1, 6 * n}),
                {}};
  for (int64_t i = 0; i < r; i++) in.index.push_back(static_cast<int32_t>(r - i));
  return in;
}

// gate and dGate are columns of modulations [E, 6N].
void checkGateBackward(Test& test, DType act, int64_t r, int64_t m, int64_t n) {
  const GateInputs in = gateInputs(test, act, r, m, n);
  DeviceTensor dBranch = test.output(act, {r, m, n});
  DeviceTensor modulation = test.output(DType::F32, {r, 6 * n});
  test.ops().gateBackward({.dY = test.upload(in.dY),
                           .branch = test.upload(in.branch),
                           .gate = {test.upload(in.table).columns(2 * n, n), test.upload(in.index)},
                           .dBranch = dBranch,
                           .dGate = modulation.tensor().columns(2 * n, n)});
  const Values all = modulation.download();
  Values dGate{DType::F32, {r, n}, {}};
  for (int64_t i = 0; i < all.count(); i++) {
    if (i % (6 * n) / n == 2) {
      dGate.v.push_back(all.v[i]);
    } else {
      EXPECT(std::isnan(all.v[i]), "column ", i % (6 * n), " was written");
    }
  }
  expectParts(test, {dBranch.download(), dGate}, [&]<typename T>(T) {
    std::vector<T> gates;
    for (int32_t i : in.index) {
      for (int64_t j = 0; j < n; j++) {
        gates.push_back(static_cast<T>(in.table.v[(6 * i + 2) * n + j]));
      }
    }
    auto d = oracle::gateBackward<T>(r, m, n, in.dY.as<T>(), in.branch.as<T>(), gates);
    return std::vector<std::vector<T>>{d.dBranch, d.dGate};
  });
}

DIT_KERNEL_CASE("gateBackward") {
  constexpr int64_t kShapes[][3] = {{1, 7, 20},  {3, 5, 97},    {2, 1, 131},  {3, 33, 24},
                                    {1, 64, 16}, {1, 200, 384}, {2, 49, 1152}};
  for (DType act : kActs) {
    for (const auto& s : kShapes) checkGateBackward(test, act, s[0], s[1], s[2]);
  }
}

// The bits depend neither on the number of threads nor on the rows beside a row.
DIT_KERNEL_CASE("gateBackward/bits") {
  constexpr int64_t kR = 2, kM = 350, kN = 200;
  const GateInputs in = gateInputs(test, DType::F32, kR, kM, kN);
  const Tensor dY = test.upload(in.dY), branch = test.upload(in.branch);
  const RowVector gate{test.upload(in.table).columns(0, kN), test.upload(in.index)};
  DeviceTensor dBranch = test.output(DType::F32, {kR, kM, kN});
  DeviceTensor dGate = test.output(DType::F32, {kR, kN});
  std::vector<char> wantBranch, wantGate;
  for (int threads : {1, 2, 5}) {
    Ops ops(openBackend({.device = test.options().device, .threads = threads}));
    dBranch.upload(in.branch);
    ops.gateBackward({dY, branch, gate, dBranch, dGate});
    if (wantGate.empty()) wantBranch = dBranch.bytes(), wantGate = dGate.bytes();
    EXPECT(dBranch.bytes() == wantBranch && dGate.bytes() == wantGate, threads, " threads");
  }
  DeviceTensor oneBranch = test.output(DType::F32, {1, kM, kN});
  DeviceTensor oneGate = test.output(DType::F32, {1, kN});
  test.ops().gateBackward({dY.slice(1, 1),
                           branch.slice(1, 1),
                           {gate.table, gate.index.slice(1, 1)},
                           oneBranch,
                           oneGate});
  const std::vector<char> branchBits = oneBranch.bytes(), gateBits = oneGate.bytes();
  EXPECT(std::equal(branchBits.begin(), branchBits.end(), wantBranch.end() - branchBits.size()));
  EXPECT(std::equal(gateBits.begin(), gateBits.end(), wantGate.end() - gateBits.size()));
}

// ---- benchmarks ------------------------------------------------------------------------------

// DiT-S/2 with 16 images: the MLP's gelu and its derivative, a branch's gate and residual.
DIT_BENCH("linear-parts") {
  constexpr int64_t kR = 16, kT = 256, kC = 384, kMlp = 1536;
  benchCopy(test);
  for (DType act : kActs) {
    const std::string label = dtypeName(act);
    const Tensor pre = test.upload(test.random(act, {kR, kT, kMlp}));
    const DeviceTensor x = test.output(act, {kR, kT, kMlp}), dX = test.output(act, {kR, kT, kMlp});
    test.backend().zero(dX);
    const double mlpBytes = static_cast<double>(pre.bytes());
    test.bench("linearFinish gelu " + label, 0, 2 * mlpBytes,
               [&] { cpu::kernels().linearFinish({.kept = pre, .y = x}); });
    test.bench("geluBackward " + label, 0, 4 * mlpBytes,
               [&] { cpu::kernels().geluBackward({.pre = pre, .x = x, .dX = dX}); });

    const Shape shape{kR, kT, kC};
    const Tensor branch = test.upload(test.random(act, shape));
    const Tensor dY = test.upload(test.random(DType::F32, shape));
    const RowVector gate{test.upload(test.random(DType::F32, {kR, kC})),
                         test.upload(test.randomIndex({kR}, kR))};
    const DeviceTensor y = test.output(DType::F32, shape), dBranch = test.output(act, shape);
    const DeviceTensor dGate = test.output(DType::F32, {kR, kC});
    const double bytes = static_cast<double>(branch.bytes() + dY.bytes());
    test.bench("linearFinish residual " + label, 0, bytes + static_cast<double>(dY.bytes()), [&] {
      cpu::kernels().linearFinish({.kept = branch, .gate = gate, .residual = dY, .y = y});
    });
    test.bench("gateBackward " + label, 0, bytes + static_cast<double>(branch.bytes()), [&] {
      test.ops().gateBackward({dY, branch, gate, dBranch, dGate});
    });
  }
}

}  // namespace
}  // namespace dit::test
