#pragma once

#include "cuda/context.h"
#include "cuda/numbers.cuh"
#include "ops/ops.h"

// What follows a product while its sums are still in registers:
//   Bias           y = v + bias
//   BiasGelu       y = gelu(v + bias)
//   BiasResidual   y = residual + gate * (v + bias)
//   GeluGradient   x = gelu(pre), y = v * gelu'(pre)
//   Store, Add     y = v, y += v
//
// An epilogue is a struct of pointers, passed to the kernel by value. It takes four neighbours of a
// row at a time, the first at a multiple of 4:
//   row(r)                               what all numbers of row r share: pointers
//   read(row, column, count)             what columns column .. need from memory, `count` of four
//   finish(row, column, v, read, count)  the numbers v of these columns
// Reading is apart from finishing so that a thread can have the reads of several fours under way:
// y may be the residual, so the compiler itself moves no read before a store, and one latency of
// memory for every four would take longer than the product. Each number is read and written by one
// thread.
// kWhole: all pointers and row strides permit moving four numbers at once (`vectors`), and all four
// exist. Else they move one by one.

namespace dit::cuda {

// ---------------------------------------------------------------- gelu

// gelu(v) = v / 2 (1 + tanh(u)) = v sigmoid(2u), u = sqrt(2 / pi) (v + 0.044715 v^3), and its
// derivative s + v s (1 - s) 2u' with s = sigmoid(2u).
struct Gelu {
  float value, derivative;
};

constexpr float kGeluRoot = 0.797884560802865f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;

// A number as a sum of two, the second far smaller.
struct TwoFloats {
  float high, low;
};

__device__ __forceinline__ TwoFloats addExactly(float x, float y) {
  const float sum = x + y, fromY = sum - x;
  return {sum, (x - (sum - fromY)) + (y - fromY)};
}
__device__ __forceinline__ TwoFloats multiplyExactly(float x, float y) {
  const float product = x * y;
  return {product, fmaf(x, y, -product)};
}

// exp(x) for |x| <= 87.3, about 2^-27.
__device__ __forceinline__ TwoFloats expExactly(TwoFloats x) {
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // the first has 10 bits
  const float n = rintf(x.high * 1.44269504088896341f);
  const TwoFloats r = addExactly(fmaf(-n, kLn2High, x.high), -n * kLn2Low);
  float p = 1.0f / 5040;
  p = fmaf(p, r.high, 1.0f / 720);
  p = fmaf(p, r.high, 1.0f / 120);
  p = fmaf(p, r.high, 1.0f / 24);
  p = fmaf(p, r.high, 1.0f / 6);
  p = fmaf(p, r.high, 0.5f);
  const TwoFloats linear = addExactly(1.0f, r.high);
  const float bend = p * (r.high * r.high);
  const float rest = linear.low + fmaf(r.low + x.low, linear.high + bend, bend);
  const TwoFloats all = addExactly(linear.high, rest);
  const float power = __uint_as_float(static_cast<uint32_t>(static_cast<int>(n) + 127) << 23);
  return {all.high * power, all.low * power};
}

// 2u, with the constants as sums of two.
__device__ __forceinline__ TwoFloats geluArgument(float v) {
  constexpr double kLinear = 1.5957691216057308, kCubic = kLinear * 0.044715;
  constexpr float kLinearHigh = static_cast<float>(kLinear),
                  kLinearLow = static_cast<float>(kLinear - kLinearHigh);
  constexpr float kCubicHigh = static_cast<float>(kCubic),
                  kCubicLow = static_cast<float>(kCubic - kCubicHigh);
  const TwoFloats square = multiplyExactly(v, v);
  const TwoFloats bend = multiplyExactly(kCubicHigh, square.high);
  const TwoFloats sum = addExactly(kLinearHigh, bend.high);
  const float low =
      sum.low + fmaf(kCubicLow, square.high, fmaf(kCubicHigh, square.low, kLinearLow + bend.low));
  const TwoFloats product = multiplyExactly(v, sum.high);
  return {product.high, fmaf(v, low, product.low)};
}

// kCoarse: for results that are rounded to bf16, by one instruction for tanh, without division. Its
// error, 2^-11, is a quarter of the rounding's. Otherwise within 0.6 units in the last place, so
// that results in fp32 are as good as any, where 1 + tanh cancels, too. Whoever wants the value
// alone pays for the value alone.
template <bool kCoarse>
__device__ __forceinline__ Gelu gelu(float v) {
  const float square = v * v;
  const float slope = fmaf(3 * kGeluRoot * kGeluCubic, square, kGeluRoot);  // u'
  if constexpr (kCoarse) {
    const float half = 0.5f * v;
    const float t = tanhApprox(v * fmaf(kGeluRoot * kGeluCubic, square, kGeluRoot));
    // Far out slope is infinite where 1 - t^2 is 0.
    const float bend = fmaf(-t, t, 1.0f) * fminf(slope, 1e4f);
    return {fmaf(half, t, half), fmaf(half, bend, fmaf(0.5f, t, 0.5f))};
  } else {
    constexpr float kFar = 10;  // beyond, 1 + exp(-2u) is 1 or the result below 1e-36
    if (!(fabsf(v) <= kFar)) return {v < 0 ? 0.0f : v, v < 0 ? 0.0f : v > 0 ? 1.0f : v};
    const TwoFloats argument = geluArgument(v);
    const TwoFloats e = expExactly({-argument.high, -argument.low});
    const TwoFloats sum = addExactly(1.0f, e.high);
    const float s = 1.0f / sum.high, value = v * s;
    const float left = fmaf(-value, sum.low + e.low, fmaf(-value, sum.high, v));
    const float complement = e.high < 1.0f ? s * e.high : 1.0f - s;
    return {fmaf(left, s, value), s * fmaf(v * complement, 2.0f * slope, 1.0f)};
  }
}

// ---------------------------------------------------------------- numbers of a row

// Four neighbours at once, or `count` one by one.
template <typename T>
__device__ __forceinline__ float4 loadNeighbours(const T* from, int count, bool vectors) {
  if (vectors && count == 4) return load4(from);
  return make_float4(toFloat(from[0]), count > 1 ? toFloat(from[1]) : 0.0f,
                     count > 2 ? toFloat(from[2]) : 0.0f, count > 3 ? toFloat(from[3]) : 0.0f);
}
template <typename T>
__device__ __forceinline__ void storeNeighbours(T* to, float4 x, int count, bool vectors) {
  if (vectors && count == 4) return store4(to, x);
  to[0] = fromFloat<T>(x.x);
  if (count > 1) to[1] = fromFloat<T>(x.y);
  if (count > 2) to[2] = fromFloat<T>(x.z);
  if (count > 3) to[3] = fromFloat<T>(x.w);
}

// kWhole: four at once, else `count` one by one.
template <bool kWhole, typename T>
__device__ __forceinline__ float4 loadFour(const T* from, int count) {
  return loadNeighbours(from, kWhole ? 4 : count, kWhole);
}
template <bool kWhole, typename T>
__device__ __forceinline__ void storeFour(T* to, float4 x, int count) {
  storeNeighbours(to, x, kWhole ? 4 : count, kWhole);
}

// Four neighbours as they lie in memory. Converting them would wait for them, so whoever has more
// to read converts later.
template <typename T>
struct Neighbours {
  uint32_t bits[sizeof(T)];  // four numbers

