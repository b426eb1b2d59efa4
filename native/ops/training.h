#pragma once

#include <cstdint>

#include "ops/arguments.h"

// The operations that only training has: derivatives, loss, optimiser. `arguments.h` has the others
// and the conventions.
//
// Gradients are called dX. The gradient of an activation is written (=), that of a parameter is
// added to what is there (+=), so that micro-batches accumulate. Sums run in a fixed order: the
// same inputs give the same bits. What a row adds to a parameter's gradient may depend on the rows
// beside it, in rounding only.

namespace dit {

// A trained weight is a matrix in the backend's memory that the optimiser changes in place; the
// handle refers to it, and `PreparedWeight::changed()` says that it has new values. Products with a
// trained weight may take all rows at once.
struct TrainedLinearArgs {
  Tensor values;  // [N, K] F32, or BF16 in that precision, device memory, dense
  int64_t rows;   // R M of the products it will be used in
  Precision precision = Precision::F32;  // of those products; BF16 where the values are
};

// The derivative of y = x W^T + b. Products take the operands in act, sums are F32.
//   dX = dY W    dWeight += dY^T x    dBias += sum of dY over R and M
// With `preActivation` x was gelu(preActivation) and was not kept: it is made again in x, and dX
// is the gradient with respect to preActivation, (dY W) * gelu'(preActivation).
struct LinearBackwardArgs {
  Tensor x;  // [R, M, K] act; with preActivation, written
  // Of prepareTrainedLinear; needed for dX, and says the precision of both products. Without one
  // that of x's type.
  const PreparedWeight* weight = nullptr;
  Tensor dY;                  // [R, M, N] act
  Tensor preActivation = {};  // [R, M, K] act; may be absent
  Tensor dX = {};             // [R, M, K] act or F32; absent where nobody needs it
  bool addToDx = false;       // dX += instead of =; F32 and without preActivation only
  Tensor dWeight;             // [N, K] F32
  Tensor dBias;               // [N] F32
};

// The derivative of y = residual + gate * branch with respect to branch and gate (that of residual
// is dY itself).
//   dBranch = gate * dY    dGate[r] = sum of dY * branch over M
struct GateBackwardArgs {
  Tensor dY;      // [R, M, N] F32
  Tensor branch;  // [R, M, N] act: what linear() kept
  RowVector gate;
  Tensor dBranch;  // [R, M, N] act
  Tensor dGate;    // [R, N] F32; may be a slice of columns
};

// The derivative of layerNormModulate. The norm stands on a branch, so the gradient of the stream
// that it leaves is added:
//   dX = dResidual + J^T dY    dShift[r] = sum of dY over T    dScale[r] = sum of dY * x_hat over T
struct LayerNormModulateBackwardArgs {
  Tensor x;  // [R, T, C] F32
  RowVector scale;
  Tensor dY;              // [R, T, C] act
  Tensor dResidual = {};  // [R, T, C] F32; may be dX itself; absent: 0
  Tensor dX;              // [R, T, C] F32
  Tensor dShift, dScale;  // [R, C] F32; may be slices of columns
  float eps = 1e-6f;
};

// The derivative of attention: with P = softmax(q k^T / sqrt(d)) made again from logSumExp,
//   dV = P^T dY    dS = P * (dY V^T - rowsum(dY * y))    dQ = dS K / sqrt(d)    dK = dS^T Q /
//   sqrt(d)
// (Dao et al. 2022, appendix B.) No T x T matrix of the whole round in memory.
struct AttentionBackwardArgs {
  Tensor qkv;        // [R, T, 3C] act
  Tensor y;          // [R, T, C] act: the forward's result
  Tensor logSumExp;  // [R, heads, T] F32: the forward's
  Tensor dY;         // [R, T, C] act
  int64_t heads = 1;
  Tensor dQkv;        // [R, T, 3C] act
  bool tf32 = false;  // as in AttentionArgs
};

// dX = dY * silu'(x), silu'(x) = s (1 + x (1 - s)), s = 1 / (1 + exp(-x))
struct SiluBackwardArgs {
  Tensor x;   // F32
  Tensor dY;  // F32, the same shape
  Tensor dX;  // F32, the same shape; may be dY itself
};

// dTable[label[e]] += dY[e], e ascending. (The gradient of t is dY itself.) Labels are 0 .. rows -
// 1: the CPU refuses others, a GPU, whose labels the host does not see, leaves them out.
struct ConditionEmbeddingBackwardArgs {
  Tensor dY;      // [E, C] F32
  Tensor label;   // [E] I32
  Tensor dTable;  // [rows, C] F32
};

// dX[r, i (W/p) + j, (a p + b) C + c] = dY[r, c, i p + a, j p + b]
struct UnpatchifyBackwardArgs {
  Tensor dY;  // [R, C, H, W] F32
  int64_t patch = 1;
  Tensor dX;  // [R, T, p p C] act
};

// y = (mean + deviation * z - shift) * scale, element by element: draws from the stored posterior
// of a VAE, in the model's scale.
struct DrawLatentsArgs {
  Tensor mean, deviation, z;  // [R, C, H, W] F32
  float scale = 1, shift = 0;
  Tensor y;  // [R, C, H, W] F32; may be mean itself
};

// y[r] = signal[r] x0[r] + noise[r] z[r]: the forward diffusion q(x_t | x_0) (Ho et al. 2020,
// equation 4), with signal = sqrt(abar_t) and noise = sqrt(1 - abar_t).
struct QSampleArgs {
  Tensor x0, z;          // [R, C, H, W] F32
  Tensor signal, noise;  // [R] F32
  Tensor y;              // [R, C, H, W] F32
};

// The training loss of one row and its gradient, with m the model's output: eps, its first C
// channels, and, where the variance is learned, v, the others.
//   mse = mean over C, H, W of (noise - eps)^2
//   vb  = mean over C, H, W of the variational bound's term at t, in bits (Nichol & Dhariwal 2021):
//         KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), at t = 0 -log p(x_0 | x_1), discretised
// p has the log variance f logVarianceMax + (1 - f) logVarianceMin, f = (v + 1) / 2, and its mean
// misses that of q by meanFromEps (noise - eps). The bound sees eps as a constant, so it trains v
// only. dModel is the gradient of scale * sum over rows of (mse + vb).
struct LossStep {
  float meanFromEps;
  float logVarianceMin, logVarianceMax;
  int32_t decoder;  // 1 at t = 0: the discretised likelihood of 8-bit data in [-1, 1]
};

struct LossArgs {
  Tensor model;       // [R, Co, H, W] F32, Co = C or 2 C
  Tensor noise;       // [R, C, H, W] F32
  Tensor x0;          // [R, C, H, W] F32; read where `decoder` is set
  Tensor steps;       // [R] LossStep as bytes: U8 [R, sizeof(LossStep)]
  bool bound = true;  // false: mse alone; dModel of v is 0 then
  float scale = 1;
  Tensor dModel;  // as model
  Tensor terms;   // [R, 2] F32: mse, vb (0 without bound)
};

// out[0] = sum of x^2 in F64: not finite exactly when a number of x is not.
struct SquaredNormArgs {
  Tensor x;    // [n] F32
  Tensor out;  // [1] F64
};

// One AdamW step (Loshchilov & Hutter 2019, as PyTorch's AdamW has it), the EMA and the copy in the
// precision of the products, in one pass over memory. With g = gradScale * grad, step = 1, 2, ...:
//   param *= 1 - lr weightDecay             where decays
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//   param -= lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//   ema = emaDecay ema + (1 - emaDecay) param,  low = bf16(param),  grad = 0
// Parameters lie in granules of kParamGranule numbers; decays says which of these decay.
constexpr int64_t kParamGranule = 64;

struct AdamWArgs {
  Tensor param, grad, m, v, ema;  // [n] F32, n a multiple of kParamGranule
  Tensor low = {};                // [n] BF16; absent in fp32
  Tensor decays;                  // [n / kParamGranule] U8, 0 or 1
  float lr = 0, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weightDecay = 0, emaDecay = 0.9999f;
  float gradScale = 1;
  int64_t step = 1;
};

// y = x in another type.
struct CastArgs {
  Tensor x;  // F32
  Tensor y;  // act, the same shape
};

}  // namespace dit
