// The derivative of y = x W^T + b: dX = dY W, dWeight += dY^T x, dBias += the sums of dY's columns.
// Two products of as many FLOPs as the forward one, each reading its operands as they lie
// (gemm_sm80.cuh). What follows dX is fused into its product: gelu' and x again, or the addition.
//
// dWeight's sums run over all R M rows, the long way, while its tiles are few (81 of 128 x 128 for
// N = K = 1152): the rows are split among blocks, whose sums go to scratch memory and from there,
// in order, into dWeight. The split depends on shapes and device only: the same inputs give the
// same bits. dBias works likewise; it is one more pass over dY, 5 to 10 % of the products' time.
#include "cuda/dispatch.h"
#include "cuda/gemm_fp32.cuh"
#include "cuda/gemm_sm80.cuh"
#include "cuda/kernels.h"
#include "cuda/linear.h"

namespace dit::cuda {

namespace {

// ---------------------------------------------------------------- tiles and splits

using LargeTile = Tile<128, 128, 2, 4, 64, 4, 2>;
using SmallTile = Tile<64, 64, 2, 2, 128, 3, 3>;
// TF32 across k is read number by number, which takes more registers than two blocks have.
using LargeTileTf32 = Tile<128, 128, 2, 4, 64, 4, 1>;

// Whether tiles of 128 x 128 pay: that there are enough of them, or the small ones are too many.
constexpr bool largeTiles(int64_t m, int64_t n, int multiprocessors) {
  const auto waves = [&](int64_t size, int64_t atOnce) {
    const int64_t tiles = ((m + size - 1) / size) * ((n + size - 1) / size);
    return (tiles + atOnce - 1) / atOnce;
  };
  // A small tile has a quarter of the work and reaches about 0.6 of the speed.
  return waves(128, multiprocessors) * 4 * 6 <= waves(64, multiprocessors) * 10;
}

struct RowSplit {
  int64_t count, rows;  // each of so many rows, a multiple of 64
};

// Into how many parts the rows of dWeight's sums are split. What counts is how many rows a
// multiprocessor's places go through, one tile after another, and what the partial sums cost:
// writing and reading a tile of them takes as long as kRowsOfPartial rows of it (128 KB at 13 bytes
// a clock, a row 16 clocks).
constexpr RowSplit splitRows(int64_t rows, int64_t tiles, int64_t places, int64_t bytesOfPartial) {
  constexpr int64_t kLeastRows = 256, kGranule = 64, kRowsOfPartial = 600;
  constexpr int64_t kMostBytes = int64_t{96} << 20, kMost = 64;
  RowSplit best = {1, rows};
  int64_t least = INT64_MAX;
  for (int64_t count = 1; count <= kMost; count++) {
    const int64_t each = ((rows + count - 1) / count + kGranule - 1) / kGranule * kGranule;
    if (count > 1 && (each < kLeastRows || count * bytesOfPartial > kMostBytes)) break;
    const int64_t all = tiles * count;
    int64_t time = (all + places - 1) / places * each;
    if (count > 1) time += all * kRowsOfPartial / places;
    if (time >= least) continue;
    least = time;
    best = {(rows + each - 1) / each, each};
  }
  return best;
}
// DiT-XL/2 and S/2 with 16 384 rows.
static_assert(splitRows(16384, 36 * 9, 216, 0).count == 2);
static_assert(splitRows(16384, 3 * 3, 216, 0).count == 24);

// ---------------------------------------------------------------- sums of parts

constexpr int kThreads = 256;

// Part blockIdx.y of the sums, [parts, m, stride].
struct PartEpilogue {
  float* parts;
  int64_t m, stride;
  bool vectors;