  template <bool kWhole>
  __device__ __forceinline__ void load(const T* from, int count) {
    if constexpr (kWhole) {
      if constexpr (sizeof(T) == 2) {
        const uint2 pairs = *reinterpret_cast<const uint2*>(from);
        bits[0] = pairs.x, bits[1] = pairs.y;
      } else {
        const uint4 words = *reinterpret_cast<const uint4*>(from);
        bits[0] = words.x, bits[1] = words.y, bits[2] = words.z, bits[3] = words.w;
      }
      return;
    }
    const float4 x = loadNeighbours(from, count, false);
    if constexpr (sizeof(T) == 2) {
      bits[0] = packBf16(x.x, x.y), bits[1] = packBf16(x.z, x.w);
    } else {
      bits[0] = __float_as_uint(x.x), bits[1] = __float_as_uint(x.y);
      bits[2] = __float_as_uint(x.z), bits[3] = __float_as_uint(x.w);
    }
  }
  __device__ __forceinline__ float4 values() const {
    if constexpr (sizeof(T) == 2) {
      return make_float4(lowBf16(bits[0]), highBf16(bits[0]), lowBf16(bits[1]), highBf16(bits[1]));
    } else {
      return make_float4(__uint_as_float(bits[0]), __uint_as_float(bits[1]),
                         __uint_as_float(bits[2]), __uint_as_float(bits[3]));
    }
  }
};

template <typename F>
__device__ __forceinline__ float4 map4(float4 x, const F& f) {
  return make_float4(f(x.x), f(x.y), f(x.z), f(x.w));
}

// Whether four neighbours, the first at a multiple of 4, are aligned to their size in every row.
inline bool alignedVectors(const void* data, int64_t stride, size_t size) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<size_t>(stride) * size) % (4 * size) == 0;
}
inline bool alignedVectors(const Tensor& t) {
  return !t || alignedVectors(t.data, t.rowStride, dtypeSize(t.dtype));
}

