// The shape checks of the operations of training.
#include <string>

#include "checker.h"

namespace dit::test {
namespace {

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
