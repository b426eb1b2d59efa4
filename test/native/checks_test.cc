// Ops refuses what does not fit before any backend sees it: each case gives an operation arguments
// that are right, then one that is wrong, and reads the message.
#include <functional>
#include <string>

#include "harness.h"

namespace dit::test {
namespace {

// A tensor that no kernel may touch.
Tensor fake(DType dtype, Shape shape) {
  static char nothing[1];
  return {nothing, dtype, shape};
}

Tensor f32(Shape shape) { return fake(DType::F32, shape); }
Tensor bf16(Shape shape) { return fake(DType::BF16, shape); }
Tensor i32(Shape shape) { return fake(DType::I32, shape); }

// Rows further apart than they are long.
Tensor strided(Tensor tensor) {
  tensor.rowStride += 8;
  return tensor;
}

// Does nothing: what passes the checks ends here.
class NoBackend : public Backend {
 public:
  int calls = 0;

  std::string name() const override { return "none"; }
  bool supports(Precision) const override { return true; }
  void* allocate(size_t) override { fail(ErrorCode::Internal, "no memory here"); }
  void free(void*) override {}
  size_t freeBytes() const override { return 0; }
  void upload(const Tensor&, const void*) override {}
  void download(void*, const Tensor&) override {}
  void zero(const Tensor&) override {}
  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs&) override {
    calls++;
    return nullptr;
  }
  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs&) override {
    calls++;
    return nullptr;
  }
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs&) override {
    calls++;
    return nullptr;
  }
  void linear(const LinearArgs&) override { calls++; }
  void layerNormModulate(const LayerNormModulateArgs&) override { calls++; }
  void attention(const AttentionArgs&) override { calls++; }
  void silu(const SiluArgs&) override { calls++; }
  void timestepEmbedding(const TimestepEmbeddingArgs&) override { calls++; }
  void conditionEmbedding(const ConditionEmbeddingArgs&) override { calls++; }
  void patchify(const PatchifyArgs&) override { calls++; }
  void unpatchify(const UnpatchifyArgs&) override { calls++; }
  void guide(const GuideArgs&) override { calls++; }
  void solverUpdate(const SolverUpdateArgs&) override { calls++; }
  void noise(const NoiseArgs&) override { calls++; }
  void conv2d(const Conv2dArgs&) override { calls++; }
  void groupNorm(const GroupNormArgs&) override { calls++; }
  void toChannelsLast(const ToChannelsLastArgs&) override { calls++; }
  void toChannelsFirst(const ToChannelsFirstArgs&) override { calls++; }
  void sampleMoments(const SampleMomentsArgs&) override { calls++; }
  void toRgb8(const ToRgb8Args&) override { calls++; }
  void linearBackward(const LinearBackwardArgs&) override { calls++; }
  void gateBackward(const GateBackwardArgs&) override { calls++; }
  void layerNormModulateBackward(const LayerNormModulateBackwardArgs&) override { calls++; }
  void attentionBackward(const AttentionBackwardArgs&) override { calls++; }
  void siluBackward(const SiluBackwardArgs&) override { calls++; }
  void conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs&) override { calls++; }
  void unpatchifyBackward(const UnpatchifyBackwardArgs&) override { calls++; }
  void drawLatents(const DrawLatentsArgs&) override { calls++; }
  void qSample(const QSampleArgs&) override { calls++; }
  void loss(const LossArgs&) override { calls++; }
  void squaredNorm(const SquaredNormArgs&) override { calls++; }
  void adamW(const AdamWArgs&) override { calls++; }
  void cast(const CastArgs&) override { calls++; }
};

class NoWeight : public PreparedWeight {
 public:
  size_t bytes() const override { return 0; }
};

// Calls one operation with arguments of type Args: right, and changed into wrong ones.
template <typename Args>
class Checker {
 public:
  using Operation = void (Ops::*)(const Args& args);

  Checker(Test& test, const char* name, Operation operation, Args right)
      : test_(test), name_(name), operation_(operation), right_(std::move(right)) {
    passes([](Args&) {});
  }

  void passes(const std::function<void(Args&)>& change) {
    Args args = right_;
    change(args);
    try {
      (ops_.*operation_)(args);
    } catch (const Error& error) {
      test_.fail(__FILE__, __LINE__, detail::concat("refused: ", error.what()));
    }
    calls_++;
    if (backend_->calls != calls_) {
      test_.fail(__FILE__, __LINE__, detail::concat(name_, " did not reach the backend"));
      calls_ = backend_->calls;
    }
  }

