// groupNorm: y = (x - mean) / sqrt(variance + eps) * gamma + beta, then SiLU, x [N, H, W, C] with
// statistics over the pixels of an image and the C / groups channels of a group.
//
// Three kernels. The first takes mean and sum of squared differences (M2) of every channel over one
// of up to 1024 parts of an image; the second merges parts and channels to those of the groups, in
// double, and leaves two numbers per channel; the third normalises. x is read twice and y is
// written once: 201 MB for 512 x 512 x 128 bf16, 67 us at 3 TB/s. The parts fill the device however
// few images there are; they depend on the image's size only, as the order of all sums does, so an
// image's bits depend on nothing but the image.
//
// A block of the first and of the third kernel has a tile of 32 columns, each kWide channels (4, or
// 1 where C or the pointers are not aligned), and 8 lanes of pixels: a warp reads 32 columns of a
// pixel, 256 or 512 bytes. The first keeps kBatch pixels in registers for the two passes, over the
// mean and over what differs from it, and merges batches by the formula of Chan, Golub & LeVeque
// (1983): stable for any data, as no sum of squares is.
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"

namespace dit::cuda {

namespace {

constexpr int kColumns = 32, kLanes = 8, kThreads = kColumns * kLanes;
constexpr int kBatch = 8;  // pixels of a thread
constexpr int kMergeThreads = 512;

// The pixels of an image by parts.
struct Split {
  int pixels, part, parts;
};

Split splitOf(int64_t pixels) {
  constexpr int64_t kMostParts = 1024, kLeast = 2 * kLanes * kBatch;
  const int64_t part =
      std::max(kLeast, divideUp(divideUp(pixels, kMostParts), kLanes * kBatch) * kLanes * kBatch);
  return {static_cast<int>(pixels), static_cast<int>(part),
          static_cast<int>(divideUp(pixels, part))};
}

// What the kernels between them leave in scratch memory.
struct Statistics {
  float2* parts;   // [N, parts, C]: mean and M2
  float2* values;  // [N, C]: the group's mean, gamma / sqrt(variance + eps)
};

// Count, mean and M2 of some pixels of kWide channels.
template <int kWide>
struct Moments {
  int count = 0;
  float mean[kWide] = {}, squares[kWide] = {};

  // Those of both.
  __device__ __forceinline__ void merge(int n, const float (&otherMean)[kWide],
                                        const float (&otherSquares)[kWide]) {
    if (n == 0) return;
    const float share = static_cast<float>(n) / static_cast<float>(count + n);
    const float weight = static_cast<float>(count) * share;
#pragma unroll
    for (int j = 0; j < kWide; j++) {
      const float delta = otherMean[j] - mean[j];
      mean[j] = fmaf(delta, share, mean[j]);
      squares[j] += fmaf(delta * delta, weight, otherSquares[j]);
    }
    count += n;
  }
};

// Where a block works: blockIdx.x = (image * parts + part) * tiles + tile.
struct Tile {
  int column, lane, first, end;  // pixels [first, end)
  int64_t part, image;           // `part` of all images

  __device__ __forceinline__ Tile(const Split& split, int tiles)
      : column(static_cast<int>(blockIdx.x % tiles) * kColumns +
               static_cast<int>(threadIdx.x) % kColumns),
        lane(static_cast<int>(threadIdx.x) / kColumns),
        part(blockIdx.x / tiles),
        image(part / split.parts) {
    first = static_cast<int>(part % split.parts) * split.part;
    end = min(first + split.part, split.pixels);
  }
};

template <typename T, int kWide>
__global__ void __launch_bounds__(kThreads)
    statisticsKernel(Split split, int tiles, int c, const T* x, Statistics to) {
  awaitPrevious();
  const Tile tile(split, tiles);
  const bool inside = tile.column * kWide < c;
  const T* from = x + tile.image * split.pixels * c + tile.column * kWide;
  Moments<kWide> own;
  for (int first = tile.first + tile.lane; inside && first < tile.end; first += kBatch * kLanes) {
    float values[kBatch][kWide] = {};
    float mean[kWide] = {}, squares[kWide] = {};
    const int n = min((tile.end - first + kLanes - 1) / kLanes, kBatch);
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (i < n) loadWide<kWide>(values[i], from + int64_t{first + i * kLanes} * c);
    }
#pragma unroll
    for (int j = 0; j < kWide; j++) {
#pragma unroll
      for (int i = 0; i < kBatch; i++) mean[j] += values[i][j];
      mean[j] /= static_cast<float>(n);
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        const float centred = i < n ? values[i][j] - mean[j] : 0.0f;
        squares[j] = fmaf(centred, centred, squares[j]);
      }
    }
    own.merge(n, mean, squares);
  }

  // The lanes of a column, merged in order by the first: [kLanes][kColumns] each.
  auto* const shared = reinterpret_cast<Moments<kWide>*>(sharedMemory());
  shared[threadIdx.x] = own;
  __syncthreads();
  if (tile.lane != 0 || !inside) return;
  for (int lane = 1; lane < kLanes; lane++) {
    const Moments<kWide>& other = shared[lane * kColumns + threadIdx.x];
    own.merge(other.count, other.mean, other.squares);
  }
#pragma unroll
  for (int j = 0; j < kWide; j++) {
    to.parts[tile.part * c + tile.column * kWide + j] = make_float2(own.mean[j], own.squares[j]);
  }
}

