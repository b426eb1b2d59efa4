// layerNormModulateBackward and gateBackward: one pass over the activations each.
//
// With x_hat = (x - mean) / sqrt(variance + eps) and g = dY (1 + scale), for every token
//   dX = dResidual + (g - mean(g) - x_hat mean(g x_hat)) / sqrt(variance + eps),
// and over the T tokens of a row dShift = sum of dY, dScale = sum of dY x_hat. Likewise
//   dBranch = gate dY, dGate = sum of dY branch.
//
// Sums over tokens go by parts of kPartTokens tokens, which leave theirs in scratch memory; a
// second kernel adds the parts of a row in order, in double: what rounding is left is that of the
// few tokens that one thread adds. What is a part depends on T alone, so a row's bits depend on
// nothing but the row. layerNormModulateBackward leaves its parts in double, too: bf16 gradients
// add up without rounding for a while, which a part in float would end. Writing and reading the
// parts is 1/7 of the traffic of all else.
//
// layerNormModulateBackward: a warp holds a token's x and dY in registers, as layerNormModulate,
// and beside them the sums of its tokens: 4 x 36 numbers a lane at C = 1152. gateBackward needs
// nothing across channels: a thread has four channels of a part's tokens.
#include "cuda/dispatch.h"
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"

namespace dit::cuda {

namespace {

constexpr int kPartTokens = 16;

// ---------------------------------------------------------------- sums over the parts of a row

// Where one of the summed vectors goes: row r at to + r * stride.
struct Sums {
  float* to;
  int64_t stride;
};

// parts [R, partsPerRow, vectors, n]; vector 0 goes to `first`, vector 1 to `second`.
template <typename Number>
__global__ void __launch_bounds__(kThreads)
    addPartsKernel(int64_t rows, int partsPerRow, int vectors, int n, const Number* parts,
                   Sums first, Sums second) {
  awaitPrevious();
  const int distance = vectors * n;
  forEach(rows * distance, [&](int64_t i) {
    const int64_t row = i / distance;
    const int at = static_cast<int>(i % distance);
    const Number* from = parts + row * partsPerRow * distance + at;
    double sum = 0;
    for (int part = 0; part < partsPerRow; part++) sum += from[int64_t{part} * distance];
    const Sums& sums = at < n ? first : second;
    sums.to[row * sums.stride + at % n] = static_cast<float>(sum);
  });
}

template <typename Number>
void addParts(const Context& context, int64_t rows, int64_t partsPerRow, const Number* parts,
              const Tensor& first, const Tensor& second = {}) {
  const int64_t n = first.shape[1], vectors = second ? 2 : 1;
  launch(context, addPartsKernel<Number>, gridFor(context, rows * vectors * n, kThreads), kThreads,
         0, rows, static_cast<int>(partsPerRow), static_cast<int>(vectors), static_cast<int>(n),
         parts, Sums{first.as<float>(), first.rowStride},
         Sums{second.as<float>(), second.rowStride});
}

// ---------------------------------------------------------------- layerNormModulateBackward

constexpr int kWarps = 4;
constexpr int kWarpThreads = kWarps * 32;
constexpr int kPlainThreads = 128;

template <typename Act>
struct NormBackward {
  const float* x;
  const Act* dY;
  const float* dResidual;  // may be null, may be dX
  float* dX;
  RowVectors scale;
  double* parts;  // [R, partsPerRow, 2, C]: sums of dY, then of dY x_hat
  int64_t partsPerRow, tokens;
  int c;
  float eps;
};

// The tokens of a block: [first, end) of its row.
struct Part {
  int64_t row, first, end;
  __device__ __forceinline__ Part(int64_t partsPerRow, int64_t tokens)
      : row(blockIdx.x / partsPerRow),
        first(blockIdx.x % partsPerRow * kPartTokens),
        end(min(first + kPartTokens, tokens)) {}
};

// kQuads * 128 >= C: a lane has channels own + 128 q .. + 3.
template <typename Act, int kQuads>
__global__ void __launch_bounds__(kWarpThreads) layerNormBackwardKernel(NormBackward<Act> at) {
  awaitPrevious();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int own = thread % 32 * 4, left = at.c - own;  // channels
  const Part part(at.partsPerRow, at.tokens);
  const float* scale = at.scale.of(part.row) + own;
  const float n = static_cast<float>(at.c);
  float shiftSums[kQuads][4] = {}, scaleSums[kQuads][4] = {};
  for (int64_t token = part.first + warp; token < part.end; token += kWarps) {
    const int64_t begin = (part.row * at.tokens + token) * at.c + own;
    float x[kQuads][4] = {}, g[kQuads][4] = {};
    float sum = 0;
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      if (q * 128 < left) {
        loadWide<4>(x[q], at.x + begin + q * 128);
        loadWide<4>(g[q], at.dY + begin + q * 128);
        sum += (x[q][0] + x[q][1]) + (x[q][2] + x[q][3]);
      }
    }
    const float mean = warpSum(sum) / n;
    float squares = 0;
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      if (q * 128 < left) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          x[q][j] -= mean;
          squares = fmaf(x[q][j], x[q][j], squares);
        }
      }
    }
    const float norm = 1.0f / sqrtf(warpSum(squares) / n + at.eps);
    float sumG = 0, sumGx = 0;
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      if (q * 128 < left) {
        float factor[4];
        loadWide<4>(factor, scale + q * 128);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          x[q][j] *= norm;
          shiftSums[q][j] += g[q][j];
          scaleSums[q][j] = fmaf(g[q][j], x[q][j], scaleSums[q][j]);
          g[q][j] *= 1.0f + factor[j];
          sumG += g[q][j];
          sumGx = fmaf(g[q][j], x[q][j], sumGx);
        }
      }
    }
    const float meanG = warpSum(sumG) / n, meanGx = warpSum(sumGx) / n;
    // g, no longer needed, makes room for the residual: all of it is loaded before the first store,
    // which might be to the same memory.
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        x[q][j] = fmaf(-x[q][j], meanGx, g[q][j] - meanG);
        g[q][j] = 0;
      }
    }
    if (at.dResidual) {
#pragma unroll
      for (int q = 0; q < kQuads; q++) {
        if (q * 128 < left) loadWide<4>(g[q], at.dResidual + begin + q * 128);
      }
    }
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      if (q * 128 < left) {
#pragma unroll
        for (int j = 0; j < 4; j++) x[q][j] = fmaf(x[q][j], norm, g[q][j]);
        storeWide<4>(at.dX + begin + q * 128, x[q]);
      }
    }
  }

  // [kWarps][2][C]
  float* shared = reinterpret_cast<float*>(sharedMemory());
  float* sums = shared + warp * 2 * at.c + own;
