#include "ops/ops.h"

#include "ops/checks.h"

namespace dit {

const char* precisionName(Precision precision) {
  switch (precision) {
    case Precision::F32:
      return "fp32";
    case Precision::TF32:
      return "tf32";
    case Precision::BF16:
      return "bf16";
  }
  return "?";
}

std::unique_ptr<PreparedWeight> Ops::prepareLinear(const LinearWeightArgs& args) {
  const Checks checks("prepareLinear");
  checks.rank("values", args.values, kAct, 2, "[N, K]");
  checks.that(args.rows > 0, "rows must be positive, got ", args.rows);
  return backend_->prepareLinear(args);
}

std::unique_ptr<PreparedWeight> Ops::prepareTrainedLinear(const TrainedLinearArgs& args) {
  const Checks checks("prepareTrainedLinear");
  checks.rank("values", args.values, kAct, 2, "[N, K]");
  checks.that(args.rows > 0, "rows must be positive, got ", args.rows);
  return backend_->prepareTrainedLinear(args);
}

std::unique_ptr<PreparedWeight> Ops::prepareConv(const ConvWeightArgs& args) {
  const Checks checks("prepareConv");
  checks.rank("values", args.values, kAct, 4, "[Co, Ci, kh, kw]");
  return backend_->prepareConv(args);
}

// The backend checks K, and N, against the weight, which only it can read.
void Ops::linear(const LinearArgs& args) {
  const Checks checks("linear");
  checks.rank("x", args.x, kAct, 3, "[R, M, K]");
  checks.that(args.weight != nullptr, "weight is missing");
  checks.present("y", args.y);
  checks.that(args.y.shape.rank() == 3, "y must be [R, M, N], got ", args.y.shape);
  const int64_t rows = args.x.shape[0], m = args.x.shape[1], n = args.y.shape[2];
  checks.that(n > 0, "y must not be empty, got ", args.y.shape);
  checks.shape("y", args.y, kF32 | bit(args.x.dtype), {rows, m, n}, Rows::Strided);
  checks.shape("bias", args.bias, kF32, {n});
  if (args.epilogue != Epilogue::BiasResidual) {
    checks.absent("gate", args.gate.table, "without a residual");
    checks.absent("residual", args.residual, "where the epilogue adds none");
  } else {
    if (args.gate.table) checks.rowVector("gate", args.gate, rows, n);
    checks.present("residual", args.residual);
    const bool shared = args.residual.shape == Shape{1, m, n} && args.residual.dtype == DType::F32;
    if (!shared) {
      checks.shape("residual", args.residual, bit(args.y.dtype), {rows, m, n}, Rows::Strided);
    }
  }
  if (args.kept) {
    checks.that(args.epilogue != Epilogue::Bias, "kept would be y itself");
    checks.shape("kept", args.kept, bit(args.x.dtype), {rows, m, n});
  }
  backend_->linear(args);
}

void Ops::layerNormModulate(const LayerNormModulateArgs& args) {
  const Checks checks("layerNormModulate");
  checks.rank("x", args.x, kAct, 3, "[R, T, C]");
  const int64_t rows = args.x.shape[0], c = args.x.shape[2];
  checks.rowVector("shift", args.shift, rows, c);
  checks.rowVector("scale", args.scale, rows, c);
  checks.shape("y", args.y, kAct, args.x.shape);
  backend_->layerNormModulate(args);
}

void Ops::attention(const AttentionArgs& args) {
  const Checks checks("attention");
  checks.rank("qkv", args.qkv, kAct, 3, "[R, T, 3C]");
  const int64_t c3 = args.qkv.shape[2];
  checks.that(args.heads > 0 && c3 % (3 * args.heads) == 0, "qkv must have 3 * ", args.heads,
              " * d channels, got ", args.qkv.shape);
  checks.shape("y", args.y, bit(args.qkv.dtype), {args.qkv.shape[0], args.qkv.shape[1], c3 / 3});
  if (args.logSumExp) {
    checks.shape("logSumExp", args.logSumExp, kF32,
                 {args.qkv.shape[0], args.heads, args.qkv.shape[1]});
  }
  backend_->attention(args);
}

void Ops::silu(const SiluArgs& args) {
  const Checks checks("silu");
  checks.present("x", args.x);
  checks.shape("x", args.x, kF32, args.x.shape);
  checks.shape("y", args.y, kAct, args.x.shape);
  backend_->silu(args);
}

void Ops::timestepEmbedding(const TimestepEmbeddingArgs& args) {
  const Checks checks("timestepEmbedding");
  checks.rank("t", args.t, kF32, 1, "[E]");
  checks.shape("y", args.y, kAct, {args.t.shape[0], 256});
  backend_->timestepEmbedding(args);
}

void Ops::conditionEmbedding(const ConditionEmbeddingArgs& args) {
  const Checks checks("conditionEmbedding");
  checks.rank("t", args.t, kF32, 2, "[E, C]");
  checks.rank("table", args.table, kF32, 2, "[rows, C]");
  checks.shape("table", args.table, kF32, {args.table.shape[0], args.t.shape[1]});
  checks.shape("label", args.label, kI32, {args.t.shape[0]});
  if (args.vectors) checks.shape("vectors", args.vectors, kF32, args.t.shape);
  checks.shape("y", args.y, kF32, args.t.shape);
  backend_->conditionEmbedding(args);
}

void Ops::patchify(const PatchifyArgs& args) {
  const Checks checks("patchify");
  checks.rank("x", args.x, kF32, 4, "[L, C, H, W]");
  checks.rank("lane", args.lane, kI32, 1, "[R]");
  const int64_t c = args.x.shape[1], h = args.x.shape[2], w = args.x.shape[3], p = args.patch;
  checks.that(p > 0 && h % p == 0 && w % p == 0, "height and width must be multiples of the patch ",
              p, ", got ", args.x.shape);
  checks.shape("y", args.y, kAct, {args.lane.shape[0], (h / p) * (w / p), c * p * p});
  backend_->patchify(args);
}

void Ops::unpatchify(const UnpatchifyArgs& args) {
  const Checks checks("unpatchify");
  checks.rank("y", args.y, kF32, 4, "[R, C, H, W]");
  const int64_t c = args.y.shape[1], h = args.y.shape[2], w = args.y.shape[3], p = args.patch;
  checks.that(p > 0 && h % p == 0 && w % p == 0, "height and width must be multiples of the patch ",
              p, ", got ", args.y.shape);
  checks.shape("x", args.x, kAct, {args.y.shape[0], (h / p) * (w / p), p * p * c});
  backend_->unpatchify(args);
}

void Ops::guide(const GuideArgs& args) {
  const Checks checks("guide");
  checks.rank("model", args.model, kF32, 4, "[R, Co, H, W]");
  checks.rank("cond", args.cond, kI32, 1, "[L]");
  const int64_t lanes = args.cond.shape[0], channels = args.model.shape[1];
  checks.shape("uncond", args.uncond, kI32, {lanes});
  checks.shape("scale", args.scale, kF32, {lanes});
  checks.that(args.channels >= 0 && args.channels <= channels, "channels must be 0 to ", channels,
              ", got ", args.channels);
  checks.shape("y", args.y, kF32, {lanes, channels, args.model.shape[2], args.model.shape[3]});
  backend_->guide(args);
}

void Ops::solverUpdate(const SolverUpdateArgs& args) {
  const Checks checks("solverUpdate");
  checks.rank("x", args.x, kF32, 4, "[L, C, H, W]");
  const int64_t lanes = args.x.shape[0], c = args.x.shape[1], h = args.x.shape[2],
                w = args.x.shape[3];
  checks.rank("model", args.model, kF32, 4, "[R, Co, H, W]");
  const int64_t co = args.model.shape[1];
  checks.that(co == c || co == 2 * c, "model must have ", c, " or ", 2 * c, " channels, got ",
              args.model.shape);
  checks.shape("model", args.model, kF32, {args.model.shape[0], co, h, w});
  checks.rank("steps", args.steps, kU8, 2, "[n, sizeof(SolverStep)]");
  checks.shape("steps", args.steps, kU8,
               {args.steps.shape[0], static_cast<int64_t>(sizeof(SolverStep))});
  checks.shape("history", args.history, kF32, {lanes, kSolverHistory, c, h, w});
  if (args.noise) checks.shape("noise", args.noise, kF32, args.x.shape);
  backend_->solverUpdate(args);
}

void Ops::noise(const NoiseArgs& args) {
  const Checks checks("noise");
  checks.present("y", args.y);
  checks.shape("y", args.y, kF32, args.y.shape);
  backend_->noise(args);
}

// The backend checks the channels and the size of y against the weight, which only it can read.
void Ops::conv2d(const Conv2dArgs& args) {
  const Checks checks("conv2d");
  checks.rank("x", args.x, kAct, 4, "[N, H, W, Ci]");
  checks.that(args.weight != nullptr, "weight is missing");
  checks.rank("y", args.y, bit(args.x.dtype), 4, "[N, Ho, Wo, Co]");
  checks.that(args.y.shape[0] == args.x.shape[0], "y must have ", args.x.shape[0], " images, got ",
              args.y.shape);
  checks.shape("bias", args.bias, kF32, {args.y.shape[3]});
  if (args.residual) checks.shape("residual", args.residual, bit(args.y.dtype), args.y.shape);
  checks.that(args.stride > 0, "stride must be positive, got ", args.stride);
  checks.that(args.padTop >= 0 && args.padLeft >= 0 && args.padBottom >= 0 && args.padRight >= 0,
              "padding cannot be negative, got top ", args.padTop, ", left ", args.padLeft,
              ", bottom ", args.padBottom, ", right ", args.padRight);
  backend_->conv2d(args);
}

void Ops::groupNorm(const GroupNormArgs& args) {
  const Checks checks("groupNorm");
  checks.rank("x", args.x, kAct, 4, "[N, H, W, C]");
  const int64_t c = args.x.shape[3];
  checks.that(args.groups > 0 && c % args.groups == 0, "channels must be a multiple of ",
              args.groups, " groups, got ", args.x.shape);
  checks.shape("gamma", args.gamma, kF32, {c});
  checks.shape("beta", args.beta, kF32, {c});
  checks.shape("y", args.y, bit(args.x.dtype), args.x.shape);
  backend_->groupNorm(args);
}

void Ops::toChannelsLast(const ToChannelsLastArgs& args) {
  const Checks checks("toChannelsLast");
  checks.rank("x", args.x, kF32, 4, "[N, C, H, W]");
  const Shape& x = args.x.shape;
  checks.shape("y", args.y, kAct, {x[0], x[2], x[3], x[1]});
  backend_->toChannelsLast(args);
}

void Ops::toChannelsFirst(const ToChannelsFirstArgs& args) {
  const Checks checks("toChannelsFirst");
  checks.rank("x", args.x, kAct, 4, "[N, H, W, C]");
  const Shape& x = args.x.shape;
  checks.shape("y", args.y, kF32, {x[0], x[3], x[1], x[2]});
  backend_->toChannelsFirst(args);
}

void Ops::sampleMoments(const SampleMomentsArgs& args) {
  const Checks checks("sampleMoments");
  checks.rank("moments", args.moments, kAct, 4, "[N, H, W, 2C]");
  const Shape& m = args.moments.shape;
  checks.that(m[3] % 2 == 0, "moments must have an even number of channels, got ", m);
  const Shape latent{m[0], m[3] / 2, m[1], m[2]};
  if (args.noise) checks.shape("noise", args.noise, kF32, latent);
  checks.shape("y", args.y, kF32, latent);
  backend_->sampleMoments(args);
}

void Ops::toRgb8(const ToRgb8Args& args) {
  const Checks checks("toRgb8");
  checks.present("x", args.x);
  checks.shape("x", args.x, kAct, args.x.shape);
  checks.shape("y", args.y, kU8, args.x.shape);
  backend_->toRgb8(args);
}

}  // namespace dit
