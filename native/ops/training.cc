// The shape checks of the operations of training.
#include "ops/training.h"

#include "ops/checks.h"
#include "ops/ops.h"

namespace dit {

// The backend checks N and K against the weight, which only it can read.
void Ops::linearBackward(const LinearBackwardArgs& args) {
  const Checks checks("linearBackward");
  checks.rank("x", args.x, kAct, 3, "[R, M, K]");
  checks.rank("dY", args.dY, bit(args.x.dtype), 3, "[R, M, N]");
  const int64_t rows = args.x.shape[0], m = args.x.shape[1], k = args.x.shape[2];
  const int64_t n = args.dY.shape[2];
  checks.shape("dY", args.dY, bit(args.x.dtype), {rows, m, n});
  if (args.preActivation) {
    checks.shape("preActivation", args.preActivation, bit(args.x.dtype), args.x.shape);
    checks.shape("dX", args.dX, bit(args.x.dtype), args.x.shape);
  }
  if (args.dX) {
    checks.that(args.weight != nullptr, "weight is missing");
    checks.shape("dX", args.dX, kF32 | bit(args.x.dtype), args.x.shape);
  }
  checks.that(!args.addToDx || (args.dX && args.dX.dtype == DType::F32 && !args.preActivation),
              "only an F32 dX without preActivation can be added to");
  checks.shape("dWeight", args.dWeight, kF32, {n, k});
  checks.shape("dBias", args.dBias, kF32, {n});
  backend_->linearBackward(args);
}

void Ops::gateBackward(const GateBackwardArgs& args) {
  const Checks checks("gateBackward");
  checks.rank("dY", args.dY, kF32, 3, "[R, M, N]");
  const int64_t rows = args.dY.shape[0], n = args.dY.shape[2];
  checks.shape("branch", args.branch, kAct, args.dY.shape);
  checks.rowVector("gate", args.gate, rows, n);
  checks.shape("dBranch", args.dBranch, bit(args.branch.dtype), args.dY.shape);
  checks.shape("dGate", args.dGate, kF32, {rows, n}, Rows::Strided);
  backend_->gateBackward(args);
}

void Ops::layerNormModulateBackward(const LayerNormModulateBackwardArgs& args) {
  const Checks checks("layerNormModulateBackward");
  checks.rank("x", args.x, kF32, 3, "[R, T, C]");
  const int64_t rows = args.x.shape[0], c = args.x.shape[2];
  checks.rowVector("scale", args.scale, rows, c);
  checks.shape("dY", args.dY, kAct, args.x.shape);
  if (args.dResidual) checks.shape("dResidual", args.dResidual, kF32, args.x.shape);
  checks.shape("dX", args.dX, kF32, args.x.shape);
  checks.shape("dShift", args.dShift, kF32, {rows, c}, Rows::Strided);
  checks.shape("dScale", args.dScale, kF32, {rows, c}, Rows::Strided);
  backend_->layerNormModulateBackward(args);
}

void Ops::attentionBackward(const AttentionBackwardArgs& args) {
  const Checks checks("attentionBackward");
  checks.rank("qkv", args.qkv, kAct, 3, "[R, T, 3C]");
  const int64_t rows = args.qkv.shape[0], tokens = args.qkv.shape[1], c3 = args.qkv.shape[2];
  checks.that(args.heads > 0 && c3 % (3 * args.heads) == 0, "qkv must have 3 * ", args.heads,
              " * d channels, got ", args.qkv.shape);
  checks.shape("y", args.y, bit(args.qkv.dtype), {rows, tokens, c3 / 3});
  checks.shape("logSumExp", args.logSumExp, kF32, {rows, args.heads, tokens});
  checks.shape("dY", args.dY, bit(args.qkv.dtype), args.y.shape);
  checks.shape("dQkv", args.dQkv, bit(args.qkv.dtype), args.qkv.shape);
  backend_->attentionBackward(args);
}

void Ops::siluBackward(const SiluBackwardArgs& args) {
  const Checks checks("siluBackward");
  checks.present("x", args.x);
  checks.shape("x", args.x, kF32, args.x.shape);
  checks.shape("dY", args.dY, kF32, args.x.shape);
  checks.shape("dX", args.dX, kF32, args.x.shape);
  backend_->siluBackward(args);
}

void Ops::conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs& args) {
  const Checks checks("conditionEmbeddingBackward");
  checks.rank("dY", args.dY, kF32, 2, "[E, C]");
  checks.shape("label", args.label, kI32, {args.dY.shape[0]});
  checks.rank("dTable", args.dTable, kF32, 2, "[rows, C]");
  checks.shape("dTable", args.dTable, kF32, {args.dTable.shape[0], args.dY.shape[1]});
  backend_->conditionEmbeddingBackward(args);
}