#pragma unroll
  for (int q = 0; q < kQuads; q++) {
    if (q * 128 < left) {
      storeWide<4>(sums + q * 128, shiftSums[q]);
      storeWide<4>(sums + at.c + q * 128, scaleSums[q]);
    }
  }
  __syncthreads();
  double* to = at.parts + int64_t{blockIdx.x} * 2 * at.c;
  for (int i = thread; i < 2 * at.c; i += kWarpThreads) {
    double total = 0;
    for (int w = 0; w < kWarps; w++) total += shared[w * 2 * at.c + i];
    to[i] = total;
  }
}

// Any C: the block has one token at a time and reads it again from the cache; the sums stand in
// the part's own memory, each channel's with the thread that has the channel.
template <typename Act>
__global__ void __launch_bounds__(kPlainThreads)
    layerNormBackwardPlainKernel(NormBackward<Act> at) {
  awaitPrevious();
  float* shared = reinterpret_cast<float*>(sharedMemory());
  const int thread = static_cast<int>(threadIdx.x);
  const Part part(at.partsPerRow, at.tokens);
  const float* scale = at.scale.of(part.row);
  const float n = static_cast<float>(at.c);
  double *shiftSums = at.parts + int64_t{blockIdx.x} * 2 * at.c, *scaleSums = shiftSums + at.c;
  for (int64_t token = part.first; token < part.end; token++) {
    const int64_t begin = (part.row * at.tokens + token) * at.c;
    const float* x = at.x + begin;
    const Act* dY = at.dY + begin;
    float sum = 0;
    for (int i = thread; i < at.c; i += kPlainThreads) sum += x[i];
    const float mean = blockSum(sum, shared) / n;
    float squares = 0;
    for (int i = thread; i < at.c; i += kPlainThreads) squares += (x[i] - mean) * (x[i] - mean);
    const float norm = 1.0f / sqrtf(blockSum(squares, shared) / n + at.eps);
    float sumG = 0, sumGx = 0;
    for (int i = thread; i < at.c; i += kPlainThreads) {
      const float gradient = toFloat(dY[i]), normal = (x[i] - mean) * norm;
      const float g = gradient * (1.0f + scale[i]);
      shiftSums[i] = (token == part.first ? 0 : shiftSums[i]) + gradient;
      scaleSums[i] = (token == part.first ? 0 : scaleSums[i]) + gradient * normal;
      sumG += g;
      sumGx += g * normal;
    }
    const float meanG = blockSum(sumG, shared) / n, meanGx = blockSum(sumGx, shared) / n;
    for (int i = thread; i < at.c; i += kPlainThreads) {
      const float g = toFloat(dY[i]) * (1.0f + scale[i]), normal = (x[i] - mean) * norm;
      const float residual = at.dResidual ? at.dResidual[begin + i] : 0.0f;
      at.dX[begin + i] = residual + (g - meanG - normal * meanGx) * norm;
    }
  }
}

template <typename Act, int kQuads>
void launchWarps(const Context& context, const NormBackward<Act>& at, int64_t rows) {
  const size_t shared = sizeof(float) * kWarps * 2 * static_cast<size_t>(at.c);
  launch(context, layerNormBackwardKernel<Act, kQuads>,
         static_cast<unsigned>(rows * at.partsPerRow), kWarpThreads, shared, at);
}