// ---------------------------------------------------------------- forward

// Out: y's type. Act: that of x, and of `kept`.
template <Epilogue kKind, typename Out, typename Act>
struct ForwardEpilogue {
  const float* bias;
  Out* y;
  int64_t yStride;
  Act* kept;  // dense; null where nobody wants it
  int64_t n;
  int m;  // rows of an image
  // BiasResidual only. gate: null for 1; residual: of y's type, or `shared`, F32, for all images.
  const float* gate;
  int64_t gateStride;
  const int32_t* gateIndex;
  int gateEntries;  // of its table: a wrong index picks a wrong gate and never reads elsewhere
  const Out* residual;
  const float* shared;
  int64_t residualStride;
  bool vectors;

  explicit ForwardEpilogue(const LinearArgs& args)
      : bias(args.bias.as<float>()),
        y(args.y.as<Out>()),
        yStride(args.y.rowStride),
        kept(args.kept.as<Act>()),
        n(args.y.shape[2]),
        m(static_cast<int>(args.x.shape[1])),
        gate(args.gate.table.as<float>()),
        gateStride(args.gate.table.rowStride),
        gateIndex(args.gate.index.as<int32_t>()),
        gateEntries(args.gate.table ? static_cast<int>(args.gate.table.shape[0]) : 0) {
    const Tensor& from = args.residual;
    // [1, M, N] of y's type is the one image's own.
    const bool forAll = from && (from.dtype != args.y.dtype || from.shape[0] != args.y.shape[0]);
    residual = forAll ? nullptr : from.as<Out>();
    shared = forAll ? from.as<float>() : nullptr;
    residualStride = from.rowStride;
    vectors = alignedVectors(args.bias) && alignedVectors(args.y) && alignedVectors(args.kept) &&
              alignedVectors(args.gate.table) && alignedVectors(from);
  }

  struct Row {
    Out* y;
    Act* kept;
    const float* gate;
    const Out* residual;
    const float* shared;
  };

  __device__ __forceinline__ Row row(int r) const {
    Row at = {y + r * yStride, kept ? kept + r * n : nullptr, nullptr, nullptr, nullptr};
    if constexpr (kKind == Epilogue::BiasResidual) {
      if (gate || shared) {
        const int image = r / m;
        if (gate) {
          at.gate = gate + max(0, min(gateIndex[image], gateEntries - 1)) * gateStride;
        }
        if (shared) at.shared = shared + (r - image * m) * residualStride;
      }
      if (residual) at.residual = residual + r * residualStride;
    }
    return at;
  }

  struct Read {
    float4 bias, gate;
    Neighbours<Out> residual;
  };
  template <bool kWhole>
  __device__ __forceinline__ Read read(const Row& at, int column, int count) const {
    Read from = {};
    from.bias = loadFour<kWhole>(bias + column, count);
    if constexpr (kKind == Epilogue::BiasResidual) {
      if (gate) from.gate = loadFour<kWhole>(at.gate + column, count);
      if (residual) from.residual.template load<kWhole>(at.residual + column, count);
    }
    return from;
  }

  template <bool kWhole>
  __device__ __forceinline__ void finish(const Row& at, int column, float4 v, const Read& from,
                                         int count) const {
    const float4& b = from.bias;
    v = make_float4(v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w);
    if constexpr (kKind != Epilogue::Bias) {
      if (kept) {
        // What follows sees the product as it is kept: the backward pass makes the same numbers of
        // it again.
        v = map4(v, [](float x) { return toFloat(fromFloat<Act>(x)); });
        storeFour<kWhole>(at.kept + column, v, count);
      }
    }
    if constexpr (kKind == Epilogue::BiasGelu) {
      v = map4(v, [](float x) { return gelu<sizeof(Out) == 2>(x).value; });
    }
    if constexpr (kKind == Epilogue::BiasResidual) {
      if (gate) {
        const float4& g = from.gate;
        v = make_float4(v.x * g.x, v.y * g.y, v.z * g.z, v.w * g.w);
      }
      const float4 r =
          shared ? loadFour<kWhole>(at.shared + column, count) : from.residual.values();
      v = make_float4(v.x + r.x, v.y + r.y, v.z + r.z, v.w + r.w);
    }
    storeFour<kWhole>(at.y + column, v, count);
  }
};

