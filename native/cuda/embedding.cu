// What stands before and behind the blocks: timestepEmbedding, conditionEmbedding, patchify,
// unpatchify, and their derivatives. Small tensors (a latent of 4 x 32 x 32 numbers, 256 or 1152
// numbers per entry): one thread per number written, which are written in order.
#include "cuda/dispatch.h"
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

// ---------------------------------------------------------------- timestepEmbedding

constexpr int kHalf = 128;

// cos or sin of any angle. Beyond 2^16 they would reduce it in local memory, though timesteps end
// at 1000: so it is reduced here, and the compiler is told that it was.
template <typename Function>
__device__ __forceinline__ float periodic(float angle, const Function& function) {
  constexpr float kLargest = 65536.0f;
  constexpr double kTurn = 6.283185307179586;
  if (fabsf(angle) > kLargest) {
    angle = static_cast<float>(angle - rint(angle / kTurn) * kTurn);
  }
  const float limited = fminf(fmaxf(angle, -kLargest), kLargest);  // never NaN
#ifdef __CUDA_ARCH__
  __builtin_assume(fabsf(limited) <= kLargest);
#endif
  return angle == angle ? function(limited) : angle;
}

// Rounded to float at each step, as the reference does it: near t = 999 the rounding of t f alone
// moves the result by 3e-5. So would each unit that expf may err by: f is rounded correctly.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    timestepEmbeddingKernel(int64_t work, const float* t, T* y) {
  awaitPrevious();
  constexpr float kLogMaxPeriod = 9.210340371976184f;  // ln 10000
  forEach(work, [&](int64_t i) {
    const int64_t entry = i / kHalf;
    const int at = static_cast<int>(i % kHalf);
    const float exponent = -kLogMaxPeriod * static_cast<float>(at) / kHalf;
    const float f = static_cast<float>(exp(static_cast<double>(exponent)));
    const float angle = t[entry] * f;
    y[entry * 2 * kHalf + at] = fromFloat<T>(periodic(angle, [](float x) { return cosf(x); }));
    y[entry * 2 * kHalf + kHalf + at] =
        fromFloat<T>(periodic(angle, [](float x) { return sinf(x); }));
  });
}

// ---------------------------------------------------------------- conditionEmbedding

struct Condition {
  const float *t, *table, *vectors;
  const int32_t* label;
  int64_t rows, c;
  float* y;
};

// A label beyond the table takes its last row.
__global__ void __launch_bounds__(kThreads) conditionEmbeddingKernel(int64_t work, Condition at) {
  awaitPrevious();
  forEach(work, [&](int64_t i) {
    const int64_t entry = i / at.c, label = at.label[entry];
    float vector = 0;
    if (label >= 0) {
      vector = at.table[min(label, at.rows - 1) * at.c + i % at.c];
    } else if (at.vectors) {
      vector = at.vectors[i];
    }
    at.y[i] = at.t[i] + vector;
  });
}

// A block per entry and 128 columns. That of the first entry with a label adds all of them, in
// order, to the label's row; the others have nothing to do. Every warp reads the labels by itself,
// 32 at a time.
constexpr int kColumns = 128;

__global__ void __launch_bounds__(kColumns)
    conditionEmbeddingBackwardKernel(int entries, int64_t rows, int64_t c, const float* dY,
                                     const int32_t* label, float* dTable) {
  awaitPrevious();
  const int64_t tiles = (c + kColumns - 1) / kColumns;
  const int own = static_cast<int>(blockIdx.x / tiles), lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t column = blockIdx.x % tiles * kColumns + threadIdx.x;
  const int64_t row = label[own];
  if (row < 0 || row >= rows) return;
  float sum = 0;
  for (int first = 0; first < entries; first += 32) {
    const bool same = first + lane < entries && label[first + lane] == row;
    unsigned matches = __ballot_sync(0xffffffffu, same);
    while (matches != 0) {
      const int entry = first + __popc((matches & (~matches + 1)) - 1);
      matches &= matches - 1;
      if (entry < own) return;
      if (column < c) {
        if (entry == own) sum = dTable[row * c + column];
        sum += dY[int64_t{entry} * c + column];
      }
    }
  }
  if (column < c) dTable[row * c + column] = sum;
}

// ---------------------------------------------------------------- patches

// An image of C x H x W numbers as (H / p) (W / p) tokens of p x p patches. Index arithmetic within
// an image fits 32 bits.
struct Patches {
  int c, h, w, p;