  // The message has to name the operation and contain every one of `words`.
  void refuses(const std::vector<std::string>& words, const std::function<void(Args&)>& change) {
    Args args = right_;
    change(args);
    const std::string message =
        expectError(test_, __FILE__, __LINE__, ErrorCode::Shape, [&] { (ops_.*operation_)(args); });
    std::vector<std::string> all = words;
    all.push_back(std::string(name_) + ": ");
    for (const std::string& word : all) {
      if (message.find(word) == std::string::npos) {
        test_.fail(__FILE__, __LINE__,
                   detail::concat("no \"", word, "\" in the message \"", message, "\""));
      }
    }
    if (backend_->calls != calls_) {
      test_.fail(__FILE__, __LINE__, detail::concat(name_, " reached the backend: ", message));
      calls_ = backend_->calls;
    }
  }

 private:
  Test& test_;
  const char* name_;
  Operation operation_;
  Args right_;
  NoBackend* backend_ = new NoBackend;
  Ops ops_{std::unique_ptr<Backend>(backend_)};
  int calls_ = 0;
};

RowVector vector(Shape table, int64_t rows) { return {f32(table), i32({rows})}; }

DIT_CASE("checks/prepare") {
  Ops ops(std::make_unique<NoBackend>());
  const std::string rows = EXPECT_ERROR(
      Shape, ops.prepareLinear({.values = f32({3, 4}), .rows = 0, .precision = Precision::F32}));
  EXPECT(rows.find("prepareLinear: rows must be positive, got 0") == 0, rows);
  EXPECT_ERROR(Shape,
               ops.prepareLinear({.values = f32({3}), .rows = 1, .precision = Precision::F32}));
  EXPECT_ERROR(Shape,
               ops.prepareLinear({.values = i32({3, 4}), .rows = 1, .precision = Precision::F32}));
  const std::string trained =
      EXPECT_ERROR(Shape, ops.prepareTrainedLinear({.values = bf16({3, 4}), .rows = -1}));
  EXPECT(trained.find("prepareTrainedLinear: rows must be positive, got -1") == 0, trained);
  EXPECT_ERROR(Shape, ops.prepareTrainedLinear({.values = i32({3, 4}), .rows = 1}));
  EXPECT_ERROR(Shape, ops.prepareTrainedLinear({.values = strided(f32({3, 4})), .rows = 1}));
  ops.prepareTrainedLinear({.values = f32({3, 4}), .rows = 1});
  EXPECT_ERROR(Shape, ops.prepareConv({.values = f32({3, 4, 3}), .precision = Precision::F32}));
  ops.prepareConv({.values = bf16({3, 4, 3, 3}), .precision = Precision::BF16});
}

DIT_CASE("checks/linear") {
  const NoWeight weight;
  Checker<LinearArgs> check(test, "linear", &Ops::linear,
                            {.x = bf16({2, 16, 8}),
                             .weight = &weight,
                             .bias = f32({12}),
                             .y = bf16({2, 16, 12}),
                             .epilogue = Epilogue::BiasResidual,
                             .gate = vector({5, 12}, 2),
                             .residual = bf16({2, 16, 12})});
  check.passes([](LinearArgs& a) { a.residual = f32({1, 16, 12}); });
  check.passes([](LinearArgs& a) { a.gate = {}; });
  check.passes([](LinearArgs& a) { a.y = strided(a.y); });
  check.passes([](LinearArgs& a) { a.gate.table = f32({5, 72}).columns(24, 12); });
  check.passes([](LinearArgs& a) { a.y = f32({2, 16, 12}), a.residual = f32({2, 16, 12}); });
  check.passes([](LinearArgs& a) { a.kept = bf16({2, 16, 12}); });
  check.refuses({"kept must be BF16"}, [](LinearArgs& a) { a.kept = f32({2, 16, 12}); });
  check.refuses({"kept would be y itself"}, [](LinearArgs& a) {
    a = {a.x, a.weight, a.bias, a.y};
    a.kept = a.y;
  });
  check.refuses({"x", "[R, M, K]", "[16, 8]"}, [](LinearArgs& a) { a.x = bf16({16, 8}); });
  check.refuses({"x must be contiguous"}, [](LinearArgs& a) { a.x = strided(a.x); });
  check.refuses({"weight is missing"}, [](LinearArgs& a) { a.weight = nullptr; });
  check.refuses({"bias is missing"}, [](LinearArgs& a) { a.bias = {}; });
  check.refuses({"bias", "F32 [12]", "F32 [11]"}, [](LinearArgs& a) { a.bias = f32({11}); });
  check.refuses({"y", "[2, 16, 12]", "[2, 15, 12]"}, [](LinearArgs& a) {
    a.y = bf16({2, 15, 12});
  });
  check.refuses({"y", "F32", "I32"}, [](LinearArgs& a) { a.y = i32({2, 16, 12}); });
  check.refuses({"y", "[R, M, N]"}, [](LinearArgs& a) { a.y = bf16({32, 12}); });
  check.refuses({"gate", "[E, 12]"}, [](LinearArgs& a) { a.gate.table = f32({12}); });
  check.refuses({"gate", "12"}, [](LinearArgs& a) { a.gate.table = f32({5, 11}); });
  check.refuses({"index", "I32 [2]"}, [](LinearArgs& a) { a.gate.index = i32({3}); });
  check.refuses({"residual is missing"}, [](LinearArgs& a) { a.residual = {}; });
  check.refuses({"residual", "BF16"}, [](LinearArgs& a) { a.residual = f32({2, 16, 12}); });
  check.refuses({"residual", "absent"}, [](LinearArgs& a) {
    a.epilogue = Epilogue::Bias;
    a.gate = {};
  });
  check.refuses({"gate", "absent"}, [](LinearArgs& a) {
    a.epilogue = Epilogue::BiasGelu;
    a.residual = {};
  });
}