  using Row = float*;
  __device__ __forceinline__ Row row(int r) const {
    return parts + (static_cast<int64_t>(blockIdx.y) * m + r) * stride;
  }
  struct Read {};
  template <bool kWhole>
  __device__ __forceinline__ Read read(Row, int, int) const {
    return {};
  }
  template <bool kWhole>
  __device__ __forceinline__ void finish(Row at, int column, float4 v, const Read&,
                                         int count) const {
    storeFour<kWhole>(at + column, v, count);
  }
};

// to += the sum of the parts, the first first: four numbers a thread.
__global__ void __launch_bounds__(kThreads)
    addPartsKernel(const float* parts, int64_t count, int64_t n, float* to, bool vectors) {
  awaitPrevious();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * 4;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < n;
       i += step) {
    const int left = static_cast<int>(min(n - i, int64_t{4}));
    float4 sum = loadNeighbours(parts + i, left, vectors);
#pragma unroll 4
    for (int64_t part = 1; part < count; part++) {
      const float4 x = loadNeighbours(parts + part * n + i, left, vectors);
      sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    }
    const float4 old = loadNeighbours(to + i, left, vectors);
    storeNeighbours(to + i, make_float4(old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w),
                    left, vectors);
  }
}

// Sums of columns of [rows, n]: each block adds `each` rows of 128 columns, four a thread, its
// eight warps every eighth row.
constexpr int kColumns = 128, kWarps = kThreads / 32;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    columnSumsKernel(const T* x, int64_t rows, int64_t n, int64_t each, float* parts,
                     bool vectors) {
  awaitPrevious();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + 4 * lane;
  const int count = static_cast<int>(min(max(n - column, int64_t{0}), int64_t{4}));
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * each, end = min(begin + each, rows);
  float4 sum = {};
  if (count > 0) {
#pragma unroll 4
    for (int64_t row = begin + warp; row < end; row += kWarps) {
      const float4 v = loadNeighbours(x + row * n + column, count, vectors);
      sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
    }
  }
  float* const shared = reinterpret_cast<float*>(sharedMemory());  // [kWarps, kColumns]
  store4(shared + warp * kColumns + 4 * lane, sum);
  __syncthreads();
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * kColumns + static_cast<int>(threadIdx.x);
  if (static_cast<int>(threadIdx.x) >= kColumns || mine >= n) return;
  float all = 0;
#pragma unroll
  for (int i = 0; i < kWarps; i++) all += shared[i * kColumns + static_cast<int>(threadIdx.x)];
  parts[static_cast<int64_t>(blockIdx.y) * n + mine] = all;
}

// Enough blocks to fill the device, of 64 rows at least.
RowSplit splitColumnSums(int64_t rows, int64_t n, int multiprocessors) {
  constexpr int64_t kLeastRows = 64, kBlocks = 8;  // on a multiprocessor
  const int64_t across = divideUp(n, kColumns);
  const int64_t count = std::clamp<int64_t>(kBlocks * multiprocessors / across, 1,
                                            std::max<int64_t>(rows / kLeastRows, 1));
  const int64_t each = divideUp(rows, count);
  return {divideUp(rows, each), each};
}

// ---------------------------------------------------------------- the products

// Operands as the products read them.
struct Operands {
  Operand x, w, dY;
  int64_t rows, n, k;
};

template <typename T, Lines kLinesA, typename Epilogue>
void multiplyBySize(const Context& context, const Product& p, Precision precision, int64_t splits,
                    bool large, const Epilogue& epilogue) {
  if (precision == Precision::F32) {
    if constexpr (sizeof(T) == 4) {
      multiplyFp32<kLinesA, Lines::AcrossK>(context, p, splits, epilogue);
    }
  } else if (large) {
    using Large = std::conditional_t<sizeof(T) == 4, LargeTileTf32, LargeTile>;
    multiply<T, Large, kLinesA, Lines::AcrossK>(context, p, splits, epilogue);
  } else {
    multiply<T, SmallTile, kLinesA, Lines::AcrossK>(context, p, splits, epilogue);
  }
}

// T: Bf16, or float for TF32 and fp32.
template <typename T>
void productForX(const Context& context, const Operands& o, Precision precision,
                 const LinearBackwardArgs& args) {
  const Product p{.a = o.dY, .b = o.w, .m = o.rows, .n = o.k, .k = o.n, .kSplit = o.n};
  const bool large = largeTiles(p.m, p.n, context.multiprocessors);
  const auto run = [&](const auto& epilogue) {
    multiplyBySize<T, Lines::AlongK>(context, p, precision, /*splits=*/1, large, epilogue);
  };
  if (args.preActivation) return run(GeluGradientEpilogue<T>(args));
  if (args.addToDx) return run(StoreEpilogue<float, true>(args.dX.as<float>(), o.k));
  if (args.dX.dtype == DType::F32) {
    return run(StoreEpilogue<float, false>(args.dX.as<float>(), o.k));
  }
  if constexpr (sizeof(T) == 2) run(StoreEpilogue<T, false>(args.dX.as<T>(), o.k));
}

// `parts`: room for the sums of all parts where there are several.
template <typename T>
void productForWeight(const Context& context, const Operands& o, Precision precision,
                      const RowSplit& split, bool large, float* parts, float* dWeight) {
  const Product p{.a = o.dY, .b = o.x, .m = o.n, .n = o.k, .k = o.rows, .kSplit = split.rows};
  const auto run = [&](const auto& epilogue) {
    multiplyBySize<T, Lines::AcrossK>(context, p, precision, split.count, large, epilogue);
  };
  if (split.count == 1) return run(StoreEpilogue<float, true>(dWeight, o.k));
  run(PartEpilogue{parts, o.n, o.k, o.k % 4 == 0});
  addParts(context, parts, split.count, o.n * o.k, dWeight);
}

Precision precisionOf(const LinearWeight* weight, DType type) {
  if (weight) return weight->precision;
  return type == DType::BF16 ? Precision::BF16 : Precision::F32;
}

// dWeight, and dX where `forX`.
void multiplyBackward(Context& context, const LinearWeight* weight, const LinearBackwardArgs& args,
                      bool forX) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1];
  const int64_t k = args.x.shape[2], n = args.dY.shape[2];
  const DType type = args.x.dtype;
  const Precision precision = precisionOf(weight, type);

  const bool large = n > 64 && k > 64;
  const int64_t tiles =
      large ? divideUp(n, 128) * divideUp(k, 128) : divideUp(n, 64) * divideUp(k, 64);
  const RowSplit split = splitRows(rows, tiles, (large ? 2 : 3) * int64_t{context.multiprocessors},
                                   n * k * static_cast<int64_t>(sizeof(float)));
  const int64_t ofParts = split.count > 1 ? split.count * n * k : 0;

  // Scratch memory: copies of rows that are not aligned, then sums of parts.
  AlignedRows x(args.x.data, type, rows, k), dY(args.dY.data, type, rows, n),
      w(forX ? weight->values : nullptr, type, n, k);
  const bool copies = precision != Precision::F32;  // fp32 takes any alignment
  const size_t ofCopies = copies ? x.bytes() + dY.bytes() + w.bytes() : 0;
  char* room =
      static_cast<char*>(context.scratch(ofCopies + static_cast<size_t>(ofParts) * sizeof(float)));
  float* const parts = reinterpret_cast<float*>(room + ofCopies);
  if (copies) {
    room = dY.copyTo(context, room);
    if (forX) room = w.copyTo(context, room);
  }

  Operands operands{.x = {},
                    .w = {w.data(), w.stride()},
                    .dY = {dY.data(), dY.stride()},
                    .rows = rows,
                    .n = n,
                    .k = k};
  withType(type, [&]<typename T>(T) {
    // With preActivation it writes x, too.
    if (forX) productForX<T>(context, operands, precision, args);
    if (copies) x.copyTo(context, room);
    operands.x = {x.data(), x.stride()};
    productForWeight<T>(context, operands, precision, split, large, parts,
                        args.dWeight.as<float>());
  });
}