  __host__ __device__ __forceinline__ int count() const { return c * h * w; }
  // Where the number of a token at row a, column b of its patch lies in the image.
  __device__ __forceinline__ int at(int token, int channel, int a, int b) const {
    const int columns = w / p;
    return (channel * h + token / columns * p + a) * w + token % columns * p + b;
  }
  // Of the number at `i` in the tokens with channels innermost.
  __device__ __forceinline__ int ofInnermost(int i) const {
    const int inToken = i % (p * p * c), patch = inToken / c;
    return at(i / (p * p * c), inToken % c, patch / p, patch % p);
  }
  // With channels outermost.
  __device__ __forceinline__ int ofOutermost(int i) const {
    const int inToken = i % (c * p * p), patch = inToken % (p * p);
    return at(i / (c * p * p), inToken / (p * p), patch / p, patch % p);
  }
};

Patches patchesOf(const Tensor& image, int64_t patch) {
  return {static_cast<int>(image.shape[1]), static_cast<int>(image.shape[2]),
          static_cast<int>(image.shape[3]), static_cast<int>(patch)};
}

// A lane that does not exist is taken as the nearest.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    patchifyKernel(int64_t work, Patches patches, int lanes, const float* x, const int32_t* lane,
                   T* y) {
  awaitPrevious();
  const int count = patches.count();
  forEach(work, [&](int64_t i) {
    const int64_t from = max(0, min(lane[i / count], lanes - 1));
    y[i] = fromFloat<T>(x[from * count + patches.ofOutermost(static_cast<int>(i % count))]);
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    unpatchifyKernel(int64_t work, Patches patches, const T* x, float* y) {
  awaitPrevious();
  const int count = patches.count();
  const int p = patches.p, c = patches.c, h = patches.h, w = patches.w;
  forEach(work, [&](int64_t i) {
    const int in = static_cast<int>(i % count);
    const int column = in % w, row = in / w % h, channel = in / w / h;
    const int token = row / p * (w / p) + column / p;
    const int from = (token * p * p + row % p * p + column % p) * c + channel;
    y[i] = toFloat(x[i - in + from]);
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    unpatchifyBackwardKernel(int64_t work, Patches patches, const float* dY, T* dX) {
  awaitPrevious();
  const int count = patches.count();
  forEach(work, [&](int64_t i) {
    const int in = static_cast<int>(i % count);
    dX[i] = fromFloat<T>(dY[i - in + patches.ofInnermost(in)]);
  });
}

}  // namespace

void timestepEmbedding(Context& context, const TimestepEmbeddingArgs& args) {
  const int64_t work = args.t.count() * kHalf;
  withType(args.y.dtype, [&]<typename T>(T) {
    launch(context, timestepEmbeddingKernel<T>, gridFor(context, work, kThreads), kThreads, 0, work,
           args.t.as<float>(), args.y.as<T>());
  });
}

void conditionEmbedding(Context& context, const ConditionEmbeddingArgs& args) {
  const int64_t work = args.t.count();
  const Condition at{args.t.as<float>(),       args.table.as<float>(), args.vectors.as<float>(),
                     args.label.as<int32_t>(), args.table.shape[0],    args.t.shape[1],
                     args.y.as<float>()};
  launch(context, conditionEmbeddingKernel, gridFor(context, work, kThreads), kThreads, 0, work,
         at);
}

void conditionEmbeddingBackward(Context& context, const ConditionEmbeddingBackwardArgs& args) {
  const int64_t entries = args.dY.shape[0], c = args.dY.shape[1];
  launch(context, conditionEmbeddingBackwardKernel,
         static_cast<unsigned>(entries * divideUp(c, kColumns)), kColumns, 0,
         static_cast<int>(entries), args.dTable.shape[0], c, args.dY.as<float>(),
         args.label.as<int32_t>(), args.dTable.as<float>());
}

void patchify(Context& context, const PatchifyArgs& args) {
  const int64_t work = args.y.count();
  withType(args.y.dtype, [&]<typename T>(T) {
    launch(context, patchifyKernel<T>, gridFor(context, work, kThreads), kThreads, 0, work,
           patchesOf(args.x, args.patch), static_cast<int>(args.x.shape[0]), args.x.as<float>(),
           args.lane.as<int32_t>(), args.y.as<T>());
  });
}

void unpatchify(Context& context, const UnpatchifyArgs& args) {
  const int64_t work = args.y.count();
  withType(args.x.dtype, [&]<typename T>(T) {
    launch(context, unpatchifyKernel<T>, gridFor(context, work, kThreads), kThreads, 0, work,
           patchesOf(args.y, args.patch), args.x.as<T>(), args.y.as<float>());
  });
}

void unpatchifyBackward(Context& context, const UnpatchifyBackwardArgs& args) {
  const int64_t work = args.dY.count();
  withType(args.dX.dtype, [&]<typename T>(T) {
    launch(context, unpatchifyBackwardKernel<T>, gridFor(context, work, kThreads), kThreads, 0,
           work, patchesOf(args.dY, args.patch), args.dY.as<float>(), args.dX.as<T>());
  });
}

}  // namespace dit::cuda