DIT_CASE("checks/layerNormModulate") {
  using Args = LayerNormModulateArgs;
  Checker<Args> check(test, "layerNormModulate", &Ops::layerNormModulate,
                      {.x = f32({2, 16, 8}),
                       .shift = vector({3, 8}, 2),
                       .scale = vector({3, 8}, 2),
                       .y = bf16({2, 16, 8})});
  check.passes([](Args& a) { a.shift.table = f32({3, 48}).columns(8, 8); });
  check.refuses({"x is missing"}, [](Args& a) { a.x = {}; });
  check.refuses({"x", "not empty", "[2, 0, 8]"}, [](Args& a) { a.x = f32({2, 0, 8}); });
  check.refuses({"shift is missing"}, [](Args& a) { a.shift = {}; });
  check.refuses({"scale", "[3, 8]", "[3, 9]"}, [](Args& a) { a.scale.table = f32({3, 9}); });
  check.refuses({"scale", "F32"}, [](Args& a) { a.scale.table = bf16({3, 8}); });
  check.refuses({"rows of shift overlap"}, [](Args& a) { a.shift.table.rowStride = 7; });
  check.refuses({"y must be F32 or BF16 [2, 16, 8], got BF16 [2, 16, 9]"}, [](Args& a) {
    a.y = bf16({2, 16, 9});
  });
}

DIT_CASE("checks/attention") {
  using Args = AttentionArgs;
  Checker<Args> check(test, "attention", &Ops::attention,
                      {.qkv = bf16({2, 16, 72}), .y = bf16({2, 16, 24}), .heads = 2});
  check.refuses({"3 * 5 * d", "[2, 16, 72]"}, [](Args& a) { a.heads = 5; });
  check.refuses({"3 * 0 * d"}, [](Args& a) { a.heads = 0; });
  check.refuses({"y must be BF16", "got F32"}, [](Args& a) { a.y = f32({2, 16, 24}); });
  check.refuses({"y", "[2, 16, 24]", "[2, 16, 72]"}, [](Args& a) { a.y = bf16({2, 16, 72}); });
  check.passes([](Args& a) { a.logSumExp = f32({2, 2, 16}); });
  check.refuses({"logSumExp", "[2, 2, 16]", "[2, 16, 2]"}, [](Args& a) {
    a.logSumExp = f32({2, 16, 2});
  });
  check.refuses({"qkv must be contiguous", "72", "80"}, [](Args& a) { a.qkv = strided(a.qkv); });
}

DIT_CASE("checks/embeddings") {
  Checker<SiluArgs> silu(test, "silu", &Ops::silu, {.x = f32({3, 5}), .y = bf16({3, 5})});
  silu.refuses({"y", "[3, 5]", "[15]"}, [](SiluArgs& a) { a.y = bf16({15}); });
  silu.refuses({"x must be F32"}, [](SiluArgs& a) { a.x = bf16({3, 5}); });

  using Time = TimestepEmbeddingArgs;
  Checker<Time> time(test, "timestepEmbedding", &Ops::timestepEmbedding,
                     {.t = f32({3}), .y = f32({3, 256})});
  time.refuses({"[3, 256]", "[3, 128]"}, [](Time& a) { a.y = f32({3, 128}); });
  time.refuses({"t must be F32 [E]"}, [](Time& a) { a.t = i32({3}); });

  using Condition = ConditionEmbeddingArgs;
  Checker<Condition> condition(test, "conditionEmbedding", &Ops::conditionEmbedding,
                               {.t = f32({2, 8}),
                                .table = f32({11, 8}),
                                .label = i32({2}),
                                .vectors = f32({2, 8}),
                                .y = f32({2, 8})});
  condition.passes([](Condition& a) { a.vectors = {}; });
  condition.refuses({"table", "[11, 8]", "[11, 9]"}, [](Condition& a) { a.table = f32({11, 9}); });
  condition.refuses({"label", "I32 [2]"}, [](Condition& a) { a.label = f32({2}); });
  condition.refuses({"vectors", "[2, 8]"}, [](Condition& a) { a.vectors = f32({1, 8}); });
  condition.refuses({"y", "[2, 8]"}, [](Condition& a) { a.y = f32({2, 7}); });
}