// ---------------------------------------------------------------- backward

// y = v, or y += v, dense rows of `stride` numbers.
template <typename Out, bool kAdd>
struct StoreEpilogue {
  Out* y;
  int64_t stride;
  bool vectors;

  StoreEpilogue(Out* y, int64_t stride)
      : y(y), stride(stride), vectors(alignedVectors(y, stride, sizeof(Out))) {}

  using Row = Out*;
  __device__ __forceinline__ Row row(int r) const { return y + r * stride; }
  using Read = float4;  // y, of Add only
  template <bool kWhole>
  __device__ __forceinline__ Read read(Row at, int column, int count) const {
    if constexpr (kAdd) {
      return loadFour<kWhole>(at + column, count);
    } else {
      return {};
    }
  }
  template <bool kWhole>
  __device__ __forceinline__ void finish(Row at, int column, float4 v, const Read& old,
                                         int count) const {
    if constexpr (kAdd) v = make_float4(v.x + old.x, v.y + old.y, v.z + old.z, v.w + old.w);
    storeFour<kWhole>(at + column, v, count);
  }
};

// dX = v * gelu'(pre), and x = gelu(pre) again, the same bits as in the forward pass.
template <typename Act>
struct GeluGradientEpilogue {
  const Act* pre;
  Act *x, *dX;
  int64_t stride;
  bool vectors;

  explicit GeluGradientEpilogue(const LinearBackwardArgs& args)
      : pre(args.preActivation.as<Act>()),
        x(args.x.as<Act>()),
        dX(args.dX.as<Act>()),
        stride(args.x.shape[2]),
        vectors(alignedVectors(args.preActivation) && alignedVectors(args.x) &&
                alignedVectors(args.dX)) {}

  using Row = int64_t;
  __device__ __forceinline__ Row row(int r) const { return r * stride; }
  using Read = Neighbours<Act>;
  template <bool kWhole>
  __device__ __forceinline__ Read read(Row at, int column, int count) const {
    Read from;
    from.template load<kWhole>(pre + at + column, count);
    return from;
  }
  template <bool kWhole>
  __device__ __forceinline__ void finish(Row at, int column, float4 v, const Read& from,
                                         int count) const {
    at += column;
    const float4 p = from.values();
    constexpr bool kCoarse = sizeof(Act) == 2;
    const Gelu a = gelu<kCoarse>(p.x), b = gelu<kCoarse>(p.y), c = gelu<kCoarse>(p.z),
               d = gelu<kCoarse>(p.w);
    storeFour<kWhole>(x + at, make_float4(a.value, b.value, c.value, d.value), count);
    storeFour<kWhole>(
        dX + at,
        make_float4(v.x * a.derivative, v.y * b.derivative, v.z * c.derivative, v.w * d.derivative),
        count);
  }
};

// ---------------------------------------------------------------- from the tensor cores

// Hands over a warp's sums as mma leaves them (wgmma too): v[i][j] is the tile of 16 rows and 8
// columns at rows 16 i, columns 8 j, in which a lane holds columns 2 (lane % 4) and the next of
// rows lane / 4 and lane / 4 + 8. Neighbouring lanes swap halves of a pair of tiles, so that each
// has four neighbours, and four lanes write 16 columns in a row: whole sectors of 32 bytes.
//
// Reads run a batch of fours ahead of the numbers that are finished, as far as kSpare registers
// hold them: the first batch before the product has ended, where readFirst is called so early. All
// lanes take part.
template <int kSpare, int kTilesM, int kTilesN, typename Epilogue>
class TileFinisher {
 public:
  // row, column: of the first; rows, columns: how many the result has.
  __device__ __forceinline__ TileFinisher(const Epilogue& epilogue, int row, int column,
                                          int64_t rows, int64_t columns)
      : epilogue_(epilogue),
        rows_(static_cast<int>(rows)),
        columns_(static_cast<int>(columns)),
        row_(row + static_cast<int>(threadIdx.x) % 32 / 4),
        column_(column),
        whole_(epilogue.vectors && column + 8 * kTilesN <= columns_) {}