// dBias += the sums of dY's columns.
void addColumnSums(Context& context, const Tensor& dY, const Tensor& dBias) {
  const int64_t rows = dY.shape[0] * dY.shape[1], n = dY.shape[2];
  const RowSplit split = splitColumnSums(rows, n, context.multiprocessors);
  auto* const parts =
      static_cast<float*>(context.scratch(static_cast<size_t>(split.count * n) * sizeof(float)));
  withType(dY.dtype, [&]<typename T>(T) {
    launch(context, columnSumsKernel<T>,
           dim3(static_cast<unsigned>(divideUp(n, kColumns)), static_cast<unsigned>(split.count)),
           dim3(kThreads), kWarps * kColumns * sizeof(float), dY.as<T>(), rows, n, split.rows,
           parts, alignedVectors(dY.data, n, sizeof(T)));
  });
  addParts(context, parts, split.count, n, dBias.as<float>());
}

}  // namespace

void addParts(const Context& context, const float* parts, int64_t count, int64_t n, float* to) {
  const bool vectors = n % 4 == 0 && alignedVectors(to, 0, sizeof(float));
  launch(context, addPartsKernel, gridFor(context, n, 4 * kThreads), dim3(kThreads), 0, parts,
         count, n, to, vectors);
}

void linearBackward(Context& context, const LinearBackwardArgs& args) {
  const LinearWeight* const weight = args.weight ? &linearWeight(args.weight) : nullptr;
  if (weight) {
    const int64_t k = args.x.shape[2], n = args.dY.shape[2];
    DIT_CHECK(weight->trained, ErrorCode::Internal,
              "linearBackward: the weight was not made by prepareTrainedLinear");
    DIT_CHECK(k == weight->k && n == weight->n && args.x.dtype == weight->type, ErrorCode::Shape,
              "linearBackward: the weight takes ", dtypeName(weight->type), " [R, M, ", weight->k,
              "] to [R, M, ", weight->n, "], got ", dtypeName(args.x.dtype), " ", args.x.shape,
              " to ", args.dY.shape);
  }
  if (args.x.count() == 0) return;
  if (context.arch == Arch::Sm90a && hopper::backwardFits(weight, args)) {
    hopper::linearBackward(context, weight, args);
  } else {
    const bool apart = context.arch == Arch::Sm90a && hopper::inputGradientFits(weight, args);
    if (apart) hopper::inputGradient(context, *weight, args);
    multiplyBackward(context, weight, args, /*forX=*/args.dX && !apart);
  }
  addColumnSums(context, args.dY, args.dBias);
}

}  // namespace dit::cuda