DIT_CASE("checks/patches") {
  using Patchify = PatchifyArgs;
  Checker<Patchify> patchify(
      test, "patchify", &Ops::patchify,
      {.x = f32({2, 4, 8, 6}), .lane = i32({3}), .patch = 2, .y = bf16({3, 12, 16})});
  patchify.refuses({"multiples of the patch 4"}, [](Patchify& a) { a.patch = 4; });
  patchify.refuses({"patch 0"}, [](Patchify& a) { a.patch = 0; });
  patchify.refuses({"y", "[3, 12, 16]"}, [](Patchify& a) { a.y = bf16({2, 12, 16}); });
  patchify.refuses({"lane", "I32 [R]"}, [](Patchify& a) { a.lane = f32({3}); });

  using Unpatchify = UnpatchifyArgs;
  Checker<Unpatchify> unpatchify(test, "unpatchify", &Ops::unpatchify,
                                 {.x = bf16({3, 12, 16}), .patch = 2, .y = f32({3, 4, 8, 6})});
  unpatchify.refuses({"x", "[3, 12, 16]", "[3, 12, 15]"}, [](Unpatchify& a) {
    a.x = bf16({3, 12, 15});
  });
  unpatchify.refuses({"y must be F32"}, [](Unpatchify& a) { a.y = bf16({3, 4, 8, 6}); });
  unpatchify.refuses({"patch 4"}, [](Unpatchify& a) { a.patch = 4; });
}

DIT_CASE("checks/sampling") {
  Checker<GuideArgs> guide(test, "guide", &Ops::guide,
                           {.model = f32({4, 8, 3, 3}),
                            .cond = i32({2}),
                            .uncond = i32({2}),
                            .scale = f32({2}),
                            .channels = 3,
                            .y = f32({2, 8, 3, 3})});
  guide.refuses({"channels must be 0 to 8, got 9"}, [](GuideArgs& a) { a.channels = 9; });
  guide.refuses({"uncond", "[2]"}, [](GuideArgs& a) { a.uncond = i32({3}); });
  guide.refuses({"scale", "F32"}, [](GuideArgs& a) { a.scale = i32({2}); });
  guide.refuses({"y", "[2, 8, 3, 3]"}, [](GuideArgs& a) { a.y = f32({2, 4, 3, 3}); });

  using Solver = SolverUpdateArgs;
  const int64_t bytes = sizeof(SolverStep);
  Checker<Solver> solver(test, "solverUpdate", &Ops::solverUpdate,
                         {.model = f32({4, 8, 3, 3}),
                          .steps = fake(DType::U8, {2, bytes}),
                          .x = f32({2, 4, 3, 3}),
                          .history = f32({2, kSolverHistory, 4, 3, 3}),
                          .noise = f32({2, 4, 3, 3})});
  solver.passes([](Solver& a) { a.noise = {}; });
  solver.passes([](Solver& a) { a.model = f32({1, 4, 3, 3}); });
  solver.refuses({"4 or 8 channels", "[4, 6, 3, 3]"}, [](Solver& a) {
    a.model = f32({4, 6, 3, 3});
  });
  solver.refuses({"model", "[4, 8, 3, 3]"}, [](Solver& a) { a.model = f32({4, 8, 3, 4}); });
  solver.refuses({"steps", "U8"}, [=](Solver& a) { a.steps = fake(DType::U8, {2, bytes - 1}); });
  solver.refuses({"history"}, [](Solver& a) { a.history = f32({2, 1, 4, 3, 3}); });
  solver.refuses({"noise"}, [](Solver& a) { a.noise = f32({1, 4, 3, 3}); });

  Checker<NoiseArgs> noise(test, "noise", &Ops::noise, {.y = f32({5, 3})});
  noise.refuses({"y must be F32"}, [](NoiseArgs& a) { a.y = bf16({5, 3}); });
  noise.refuses({"y must be contiguous"}, [](NoiseArgs& a) { a.y = strided(a.y); });
}

