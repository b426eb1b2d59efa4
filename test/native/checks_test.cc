// The shape checks of the operations of the forward path.
#include <string>

#include "checker.h"

namespace dit::test {
namespace {

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

}  // namespace
}  // namespace dit::test