template <typename Act>
void runNorm(Context& context, const LayerNormModulateBackwardArgs& args) {
  const int64_t rows = args.x.shape[0], tokens = args.x.shape[1], c = args.x.shape[2];
  const int64_t partsPerRow = divideUp(tokens, kPartTokens);
  double* const parts = static_cast<double*>(
      context.scratch(static_cast<size_t>(rows * partsPerRow * 2 * c) * sizeof(double)));
  const NormBackward<Act> at{args.x.as<float>(),
                             args.dY.as<Act>(),
                             args.dResidual.as<float>(),
                             args.dX.as<float>(),
                             rowVectors(args.scale),
                             parts,
                             partsPerRow,
                             tokens,
                             static_cast<int>(c),
                             args.eps};
  const bool fours = byFours(args.x, args.dY, args.dResidual, args.dX, args.scale.table);
  if (fours && c <= 3 * 128) {
    launchWarps<Act, 3>(context, at, rows);
  } else if (fours && c <= 6 * 128) {
    launchWarps<Act, 6>(context, at, rows);
  } else if (fours && c <= 9 * 128) {
    launchWarps<Act, 9>(context, at, rows);
  } else {
    launch(context, layerNormBackwardPlainKernel<Act>, static_cast<unsigned>(rows * partsPerRow),
           kPlainThreads, kPlainThreads / 32 * sizeof(float), at);
  }
  addParts(context, rows, partsPerRow, parts, args.dShift, args.dScale);
}

// ---------------------------------------------------------------- gateBackward

template <typename Act>
struct Gate {
  const float* dY;
  const Act* branch;
  RowVectors gate;
  Act* dBranch;
  float* parts;  // [R, partsPerRow, N]
  int64_t partsPerRow, tokens;
  int n;
};

// A thread has kWide channels of one part.
template <typename Act, int kWide>
__global__ void __launch_bounds__(kThreads) gateBackwardKernel(int64_t work, Gate<Act> at) {
  awaitPrevious();
  constexpr int kTogether = 4;
  forEach(work, [&](int64_t piece) {
    const int columns = at.n / kWide;
    const int64_t part = piece / columns, row = part / at.partsPerRow;
    const int column = static_cast<int>(piece % columns) * kWide;
    const int64_t first = part % at.partsPerRow * kPartTokens;
    const int tokens = static_cast<int>(min(at.tokens - first, int64_t{kPartTokens}));
    const int64_t begin = (row * at.tokens + first) * at.n + column;
    float gate[kWide], sums[kWide] = {};
    loadWide<kWide>(gate, at.gate.of(row) + column);
    // kTogether tokens are loaded before the first of them is stored.
    for (int t = 0; t < tokens; t += kTogether) {
      float dY[kTogether][kWide] = {}, branch[kTogether][kWide] = {};
#pragma unroll
      for (int k = 0; k < kTogether; k++) {
        if (t + k < tokens) {
          loadWide<kWide>(dY[k], at.dY + begin + int64_t{t + k} * at.n);
          loadWide<kWide>(branch[k], at.branch + begin + int64_t{t + k} * at.n);
        }
      }
#pragma unroll
      for (int k = 0; k < kTogether; k++) {
#pragma unroll
        for (int j = 0; j < kWide; j++) {
          sums[j] = fmaf(dY[k][j], branch[k][j], sums[j]);
          dY[k][j] *= gate[j];
        }
        if (t + k < tokens) {
          storeWide<kWide>(at.dBranch + begin + int64_t{t + k} * at.n, dY[k]);
        }
      }
    }
    storeWide<kWide>(at.parts + part * at.n + column, sums);
  });
}

template <typename Act>
void runGate(Context& context, const GateBackwardArgs& args) {
  const int64_t rows = args.dY.shape[0], tokens = args.dY.shape[1], n = args.dY.shape[2];
  const int64_t partsPerRow = divideUp(tokens, kPartTokens), parts = rows * partsPerRow;
  const Gate<Act> at{
      args.dY.as<float>(),
      args.branch.as<Act>(),
      rowVectors(args.gate),
      args.dBranch.as<Act>(),
      static_cast<float*>(context.scratch(static_cast<size_t>(parts * n) * sizeof(float))),
      partsPerRow,
      tokens,
      static_cast<int>(n)};
  if (byFours(args.dY, args.branch, args.gate.table, args.dBranch)) {
    const int64_t work = parts * (n / 4);
    launch(context, gateBackwardKernel<Act, 4>, static_cast<unsigned>(divideUp(work, kThreads)),
           kThreads, 0, work, at);
  } else {
    const int64_t work = parts * n;
    launch(context, gateBackwardKernel<Act, 1>, static_cast<unsigned>(divideUp(work, kThreads)),
           kThreads, 0, work, at);
  }
  addParts(context, rows, partsPerRow, at.parts, args.dGate);
}

}  // namespace

void layerNormModulateBackward(Context& context, const LayerNormModulateBackwardArgs& args) {
  withType(args.dY.dtype, [&]<typename Act>(Act) { runNorm<Act>(context, args); });
}

void gateBackward(Context& context, const GateBackwardArgs& args) {
  withType(args.branch.dtype, [&]<typename Act>(Act) { runGate<Act>(context, args); });
}

}  // namespace dit::cuda