DIT_CASE("checks/images") {
  const NoWeight weight;
  Checker<Conv2dArgs> conv(test, "conv2d", &Ops::conv2d,
                           {.x = bf16({2, 8, 8, 3}),
                            .weight = &weight,
                            .bias = f32({5}),
                            .residual = bf16({2, 8, 8, 5}),
                            .y = bf16({2, 8, 8, 5})});
  conv.passes([](Conv2dArgs& a) { a.residual = {}; });
  conv.refuses({"weight is missing"}, [](Conv2dArgs& a) { a.weight = nullptr; });
  conv.refuses({"2 images"}, [](Conv2dArgs& a) { a.y = bf16({1, 8, 8, 5}); });
  conv.refuses({"y must be BF16"}, [](Conv2dArgs& a) { a.y = f32({2, 8, 8, 5}); });
  conv.refuses({"bias", "[5]"}, [](Conv2dArgs& a) { a.bias = f32({4}); });
  conv.refuses({"residual", "[2, 8, 8, 5]"}, [](Conv2dArgs& a) {
    a.residual = bf16({2, 8, 8, 4});
  });
  conv.refuses({"stride must be positive"}, [](Conv2dArgs& a) { a.stride = 0; });
  conv.refuses({"padding", "left -1"}, [](Conv2dArgs& a) { a.padLeft = -1; });

  Checker<GroupNormArgs> norm(test, "groupNorm", &Ops::groupNorm,
                              {.x = bf16({2, 8, 8, 12}),
                               .gamma = f32({12}),
                               .beta = f32({12}),
                               .groups = 4,
                               .y = bf16({2, 8, 8, 12})});
  norm.refuses({"multiple of 5 groups"}, [](GroupNormArgs& a) { a.groups = 5; });
  norm.refuses({"gamma", "[12]"}, [](GroupNormArgs& a) { a.gamma = f32({4}); });
  norm.refuses({"beta is missing"}, [](GroupNormArgs& a) { a.beta = {}; });
  norm.refuses({"y must be BF16"}, [](GroupNormArgs& a) { a.y = f32({2, 8, 8, 12}); });

  using Last = ToChannelsLastArgs;
  Checker<Last> last(test, "toChannelsLast", &Ops::toChannelsLast,
                     {.x = f32({2, 3, 5, 7}), .y = bf16({2, 5, 7, 3})});
  last.refuses({"y", "[2, 5, 7, 3]"}, [](Last& a) { a.y = bf16({2, 3, 5, 7}); });
  using First = ToChannelsFirstArgs;
  Checker<First> first(test, "toChannelsFirst", &Ops::toChannelsFirst,
                       {.x = bf16({2, 5, 7, 3}), .y = f32({2, 3, 5, 7})});
  first.refuses({"y", "[2, 3, 5, 7]"}, [](First& a) { a.y = f32({2, 5, 7, 3}); });

  using Moments = SampleMomentsArgs;
  Checker<Moments> moments(
      test, "sampleMoments", &Ops::sampleMoments,
      {.moments = bf16({2, 5, 7, 8}), .noise = f32({2, 4, 5, 7}), .y = f32({2, 4, 5, 7})});
  moments.passes([](Moments& a) { a.noise = {}; });
  moments.refuses({"even number"}, [](Moments& a) { a.moments = bf16({2, 5, 7, 7}); });
  moments.refuses({"noise", "[2, 4, 5, 7]"}, [](Moments& a) { a.noise = f32({2, 8, 5, 7}); });
  moments.refuses({"y", "[2, 4, 5, 7]"}, [](Moments& a) { a.y = f32({2, 8, 5, 7}); });

  Checker<ToRgb8Args> rgb(test, "toRgb8", &Ops::toRgb8,
                          {.x = bf16({2, 5, 7, 3}), .y = fake(DType::U8, {2, 5, 7, 3})});
  rgb.refuses({"y must be U8"}, [](ToRgb8Args& a) { a.y = f32({2, 5, 7, 3}); });
  rgb.refuses({"x must be F32 or BF16"}, [](ToRgb8Args& a) { a.x = i32({2, 5, 7, 3}); });
}

DIT_CASE("checks/linearBackward") {
  using Args = LinearBackwardArgs;
  const NoWeight weight;
  Checker<Args> check(test, "linearBackward", &Ops::linearBackward,
                      {.x = bf16({2, 16, 8}),
                       .weight = &weight,
                       .dY = bf16({2, 16, 12}),
                       .preActivation = bf16({2, 16, 8}),
                       .dX = bf16({2, 16, 8}),
                       .dWeight = f32({12, 8}),
                       .dBias = f32({12})});
  const auto plain = [](Args& a) { a.preActivation = {}, a.dX = f32({2, 16, 8}); };
  check.passes(plain);
  check.passes([](Args& a) { a.preActivation = a.dX = {}, a.weight = nullptr; });
  check.passes([=](Args& a) { plain(a), a.addToDx = true; });
  check.refuses({"x", "[R, M, K]", "[16, 8]"}, [](Args& a) { a.x = bf16({16, 8}); });
  check.refuses({"dY must be BF16", "F32"}, [](Args& a) { a.dY = f32({2, 16, 12}); });
  check.refuses({"dY", "[2, 16, 12]", "[2, 15, 12]"}, [](Args& a) { a.dY = bf16({2, 15, 12}); });
  check.refuses({"dY must be contiguous"}, [](Args& a) { a.dY = strided(a.dY); });
  check.refuses({"preActivation", "[2, 16, 8]", "[2, 16, 9]"}, [](Args& a) {
    a.preActivation = bf16({2, 16, 9});
  });
  check.refuses({"dX is missing"}, [](Args& a) { a.dX = {}; });
  check.refuses({"dX must be BF16", "F32"}, [](Args& a) { a.dX = f32({2, 16, 8}); });
  check.refuses({"dX", "[2, 16, 8]", "[2, 16, 12]"}, [=](Args& a) {
    plain(a), a.dX = f32({2, 16, 12});
  });
  check.refuses({"weight is missing"}, [](Args& a) { a.weight = nullptr; });
  const std::string added = "only an F32 dX without preActivation can be added to";
  check.refuses({added}, [](Args& a) { a.addToDx = true; });
  check.refuses({added}, [=](Args& a) { plain(a), a.addToDx = true, a.dX = bf16({2, 16, 8}); });
  check.refuses({added}, [=](Args& a) { plain(a), a.addToDx = true, a.dX = {}; });
  check.refuses({"dWeight", "F32 [12, 8]", "[8, 12]"}, [](Args& a) { a.dWeight = f32({8, 12}); });
  check.refuses({"dBias", "F32 [12]", "BF16"}, [](Args& a) { a.dBias = bf16({12}); });
}

