#pragma once

#include <cstdint>

#include "core/tensor.h"

// The operations of the forward path: each names its formula and its shapes. `training.h` has those
// of training, `ops.h` the whole list.
//
// R   rows of a round: evaluations of the model, one image each
// L   lanes: images in the making (a guided lane has two rows)
// T   tokens of an image, C channels of a token, E entries of a table
// act the type of activations: F32, or BF16 when the model runs in bf16
//
// Two promises hold for every operation and backend: the same inputs give the same bits, and what
// is computed for one row does not depend, bit for bit, on the other rows or on how many there are.

namespace dit {

enum class Precision : uint8_t { F32, TF32, BF16 };

const char* precisionName(Precision precision);

// A weight as the backend keeps it: packed, converted, transposed, as it likes. Made by
// Backend::prepareLinear, prepareTrainedLinear or prepareConv of the same backend that uses it.
class PreparedWeight {
 public:
  virtual ~PreparedWeight() = default;
  // Bytes of device memory held.
  virtual size_t bytes() const = 0;
  // The matrix that a trained weight refers to has new values. Must not throw (cuda_api.h).
  virtual void changed() {}
};

// One vector per row, picked from a table: row r uses table[index[r], :].
struct RowVector {
  Tensor table;  // [E, N] F32; may be a slice of columns
  Tensor index;  // [R] I32
};

struct LinearWeightArgs {
  Tensor values;        // [N, K] F32 or BF16, host memory, contiguous (y = x W^T + b)
  int64_t rows;         // M of the products it will be used in
  Precision precision;  // of those products
};

struct ConvWeightArgs {
  Tensor values;  // [Co, Ci, kh, kw] F32 or BF16, host memory, contiguous
  Precision precision;
  bool upsample = false;  // conv2d will be asked to upsample: a 3 x 3 kernel is made ready for it
};

// R products of M rows each. Each product stands alone, so its bits do not depend on R.
//   Bias           y = x W^T + bias
//   BiasGelu       y = gelu(x W^T + bias), gelu(v) = v/2 (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3)))
//   BiasResidual   y = residual + gate * (x W^T + bias); without a gate, gate = 1
enum class Epilogue : uint8_t { Bias, BiasGelu, BiasResidual };

struct LinearArgs {
  Tensor x;  // [R, M, K] act
  const PreparedWeight* weight = nullptr;
  Tensor bias;  // [N] F32
  Tensor y;     // [R, M, N] act or F32; may be a slice of columns
  Epilogue epilogue = Epilogue::Bias;
  RowVector gate = {};   // N values a row
  Tensor residual = {};  // [R, M, N] of y's type (may be y itself), or [1, M, N] F32 for all rows
  Tensor kept = {};      // [R, M, N] act: x W^T + bias, for the derivative; may be absent
};

// y = (x - mean) / sqrt(variance + eps) * (1 + scale) + shift, statistics over C in fp32.
struct LayerNormModulateArgs {
  Tensor x;  // [R, T, C] F32 or BF16
  RowVector shift, scale;
  Tensor y;  // [R, T, C] act
  float eps = 1e-6f;
};

// softmax(q k^T / sqrt(d)) v per row and head, d = C / heads; softmax in fp32, no T x T matrix of
// the whole round in memory. Channels of qkv: [q | k | v], each head-major.
struct AttentionArgs {
  Tensor qkv;  // [R, T, 3C] act
  Tensor y;    // [R, T, C] act
  int64_t heads = 1;
  // [R, heads, T] F32: log of the sum of exp(q k / sqrt(d)) over k, for the derivative; may be
  // absent
  Tensor logSumExp = {};
  bool tf32 = false;  // F32 operands of the products may be rounded to TF32
};

// y[i] = silu(x[i]) = x / (1 + exp(-x))
struct SiluArgs {
  Tensor x;  // F32
  Tensor y;  // act, the same shape
};

// y[e] = [cos(t f) | sin(t f)], f_i = exp(-ln(10000) i / 128), 256 wide (DiT, after GLIDE).
struct TimestepEmbeddingArgs {
  Tensor t;  // [E] F32, may be fractional
  Tensor y;  // [E, 256] act
};

// y[e] = t[e] + (label[e] < 0 ? vectors[e] : table[label[e]])
struct ConditionEmbeddingArgs {
  Tensor t;             // [E, C] F32
  Tensor table;         // [rows, C] F32
  Tensor label;         // [E] I32
  Tensor vectors = {};  // [E, C] F32; needed only where a label is negative
  Tensor y;             // [E, C] F32
};

// Token (i, j) of row r holds the patch at rows i p .., columns j p .. of lane[r], channels
// outermost: y[r, i (W/p) + j, (c p + a) p + b] = x[lane[r], c, i p + a, j p + b].
struct PatchifyArgs {
  Tensor x;     // [L, C, H, W] F32
  Tensor lane;  // [R] I32
  int64_t patch = 1;
  Tensor y;  // [R, T, C p p] act
};

// The inverse with channels innermost, as DiT's last layer has them:
// y[r, c, i p + a, j p + b] = x[r, i (W/p) + j, (a p + b) C + c].
struct UnpatchifyArgs {
  Tensor x;  // [R, T, p p C] act or F32
  int64_t patch = 1;
  Tensor y;  // [R, C, H, W] F32
};

// Classifier-free guidance (Ho & Salimans 2022) on the first `channels` channels:
// y[l] = m[uncond] + scale (m[cond] - m[uncond]), the other channels are m[cond]'s.
// A lane whose uncond is negative takes m[cond] as it is.
struct GuideArgs {
  Tensor model;   // [R, Co, H, W] F32
  Tensor cond;    // [L] I32, rows
  Tensor uncond;  // [L] I32, rows or -1
  Tensor scale;   // [L] F32
  int64_t channels = 0;
  Tensor y;  // [L, Co, H, W] F32
};

// One step of any sampler, for one lane. With m the guided output of the model:
//   x0  = clamp(x0FromX x + x0FromModel m, -clip, clip)
//   eps = epsFromX x + epsFromX0 x0 + epsFromModel m
//   x'  = xFromX x + xFromX0 x0 + xFromEps eps + sum_h xFromHistory[h] history[h] + s z
// z is standard normal noise and s = noise, or, where the model learned its variance (the second
// half of its channels, v), s = noise exp((f logVarianceMax + (1 - f) logVarianceMin) / 2) with
// f = (v + 1) / 2 (Nichol & Dhariwal 2021, equation 15). x0 is then kept as history[historySlot].
// History and noise whose coefficient is 0 are not read.
constexpr int kSolverHistory = 2;

struct SolverStep {
  int32_t lane;                // of x and history; -1: an idle step, which does nothing
  int32_t condRow, uncondRow;  // of the model's output; uncondRow is -1 without guidance
  int32_t guidanceChannels;
  float guidance;
  float x0FromX, x0FromModel, clip;  // clip: infinity for none
  float epsFromX, epsFromX0, epsFromModel;
  float xFromX, xFromX0, xFromEps;
  float xFromHistory[kSolverHistory];
  int32_t historySlot;  // 0 .. kSolverHistory - 1
  float noise;          // 0 for none
  int32_t learnedVariance;
  float logVarianceMin, logVarianceMax;
  uint32_t noiseIndex;  // the step's number: with the seed, the key of z
  uint64_t seed;
};

struct SolverUpdateArgs {
  Tensor model;       // [R, Co, H, W] F32, Co = C or 2 C
  Tensor steps;       // [n] SolverStep as bytes: U8 [n, sizeof(SolverStep)]
  Tensor x;           // [L, C, H, W] F32, updated in place
  Tensor history;     // [L, kSolverHistory, C, H, W] F32
  Tensor noise = {};  // [L, C, H, W] F32: z itself, instead of Philox's; may be absent
};

// y = standard normal numbers: Philox key `seed`, stream and index as in core/rng.h, element i
// from block i / 4.
struct NoiseArgs {
  uint64_t seed = 0;
  uint32_t stream = 0;  // NoiseStream
  uint32_t index = 0;
  Tensor y;  // any shape, F32
};

// y = convolution of x, zero padding, plus bias, plus residual. With `upsample` x is first doubled
// in height and width (nearest neighbour).
struct Conv2dArgs {
  Tensor x;  // [N, H, W, Ci] act
  const PreparedWeight* weight = nullptr;
  Tensor bias;           // [Co] F32
  Tensor residual = {};  // [N, Ho, Wo, Co] act; may be absent, may be y itself
  Tensor y;              // [N, Ho, Wo, Co] act
  int64_t stride = 1;
  int64_t padTop = 0, padLeft = 0, padBottom = 0, padRight = 0;
  bool upsample = false;
};

// y = (x - mean) / sqrt(variance + eps) * gamma + beta per image and group of channels, statistics
// over (H, W, C / groups) in fp32; then SiLU if asked for.
struct GroupNormArgs {
  Tensor x;            // [N, H, W, C] act
  Tensor gamma, beta;  // [C] F32
  int64_t groups = 32;
  float eps = 1e-6f;
  bool silu = true;
  Tensor y;  // [N, H, W, C] act; may be x itself
};

// y[n, h, w, c] = x[n, c, h, w] * scale + shift
struct ToChannelsLastArgs {
  Tensor x;  // [N, C, H, W] F32
  float scale = 1, shift = 0;
  Tensor y;  // [N, H, W, C] act
};

// y[n, c, h, w] = x[n, h, w, c]
struct ToChannelsFirstArgs {
  Tensor x;  // [N, H, W, C] act or F32
  Tensor y;  // [N, C, H, W] F32
};

// The VAE's posterior: with [mean | logvar] the channels of an image, logvar clamped to [-30, 20],
// y = (mean + exp(logvar / 2) noise - shift) * scale. Without noise, the mode.
struct SampleMomentsArgs {
  Tensor moments;     // [N, H, W, 2C] act or F32
  Tensor noise = {};  // [N, C, H, W] F32; may be absent
  float scale = 1, shift = 0;
  Tensor y;  // [N, C, H, W] F32
};

// y = trunc(clamp(127.5 x + 128, 0, 255))
struct ToRgb8Args {
  Tensor x;  // any shape, act or F32
  Tensor y;  // the same shape, U8
};

}  // namespace dit