// A block per image and group.
__global__ void __launch_bounds__(kMergeThreads)
    mergeKernel(Split split, int c, int groups, float eps, const float* gamma, Statistics at) {
  awaitPrevious();
  double* shared = reinterpret_cast<double*>(sharedMemory());
  const int width = c / groups, thread = static_cast<int>(threadIdx.x);
  const int64_t image = blockIdx.x / groups;
  const int first = static_cast<int>(blockIdx.x % groups) * width;
  const float2* parts = at.parts + image * split.parts * c + first;
  const auto pixelsOf = [&](int part) {
    return static_cast<double>(min(split.part, split.pixels - part * split.part));
  };
  const int work = split.parts * width;
  double sum = 0;
  for (int i = thread; i < work; i += kMergeThreads) {
    sum += parts[int64_t{i / width} * c + i % width].x * pixelsOf(i / width);
  }
  const double n = static_cast<double>(split.pixels) * width;
  const double mean = blockSum(sum, shared) / n;
  double squares = 0;
  for (int i = thread; i < work; i += kMergeThreads) {
    const float2 part = parts[int64_t{i / width} * c + i % width];
    const double delta = part.x - mean;
    squares += part.y + delta * delta * pixelsOf(i / width);
  }
  const double norm = 1.0 / sqrt(blockSum(squares, shared) / n + static_cast<double>(eps));
  for (int i = thread; i < width; i += kMergeThreads) {
    at.values[image * c + first + i] =
        make_float2(static_cast<float>(mean), static_cast<float>(norm * gamma[first + i]));
  }
}

// As precise as what it is rounded to.
template <typename T>
__device__ __forceinline__ float silu(float x) {
  if constexpr (sizeof(T) == sizeof(float)) return x / (1.0f + expf(-x));
  return x * reciprocalApprox(1.0f + exp2Approx(x * -1.44269504088896341f));
}

template <typename T, int kWide, bool kSilu>
__global__ void __launch_bounds__(kThreads)
    normaliseKernel(Split split, int tiles, int c, const T* x, Statistics at, const float* beta,
                    T* y) {
  awaitPrevious();
  const Tile tile(split, tiles);
  if (tile.column * kWide >= c) return;
  const int64_t begin = tile.image * split.pixels * c + tile.column * kWide;
  float mean[kWide], factor[kWide], offset[kWide];
  loadWide<kWide>(offset, beta + tile.column * kWide);
#pragma unroll
  for (int j = 0; j < kWide; j++) {
    const float2 value = at.values[tile.image * c + tile.column * kWide + j];
    mean[j] = value.x;
    factor[j] = value.y;
  }
  for (int first = tile.first + tile.lane; first < tile.end; first += kBatch * kLanes) {
    float values[kBatch][kWide] = {};
    // All loads before the first store, which may be to the same memory.
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int pixel = first + i * kLanes;
      if (pixel < tile.end) loadWide<kWide>(values[i], x + begin + int64_t{pixel} * c);
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int pixel = first + i * kLanes;
      if (pixel < tile.end) {
#pragma unroll
        for (int j = 0; j < kWide; j++) {
          const float value = fmaf(values[i][j] - mean[j], factor[j], offset[j]);
          values[i][j] = kSilu ? silu<T>(value) : value;
        }
        storeWide<kWide>(y + begin + int64_t{pixel} * c, values[i]);
      }
    }
  }
}

template <typename T, int kWide>
void runWide(const Context& context, const GroupNormArgs& args, const Split& split,
             const Statistics& at) {
  const int64_t images = args.x.shape[0], c = args.x.shape[3];
  const int64_t tiles = divideUp(c, kColumns * kWide);
  const dim3 grid(static_cast<unsigned>(images * split.parts * tiles));
  launch(context, statisticsKernel<T, kWide>, grid, kThreads, kThreads * sizeof(Moments<kWide>),
         split, static_cast<int>(tiles), static_cast<int>(c), args.x.as<T>(), at);
  launch(context, mergeKernel, static_cast<unsigned>(images * args.groups), kMergeThreads,
         kMergeThreads / 32 * sizeof(double), split, static_cast<int>(c),
         static_cast<int>(args.groups), args.eps, args.gamma.as<float>(), at);
  launch(context, args.silu ? normaliseKernel<T, kWide, true> : normaliseKernel<T, kWide, false>,
         grid, kThreads, 0, split, static_cast<int>(tiles), static_cast<int>(c), args.x.as<T>(), at,
         args.beta.as<float>(), args.y.as<T>());
}

}  // namespace

void groupNorm(Context& context, const GroupNormArgs& args) {
  const int64_t images = args.x.shape[0], c = args.x.shape[3];
  const Split split = splitOf(args.x.shape[1] * args.x.shape[2]);
  const int64_t parts = images * split.parts * c;
  Statistics at;
  at.parts = static_cast<float2*>(
      context.scratch(static_cast<size_t>(parts + images * c) * sizeof(*at.parts)));
  at.values = at.parts + parts;
  withType(args.x.dtype, [&]<typename T>(T) {
    if (byFours(args.x, args.y, args.beta)) return runWide<T, 4>(context, args, split, at);
    runWide<T, 1>(context, args, split, at);
  });
}

}  // namespace dit::cuda