DIT_CASE("checks/gateBackward") {
  using Args = GateBackwardArgs;
  Checker<Args> check(test, "gateBackward", &Ops::gateBackward,
                      {.dY = f32({2, 16, 12}),
                       .branch = bf16({2, 16, 12}),
                       .gate = vector({5, 12}, 2),
                       .dBranch = bf16({2, 16, 12}),
                       .dGate = f32({2, 12})});
  check.passes([](Args& a) { a.dGate = f32({2, 72}).columns(24, 12); });
  check.refuses({"dY must be F32 [R, M, N]"}, [](Args& a) { a.dY = bf16({2, 16, 12}); });
  check.refuses({"branch", "[2, 16, 12]", "[2, 16, 11]"}, [](Args& a) {
    a.branch = bf16({2, 16, 11});
  });
  check.refuses({"gate is missing"}, [](Args& a) { a.gate = {}; });
  check.refuses({"gate", "[5, 12]", "[5, 13]"}, [](Args& a) { a.gate.table = f32({5, 13}); });
  check.refuses({"index", "I32 [2]"}, [](Args& a) { a.gate.index = i32({3}); });
  check.refuses({"dBranch must be BF16"}, [](Args& a) { a.dBranch = f32({2, 16, 12}); });
  check.refuses({"dGate", "[2, 12]", "[5, 12]"}, [](Args& a) { a.dGate = f32({5, 12}); });
  check.refuses({"rows of dGate overlap"}, [](Args& a) { a.dGate.rowStride = 11; });
}

DIT_CASE("checks/layerNormModulateBackward") {
  using Args = LayerNormModulateBackwardArgs;
  Checker<Args> check(test, "layerNormModulateBackward", &Ops::layerNormModulateBackward,
                      {.x = f32({2, 16, 8}),
                       .scale = vector({3, 8}, 2),
                       .dY = bf16({2, 16, 8}),
                       .dResidual = f32({2, 16, 8}),
                       .dX = f32({2, 16, 8}),
                       .dShift = f32({2, 8}),
                       .dScale = f32({2, 8})});
  check.passes([](Args& a) { a.dResidual = {}; });
  check.passes([](Args& a) { a.dShift = a.dScale = f32({2, 48}).columns(8, 8); });
  check.refuses({"x must be F32 [R, T, C]"}, [](Args& a) { a.x = bf16({2, 16, 8}); });
  check.refuses({"scale", "[3, 8]", "[3, 9]"}, [](Args& a) { a.scale.table = f32({3, 9}); });
  check.refuses({"dY", "[2, 16, 8]", "[2, 8, 16]"}, [](Args& a) { a.dY = bf16({2, 8, 16}); });
  check.refuses({"dResidual must be F32"}, [](Args& a) { a.dResidual = bf16({2, 16, 8}); });
  check.refuses({"dX must be F32"}, [](Args& a) { a.dX = bf16({2, 16, 8}); });
  check.refuses({"dX must be contiguous"}, [](Args& a) { a.dX = strided(a.dX); });
  check.refuses({"dShift", "[2, 8]", "[3, 8]"}, [](Args& a) { a.dShift = f32({3, 8}); });
  check.refuses({"dScale is missing"}, [](Args& a) { a.dScale = {}; });
}

