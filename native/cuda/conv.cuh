#pragma once

#include <type_traits>

#include "cuda/conv_copies.cuh"

// The kernel of conv2d: a convolution as a matrix product that is never written out ("implicit
// GEMM"). Its rows are output pixels of one image, its columns output channels, and its sums run
// over kh kw Ci numbers, tap by tap and channels innermost, as images have them in memory [N, H, W,
// C] and prepareConv lays out the weights.
//
// A block of threads computes a tile of pixels x channels. It goes along K in steps of 64 bytes (32
// numbers in bf16, 16 in fp32 and TF32), kStages - 1 steps ahead of the products (cp.async). A
// thread copies the same 16 bytes of a step each time, for a few pixels whose coordinates it keeps:
// it follows the tap and the channel by additions, there is no division in the loop. What lies
// outside of the image is filled with zeros. In shared memory a line is 64 bytes, its four pieces
// permuted by an exclusive or with bits of the line's number, so that neither copies nor reads of
// eight lines at once meet in a bank.
//
// A sum goes along K from its first number to its last, in pieces of one mma (16 numbers in bf16, 8
// in TF32, 1 in fp32), whatever the tile and wherever the pixel lies in it: the choice of the tile
// does not show in the bits. Tiles do not reach across images.
//
// Last the sums go through shared memory, so that bias, residual and output are read and written 16
// bytes at a time and by whole lines.