void Ops::unpatchifyBackward(const UnpatchifyBackwardArgs& args) {
  const Checks checks("unpatchifyBackward");
  checks.rank("dY", args.dY, kF32, 4, "[R, C, H, W]");
  const int64_t c = args.dY.shape[1], h = args.dY.shape[2], w = args.dY.shape[3], p = args.patch;
  checks.that(p > 0 && h % p == 0 && w % p == 0, "height and width must be multiples of the patch ",
              p, ", got ", args.dY.shape);
  checks.shape("dX", args.dX, kAct, {args.dY.shape[0], (h / p) * (w / p), p * p * c});
  backend_->unpatchifyBackward(args);
}

void Ops::drawLatents(const DrawLatentsArgs& args) {
  const Checks checks("drawLatents");
  checks.rank("mean", args.mean, kF32, 4, "[R, C, H, W]");
  checks.shape("deviation", args.deviation, kF32, args.mean.shape);
  checks.shape("z", args.z, kF32, args.mean.shape);
  checks.shape("y", args.y, kF32, args.mean.shape);
  backend_->drawLatents(args);
}

void Ops::qSample(const QSampleArgs& args) {
  const Checks checks("qSample");
  checks.rank("x0", args.x0, kF32, 4, "[R, C, H, W]");
  checks.shape("z", args.z, kF32, args.x0.shape);
  checks.shape("signal", args.signal, kF32, {args.x0.shape[0]});
  checks.shape("noise", args.noise, kF32, {args.x0.shape[0]});
  checks.shape("y", args.y, kF32, args.x0.shape);
  backend_->qSample(args);
}

void Ops::loss(const LossArgs& args) {
  const Checks checks("loss");
  checks.rank("noise", args.noise, kF32, 4, "[R, C, H, W]");
  const int64_t rows = args.noise.shape[0], c = args.noise.shape[1];
  checks.rank("model", args.model, kF32, 4, "[R, Co, H, W]");
  const int64_t co = args.model.shape[1];
  checks.that(co == c || co == 2 * c, "model must have ", c, " or ", 2 * c, " channels, got ",
              args.model.shape);
  checks.that(!args.bound || co == 2 * c, "the bound needs a learned variance: model [R, ", 2 * c,
              ", H, W], got ", args.model.shape);
  checks.shape("model", args.model, kF32, {rows, co, args.noise.shape[2], args.noise.shape[3]});
  checks.shape("x0", args.x0, kF32, args.noise.shape);
  checks.shape("steps", args.steps, kU8, {rows, static_cast<int64_t>(sizeof(LossStep))});
  checks.shape("dModel", args.dModel, kF32, args.model.shape);
  checks.shape("terms", args.terms, kF32, {rows, 2});
  backend_->loss(args);
}

void Ops::squaredNorm(const SquaredNormArgs& args) {
  const Checks checks("squaredNorm");
  checks.rank("x", args.x, kF32, 1, "[n]");
  checks.shape("out", args.out, kF64, {1});
  backend_->squaredNorm(args);
}

void Ops::adamW(const AdamWArgs& args) {
  const Checks checks("adamW");
  checks.rank("param", args.param, kF32, 1, "[n]");
  const int64_t n = args.param.shape[0];
  checks.that(n % kParamGranule == 0, "n must be a multiple of ", kParamGranule, ", got ", n);
  checks.shape("grad", args.grad, kF32, {n});
  checks.shape("m", args.m, kF32, {n});
  checks.shape("v", args.v, kF32, {n});
  checks.shape("ema", args.ema, kF32, {n});
  if (args.low) checks.shape("low", args.low, bit(DType::BF16), {n});
  checks.shape("decays", args.decays, kU8, {n / kParamGranule});
  checks.that(args.step >= 1, "steps count from 1, got ", args.step);
  backend_->adamW(args);
}

void Ops::cast(const CastArgs& args) {
  const Checks checks("cast");
  checks.present("x", args.x);
  checks.shape("x", args.x, kF32, args.x.shape);
  checks.shape("y", args.y, kAct, args.x.shape);
  backend_->cast(args);
}

}  // namespace dit