DIT_CASE("checks/attentionBackward") {
  using Args = AttentionBackwardArgs;
  Checker<Args> check(test, "attentionBackward", &Ops::attentionBackward,
                      {.qkv = bf16({2, 16, 72}),
                       .y = bf16({2, 16, 24}),
                       .logSumExp = f32({2, 2, 16}),
                       .dY = bf16({2, 16, 24}),
                       .heads = 2,
                       .dQkv = bf16({2, 16, 72})});
  check.refuses({"qkv", "[R, T, 3C]"}, [](Args& a) { a.qkv = bf16({32, 72}); });
  check.refuses({"3 * 5 * d", "[2, 16, 72]"}, [](Args& a) { a.heads = 5; });
  check.refuses({"3 * 0 * d"}, [](Args& a) { a.heads = 0; });
  check.refuses({"y must be BF16", "got F32"}, [](Args& a) { a.y = f32({2, 16, 24}); });
  check.refuses({"logSumExp", "[2, 2, 16]", "[2, 16, 2]"}, [](Args& a) {
    a.logSumExp = f32({2, 16, 2});
  });
  check.refuses({"dY", "[2, 16, 24]", "[2, 16, 72]"}, [](Args& a) { a.dY = a.qkv; });
  check.refuses({"dQkv must be BF16", "got F32"}, [](Args& a) { a.dQkv = f32({2, 16, 72}); });
}

DIT_CASE("checks/embeddingsBackward") {
  using Silu = SiluBackwardArgs;
  Checker<Silu> silu(test, "siluBackward", &Ops::siluBackward,
                     {.x = f32({3, 5}), .dY = f32({3, 5}), .dX = f32({3, 5})});
  silu.refuses({"x is missing"}, [](Silu& a) { a.x = {}; });
  silu.refuses({"x must be F32"}, [](Silu& a) { a.x = bf16({3, 5}); });
  silu.refuses({"dY", "[3, 5]", "[15]"}, [](Silu& a) { a.dY = f32({15}); });
  silu.refuses({"dX must be F32"}, [](Silu& a) { a.dX = bf16({3, 5}); });

  using Condition = ConditionEmbeddingBackwardArgs;
  Checker<Condition> condition(test, "conditionEmbeddingBackward", &Ops::conditionEmbeddingBackward,
                               {.dY = f32({2, 8}), .label = i32({2}), .dTable = f32({11, 8})});
  condition.refuses({"dY", "[E, C]"}, [](Condition& a) { a.dY = f32({16}); });
  condition.refuses({"label", "I32 [2]", "F32"}, [](Condition& a) { a.label = f32({2}); });
  condition.refuses({"dTable", "[11, 8]", "[11, 9]"}, [](Condition& a) {
    a.dTable = f32({11, 9});
  });
  condition.refuses({"dTable", "[rows, C]"}, [](Condition& a) { a.dTable = f32({88}); });

  using Patches = UnpatchifyBackwardArgs;
  Checker<Patches> patches(test, "unpatchifyBackward", &Ops::unpatchifyBackward,
                           {.dY = f32({3, 4, 8, 6}), .patch = 2, .dX = bf16({3, 12, 16})});
  patches.refuses({"dY must be F32"}, [](Patches& a) { a.dY = bf16({3, 4, 8, 6}); });
  patches.refuses({"multiples of the patch 4"}, [](Patches& a) { a.patch = 4; });
  patches.refuses({"patch 0"}, [](Patches& a) { a.patch = 0; });
  patches.refuses({"dX", "[3, 12, 16]", "[3, 16, 12]"}, [](Patches& a) {
    a.dX = bf16({3, 16, 12});
  });
}

DIT_CASE("checks/training-data") {
  using Draw = DrawLatentsArgs;
  Checker<Draw> draw(test, "drawLatents", &Ops::drawLatents,
                     {.mean = f32({2, 4, 3, 5}),
                      .deviation = f32({2, 4, 3, 5}),
                      .z = f32({2, 4, 3, 5}),
                      .y = f32({2, 4, 3, 5})});
  draw.refuses({"mean", "[R, C, H, W]"}, [](Draw& a) { a.mean = f32({2, 60}); });
  draw.refuses({"deviation", "[2, 4, 3, 5]"}, [](Draw& a) { a.deviation = f32({1, 4, 3, 5}); });
  draw.refuses({"z is missing"}, [](Draw& a) { a.z = {}; });
  draw.refuses({"y must be F32"}, [](Draw& a) { a.y = bf16({2, 4, 3, 5}); });

  using Sample = QSampleArgs;
  Checker<Sample> sample(test, "qSample", &Ops::qSample,
                         {.x0 = f32({2, 4, 3, 5}),
                          .z = f32({2, 4, 3, 5}),
                          .signal = f32({2}),
                          .noise = f32({2}),
                          .y = f32({2, 4, 3, 5})});
  sample.refuses({"x0 must be F32"}, [](Sample& a) { a.x0 = bf16({2, 4, 3, 5}); });
  sample.refuses({"z", "[2, 4, 3, 5]"}, [](Sample& a) { a.z = f32({2, 4, 5, 3}); });
  sample.refuses({"signal", "[2]", "[3]"}, [](Sample& a) { a.signal = f32({3}); });
  sample.refuses({"noise", "F32 [2]"}, [](Sample& a) { a.noise = i32({2}); });
  sample.refuses({"y is missing"}, [](Sample& a) { a.y = {}; });

  Checker<CastArgs> cast(test, "cast", &Ops::cast, {.x = f32({3, 5}), .y = bf16({3, 5})});
  cast.passes([](CastArgs& a) { a.y = f32({3, 5}); });
  cast.refuses({"x must be F32"}, [](CastArgs& a) { a.x = bf16({3, 5}); });
  cast.refuses({"y must be F32 or BF16 [3, 5]"}, [](CastArgs& a) { a.y = bf16({5, 3}); });
  cast.refuses({"y must be contiguous"}, [](CastArgs& a) { a.y = strided(a.y); });
}