namespace dit::cuda::conv {

// ---------------------------------------------------------------- the products of a warp

// On tensor cores: bf16 where T is Bf16, TF32 where it is float (weights are rounded to it already,
// pixels are here). 32 bytes of a line are what one mma takes of K in either.
template <typename T, typename Tile>
class TensorSums {
 public:
  // warpM, warpN: the first line of this warp's pixels and weights.
  __device__ __forceinline__ TensorSums(int warpM, int warpN) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    row_ = warpM + lane / 4;
    column_ = warpN + lane % 4 * 2;
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      pixels_[part] = pieceAt(warpM + lane % 16, 2 * part + lane / 16);
      weights_[part] = pieceAt(warpN + lane / 16 * 8 + lane % 8, 2 * part + lane / 8 % 2);
    }
  }

  __device__ __forceinline__ void add(const char* pixels, const char* weights) {
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      uint32_t a[kTilesM][4], b[kTilesN / 2][4];
#pragma unroll
      for (int i = 0; i < kTilesM; i++) {
        loadMatrix4(a[i], pixels + pixels_[part] + i * 16 * kLineBytes);
        if constexpr (std::is_same_v<T, float>) {
#pragma unroll
          for (uint32_t& bits : a[i]) bits = toTf32(__uint_as_float(bits));
        }
      }
#pragma unroll
      for (int j = 0; j < kTilesN / 2; j++) {
        loadMatrix4(b[j], weights + weights_[part] + j * 16 * kLineBytes);
      }
#pragma unroll
      for (int i = 0; i < kTilesM; i++) {
#pragma unroll
        for (int j = 0; j < kTilesN; j++) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          if constexpr (std::is_same_v<T, float>) {
            mmaTf32(sums_[i][j], a[i], column);
          } else {
            mmaBf16(sums_[i][j], a[i], column);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void store(float* sums) const {
#pragma unroll
    for (int i = 0; i < kTilesM; i++) {
#pragma unroll
      for (int j = 0; j < kTilesN; j++) {
        float* const to = sums + (row_ + 16 * i) * Tile::kSumsStride + column_ + 8 * j;
        *reinterpret_cast<float2*>(to) = make_float2(sums_[i][j][0], sums_[i][j][1]);
        *reinterpret_cast<float2*>(to + 8 * Tile::kSumsStride) =
            make_float2(sums_[i][j][2], sums_[i][j][3]);
      }
    }
  }

 private:
  static constexpr int kParts = kLineBytes / 32;
  static constexpr int kTilesM = Tile::kWarpM / 16, kTilesN = Tile::kWarpN / 8;
  static_assert(kTilesN % 2 == 0);

  float sums_[kTilesM][kTilesN][4] = {};
  int row_, column_;
  // Where this lane's rows of ldmatrix lie in a stage. 16 lines on, the permutation is the same.
  int pixels_[kParts], weights_[kParts];
};

// In true fp32. A lane computes the pixels lane / 4 + 8 i and the channels lane % 4 + 4 j of its
// warp: a read of 16 bytes (4 numbers of K) by all lanes takes 8 or 4 neighbouring lines, without a
// conflict of banks, and serves 4 kPixels or 4 kChannels multiplications.
template <typename Tile>
class Fp32Sums {
 public:
  __device__ __forceinline__ Fp32Sums(int warpM, int warpN) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    row_ = warpM + lane / 4;
    column_ = warpN + lane % 4;
  }

  __device__ __forceinline__ void add(const char* pixels, const char* weights) {
    // Unrolled, the reads of all pieces would come first and take all registers.
#pragma unroll 1
    for (int piece = 0; piece < kPieces; piece++) {
      float4 a[kPixels];
#pragma unroll
      for (int i = 0; i < kPixels; i++) a[i] = read(pixels, row_ + 8 * i, piece);
#pragma unroll
      for (int j = 0; j < kChannels; j++) {
        const float4 b = read(weights, column_ + 4 * j, piece);
#pragma unroll
        for (int i = 0; i < kPixels; i++) {
          float sum = sums_[i][j];
          sum = fmaf(a[i].x, b.x, sum);
          sum = fmaf(a[i].y, b.y, sum);
          sum = fmaf(a[i].z, b.z, sum);
          sums_[i][j] = fmaf(a[i].w, b.w, sum);
        }
      }
    }
  }

  __device__ __forceinline__ void store(float* sums) const {
#pragma unroll
    for (int i = 0; i < kPixels; i++) {
#pragma unroll
      for (int j = 0; j < kChannels; j++) {
        sums[(row_ + 8 * i) * Tile::kSumsStride + column_ + 4 * j] = sums_[i][j];
      }
    }
  }

 private:
  static constexpr int kPixels = Tile::kWarpM / 8, kChannels = Tile::kWarpN / 4;

  static __device__ __forceinline__ float4 read(const char* stage, int line, int piece) {
    return *reinterpret_cast<const float4*>(stage + pieceAt(line, piece));
  }

  float sums_[kPixels][kChannels] = {};
  int row_, column_;
};

// ---------------------------------------------------------------- the end

__device__ __forceinline__ void readNumbers(float (&to)[4], const float* from) {
  const float4 x = load4(from);
  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}
__device__ __forceinline__ void readNumbers(float (&to)[8], const float* from) {
  const float4 x = load4(from), y = load4(from + 4);
  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  to[4] = y.x, to[5] = y.y, to[6] = y.z, to[7] = y.w;
}
__device__ __forceinline__ void readNumbers(float (&to)[8], const Bf16* from) {
  const uint4 x = *reinterpret_cast<const uint4*>(from);
  to[0] = lowBf16(x.x), to[1] = highBf16(x.x), to[2] = lowBf16(x.y), to[3] = highBf16(x.y);
  to[4] = lowBf16(x.z), to[5] = highBf16(x.z), to[6] = lowBf16(x.w), to[7] = highBf16(x.w);
}
__device__ __forceinline__ void writeNumbers(float* to, const float (&x)[4]) {
  store4(to, make_float4(x[0], x[1], x[2], x[3]));
}
__device__ __forceinline__ void writeNumbers(Bf16* to, const float (&x)[8]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(packBf16(x[0], x[1]), packBf16(x[2], x[3]),
                                             packBf16(x[4], x[5]), packBf16(x[6], x[7]));
}

// y = sums + bias + residual, rounded once. pixels: of the output, for each row of sums; negative
// where there is none.
template <typename T, typename Tile>
__device__ __forceinline__ void writeTile(const Convolution& c, const Place& place,
                                          const float* sums, const int* pixels) {
  T* const y = static_cast<T*>(c.y) + place.image * c.yImage;
  const T* const residual =
      c.residual ? static_cast<const T*>(c.residual) + place.image * c.yImage : nullptr;
  // Calls each(row, column, element of the image) for the first of every `perTime` numbers.
  const auto forEach = [&](auto perTime, const auto& each) {
    constexpr int kPerTime = decltype(perTime)::value, kTimes = Tile::kN / kPerTime;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * kTimes; i += Tile::kThreads) {
      const int row = i / kTimes, column = i % kTimes * kPerTime;
      if (pixels[row] < 0 || place.channel + column >= c.co) continue;
      each(row, column, static_cast<int64_t>(pixels[row]) * c.co + place.channel + column);
    }
  };
  if (c.vector) {
    constexpr int kWide = kPerPiece<T>;
    forEach(std::integral_constant<int, kWide>(), [&](int row, int column, int64_t at) {
      float values[kWide], more[kWide];
      readNumbers(values, sums + row * Tile::kSumsStride + column);
      readNumbers(more, c.bias + place.channel + column);
#pragma unroll
      for (int k = 0; k < kWide; k++) values[k] += more[k];
      if (residual) {
        readNumbers(more, residual + at);
#pragma unroll
        for (int k = 0; k < kWide; k++) values[k] += more[k];
      }
      writeNumbers(y + at, values);
    });
  } else {
    forEach(std::integral_constant<int, 1>(), [&](int row, int column, int64_t at) {
      float value = sums[row * Tile::kSumsStride + column] + c.bias[place.channel + column];
      if (residual) value += toFloat(residual[at]);
      y[at] = fromFloat<T>(value);
    });
  }
}