  __device__ __forceinline__ void readFirst() {
    if (whole_) read<true>(0);
  }
  __device__ __forceinline__ void finish(const float (&v)[kTilesM][kTilesN][4]) {
    if (whole_) {
      finishAs<true>(v);
    } else {
      read<false>(0);
      finishAs<false>(v);
    }
  }

 private:
  static_assert(kTilesN % 2 == 0);
  using Read = typename Epilogue::Read;
  static constexpr int kFours = kTilesN / 2;  // of a row, of this lane
  static constexpr int kWords = (static_cast<int>(sizeof(Read)) + 3) / 4;
  // The fours of a batch; two batches are held.
  static constexpr int together() {
    constexpr int kMost = kSpare / (2 * kWords);
    int fours = kFours;
    while (fours > 1 && (fours > kMost || kFours % fours != 0)) fours--;
    return fours;
  }
  static constexpr int kTogether = together();
  static constexpr int kBatches = kFours / kTogether;    // of a row
  static constexpr int kSteps = 2 * kTilesM * kBatches;  // a batch each
  static constexpr bool kAhead = kSpare >= 2 * kWords;
  // Into the next row, too, where there are registers for two rows' pointers: Hopper's kernels.
  static constexpr bool kAcrossRows = kAhead && kTilesM == 1;

  static __device__ __forceinline__ bool odd() {  // takes the second tile's
    return static_cast<int>(threadIdx.x) % 2 != 0;
  }
  __device__ __forceinline__ int columnOf(int four) const {
    return column_ + static_cast<int>(threadIdx.x) % 4 / 2 * 4 + (odd() ? 8 : 0) + 16 * four;
  }
  // How many of four exist.
  template <bool kWhole>
  __device__ __forceinline__ int countOf(int four) const {
    return kWhole ? 4 : min(columns_ - columnOf(four), 4);
  }
  __device__ __forceinline__ int rowOf(int step) const { return row_ + step / kBatches * 8; }

  template <bool kWhole>
  __device__ __forceinline__ void read(int step) {
    auto& at = at_[kAcrossRows ? step / kBatches % 2 : 0];
    // Rows that do not exist read the last one, for reads without a branch between them.
    if (step % kBatches == 0) at = epilogue_.row(min(rowOf(step), rows_ - 1));
#pragma unroll
    for (int k = 0; k < kTogether; k++) {
      const int four = step % kBatches * kTogether + k;
      Read& to = reads_[kAhead ? step % 2 : 0][k];
      if (kWhole || countOf<kWhole>(four) > 0) {
        to = epilogue_.template read<kWhole>(at, columnOf(four), countOf<kWhole>(four));
      } else {
        to = {};
      }
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void finishAs(const float (&v)[kTilesM][kTilesN][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      const int next = step + 1;
      const bool ahead = kAcrossRows || (kAhead && next % kBatches != 0);
      if (next < kSteps && ahead) read<kWhole>(next);
      const int i = step / kBatches / 2, half = step / kBatches % 2;
#pragma unroll
      for (int k = 0; k < kTogether; k++) {
        const int four = step % kBatches * kTogether + k, j = 2 * four;
        const float *first = &v[i][j][2 * half], *second = &v[i][j + 1][2 * half];
        const float x = __shfl_xor_sync(0xffffffffu, odd() ? first[0] : second[0], 1);
        const float y = __shfl_xor_sync(0xffffffffu, odd() ? first[1] : second[1], 1);
        const float4 numbers =
            odd() ? make_float4(x, y, second[0], second[1]) : make_float4(first[0], first[1], x, y);
        if (rowOf(step) < rows_ && countOf<kWhole>(four) > 0) {
          epilogue_.template finish<kWhole>(at_[kAcrossRows ? half : 0], columnOf(four), numbers,
                                            reads_[kAhead ? step % 2 : 0][k],
                                            countOf<kWhole>(four));
        }
      }
      if (next < kSteps && !ahead) read<kWhole>(next);
    }
  }

  const Epilogue& epilogue_;
  int rows_, columns_, row_, column_;
  bool whole_;
  typename Epilogue::Row at_[kAcrossRows ? 2 : 1];
  Read reads_[kAhead ? 2 : 1][kTogether];
};

}  // namespace dit::cuda