DIT_CASE("checks/loss") {
  constexpr int64_t kBytes = sizeof(LossStep);
  Checker<LossArgs> loss(test, "loss", &Ops::loss,
                         {.model = f32({2, 8, 3, 5}),
                          .noise = f32({2, 4, 3, 5}),
                          .x0 = f32({2, 4, 3, 5}),
                          .steps = fake(DType::U8, {2, kBytes}),
                          .dModel = f32({2, 8, 3, 5}),
                          .terms = f32({2, 2})});
  loss.passes([](LossArgs& a) { a.bound = false; });
  loss.passes([](LossArgs& a) { a.bound = false, a.model = a.dModel = f32({2, 4, 3, 5}); });
  loss.refuses({"noise", "[R, C, H, W]"}, [](LossArgs& a) { a.noise = f32({2, 60}); });
  loss.refuses({"4 or 8 channels", "[2, 6, 3, 5]"}, [](LossArgs& a) {
    a.model = f32({2, 6, 3, 5});
  });
  loss.refuses({"the bound needs a learned variance", "[2, 4, 3, 5]"}, [](LossArgs& a) {
    a.model = a.dModel = f32({2, 4, 3, 5});
  });
  loss.refuses({"model", "[2, 8, 3, 5]", "[1, 8, 3, 5]"}, [](LossArgs& a) {
    a.model = f32({1, 8, 3, 5});
  });
  loss.refuses({"x0", "[2, 4, 3, 5]"}, [](LossArgs& a) { a.x0 = f32({2, 8, 3, 5}); });
  loss.refuses({"steps must be U8"}, [](LossArgs& a) {
    a.steps = fake(DType::U8, {2, kBytes - 1});
  });
  loss.refuses({"dModel must be F32"}, [](LossArgs& a) { a.dModel = bf16({2, 8, 3, 5}); });
  loss.refuses({"terms", "[2, 2]"}, [](LossArgs& a) { a.terms = f32({2}); });
}

DIT_CASE("checks/optimiser") {
  constexpr int64_t kN = 4 * kParamGranule;
  const auto f64 = [](Shape shape) { return fake(DType::F64, shape); };
  using Norm = SquaredNormArgs;
  Checker<Norm> norm(test, "squaredNorm", &Ops::squaredNorm, {.x = f32({7}), .out = f64({1})});
  norm.refuses({"x", "[n]"}, [](Norm& a) { a.x = f32({7, 1}); });
  norm.refuses({"x must be F32"}, [=](Norm& a) { a.x = f64({7}); });
  norm.refuses({"out must be F64 [1]"}, [](Norm& a) { a.out = f32({1}); });

  Checker<AdamWArgs> adamW(test, "adamW", &Ops::adamW,
                           {.param = f32({kN}),
                            .grad = f32({kN}),
                            .m = f32({kN}),
                            .v = f32({kN}),
                            .ema = f32({kN}),
                            .low = bf16({kN}),
                            .decays = fake(DType::U8, {4})});
  adamW.passes([](AdamWArgs& a) { a.low = {}; });
  adamW.refuses({"param must be F32"}, [](AdamWArgs& a) { a.param = bf16({kN}); });
  adamW.refuses({"multiple of 64, got 257"}, [](AdamWArgs& a) { a.param = f32({kN + 1}); });
  adamW.refuses({"grad", "[256]", "[255]"}, [](AdamWArgs& a) { a.grad = f32({kN - 1}); });
  adamW.refuses({"m must be F32"}, [](AdamWArgs& a) { a.m = bf16({kN}); });
  adamW.refuses({"v is missing"}, [](AdamWArgs& a) { a.v = {}; });
  adamW.refuses({"ema", "[256]"}, [](AdamWArgs& a) { a.ema = f32({2, kN / 2}); });
  adamW.refuses({"low must be BF16"}, [](AdamWArgs& a) { a.low = f32({kN}); });
  adamW.refuses({"decays", "U8 [4]"}, [](AdamWArgs& a) { a.decays = fake(DType::U8, {kN}); });
  adamW.refuses({"steps count from 1, got 0"}, [](AdamWArgs& a) { a.step = 0; });
}

}  // namespace
}  // namespace dit::test