// Sums: TensorSums<T, Tile> or Fp32Sums<Tile>. kAligned: 16 bytes of K are neighbours in x.
template <typename T, typename Tile, typename Sums, bool kAligned>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) convKernel(Convolution c) {
  awaitPrevious();
  char* const shared = sharedMemory();
  const Place place = placeOf<Tile>(c);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;

  int* const pixels = reinterpret_cast<int*>(shared + Tile::kPixelsAt);
  for (int i = thread; i < Tile::kM; i += Tile::kThreads) {
    const int pixel = place.pixel + i, row = pixel / c.columns, column = pixel - row * c.columns;
    const int outRow = c.spread * row + place.p, outColumn = c.spread * column + place.q;
    pixels[i] = row < c.rows ? outRow * c.spread * c.columns + outColumn : -1;
  }

  PixelCopies<T, Tile, kAligned> pixelCopies(c, place);
  WeightCopies<T, Tile> weightCopies(c, place);
  constexpr int kPixelBytes = Tile::kM * kLineBytes;
  // Ends a group even where there is nothing left to copy: the waits count groups.
  const auto copyStep = [&](int step) {
    if (step < c.steps) {
      char* const stage = shared + step % kStages * Tile::kStageBytes;
      pixelCopies.copy(c, stage);
      weightCopies.copy(stage + kPixelBytes);
    }
    copyAsyncCommit();
  };

  constexpr int kWarpsN = Tile::kN / Tile::kWarpN;
  const int warpM = warp / kWarpsN * Tile::kWarpM, warpN = warp % kWarpsN * Tile::kWarpN;
  Sums sums(warpM, warpN);
  for (int step = 0; step < kStages - 1; step++) copyStep(step);
  for (int step = 0; step < c.steps; step++) {
    // This step has arrived for all threads, and all have done with the one before, whose place the
    // next copies take.
    copyAsyncWait<kStages - 2>();
    __syncthreads();
    copyStep(step + kStages - 1);
    const char* const stage = shared + step % kStages * Tile::kStageBytes;
    sums.add(stage, stage + kPixelBytes);
  }
  copyAsyncWait<0>();
  __syncthreads();

  float* const table = reinterpret_cast<float*>(shared);
  sums.store(table);
  __syncthreads();
  writeTile<T, Tile>(c, place, table, pixels);
}

}  // namespace dit::cuda::conv
