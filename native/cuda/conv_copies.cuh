#pragma once

#include "cuda/numbers.cuh"

// What a block of conv2d's kernel (conv.cuh) computes, and how its threads bring it to shared
// memory.

namespace dit::cuda::conv {

constexpr int kLineBytes = 64;
constexpr int kPieces = kLineBytes / 16;
constexpr int kStages = 4;

template <typename T>
constexpr int kPerPiece = 16 / sizeof(T);
template <typename T>
constexpr int kStep = kLineBytes / sizeof(T);  // numbers of K

// Pixels x channels of a block, and of a warp; blocks that a multiprocessor shall hold at once.
template <int kM_, int kN_, int kWarpM_, int kWarpN_, int kBlocks_>
struct Tile {
  static constexpr int kM = kM_, kN = kN_, kWarpM = kWarpM_, kWarpN = kWarpN_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kThreads = 32 * (kM / kWarpM) * (kN / kWarpN);
  static constexpr int kStageBytes = (kM + kN) * kLineBytes;
  // Numbers from one row of sums to the next: 8 more, so that the rows of a fragment begin in
  // different banks.
  static constexpr int kSumsStride = kN + 8;
  static constexpr int kSumsBytes = kM * kSumsStride * 4;
  static constexpr int kPixelsAt =
      kStages * kStageBytes > kSumsBytes ? kStages* kStageBytes : kSumsBytes;
  static constexpr size_t kShared = kPixelsAt + kM * sizeof(int);
};

// Sizes are in pixels and channels. Strides of images are in elements.
struct Convolution {
  const void* x;
  const void* weight;  // [phases][co][steps kStep], zeros beyond kh kw ci
  const float* bias;
  const void* residual;  // or null
  void* y;
  int height, width;      // of what the kernel slides over
  int storedWidth, zoom;  // its pixel (i, j) is x's (i >> zoom, j >> zoom)
  int ci, co, kh, kw, stride, padTop, padLeft;
  int rows, columns;  // of the output, or of each of its phases
  // 2 where the output's pixel (2 i + p, 2 j + q) is the pixel (i, j) of phase 2 p + q, which has
  // p and q less padding and weights of its own; else 1.
  int spread;
  int steps;
  int tilesOfImage, tilesOfChannels;
  int64_t xImage, yImage;
  bool vector;  // bias, residual and y can be read and written 16 bytes at a time
};

// Where piece `piece` of a line lies in a stage.
__device__ __forceinline__ int pieceAt(int line, int piece) {
  return line * kLineBytes + (piece ^ (line / 2 % 4)) * 16;
}

// What a block computes. Blocks that run at the same time share pixels, then weights, in the L2
// cache: channels are counted first, then phases, then pixels.
struct Place {
  int channel, p, q, pixel;  // the first channel and pixel
  int64_t image;
};

template <typename Tile>
__device__ __forceinline__ Place placeOf(const Convolution& c) {
  const unsigned channels = static_cast<unsigned>(c.tilesOfChannels),
                 tiles = static_cast<unsigned>(c.tilesOfImage),
                 spread = static_cast<unsigned>(c.spread);
  unsigned at = blockIdx.x;
  Place place;
  place.channel = static_cast<int>(at % channels) * Tile::kN;
  at /= channels;
  place.q = static_cast<int>(at % spread);
  at /= spread;
  place.p = static_cast<int>(at % spread);
  at /= spread;
  place.pixel = static_cast<int>(at % tiles) * Tile::kM;
  place.image = at / tiles;
  return place;
}

// The copies that a thread makes of the image: one piece of some lines.
template <typename T, typename Tile, bool kAligned>
class PixelCopies {
 public:
  __device__ __forceinline__ PixelCopies(const Convolution& c, const Place& place)
      : image_(static_cast<const T*>(c.x) + place.image * c.xImage),
        line_(static_cast<int>(threadIdx.x) / kPieces),
        piece_(static_cast<int>(threadIdx.x) % kPieces) {
#pragma unroll
    for (int i = 0; i < kLines; i++) {
      const int pixel = place.pixel + line_ + i * kLinesApart;
      const int row = pixel / c.columns, column = pixel - row * c.columns;
      // A pixel that does not exist lies so far above the image that no tap reaches it.
      constexpr int kFarAbove = -(1 << 30);
      row_[i] = row < c.rows ? row * c.stride - c.padTop + place.p : kFarAbove;
      column_[i] = column * c.stride - c.padLeft + place.q;
    }
    advance(c, piece_ * kPerPiece<T>);
  }

  // Copies this thread's part of the next step.
  __device__ __forceinline__ void copy(const Convolution& c, char* stage) {
    if constexpr (kAligned) {
#pragma unroll
      for (int i = 0; i < kLines; i++) {
        const bool exists = isInside(c, i);
        const T* const from = image_ + (exists ? offset(c, i) : 0);
        copyAsync16(stage + pieceAt(line_ + i * kLinesApart, piece_), from, exists);
      }
      advance(c, kStep<T>);
    } else {
      // Neighbours in K need not be neighbours in memory, nor lie at a multiple of anything.
      for (int k = 0; k < kPerPiece<T>; k++) {
#pragma unroll
        for (int i = 0; i < kLines; i++) {
          T* const to = reinterpret_cast<T*>(stage + pieceAt(line_ + i * kLinesApart, piece_)) + k;
          *to = isInside(c, i) ? image_[offset(c, i)] : fromFloat<T>(0.0f);
        }
        advance(c, 1);
      }
      advance(c, kStep<T> - kPerPiece<T>);
    }
  }

 private:
  static constexpr int kLinesApart = Tile::kThreads / kPieces;
  static constexpr int kLines = Tile::kM / kLinesApart;
  static_assert(kLines * kLinesApart == Tile::kM);

  __device__ __forceinline__ void advance(const Convolution& c, int numbers) {
    channel_ += numbers;
    while (channel_ >= c.ci) {
      channel_ -= c.ci;
      if (++tapColumn_ == c.kw) tapColumn_ = 0, tapRow_++;
    }
  }
  __device__ __forceinline__ bool isInside(const Convolution& c, int i) const {
    return tapRow_ < c.kh &&
           static_cast<unsigned>(row_[i] + tapRow_) < static_cast<unsigned>(c.height) &&
           static_cast<unsigned>(column_[i] + tapColumn_) < static_cast<unsigned>(c.width);
  }
  __device__ __forceinline__ int64_t offset(const Convolution& c, int i) const {
    const int row = (row_[i] + tapRow_) >> c.zoom, column = (column_[i] + tapColumn_) >> c.zoom;
    return static_cast<int64_t>(row * c.storedWidth + column) * c.ci + channel_;
  }

  const T* image_;
  int line_, piece_;
  int row_[kLines], column_[kLines];  // of the image's pixel under tap (0, 0)
  int tapRow_ = 0, tapColumn_ = 0, channel_ = 0;
};

// The same for the weights.
template <typename T, typename Tile>
class WeightCopies {
 public:
  __device__ __forceinline__ WeightCopies(const Convolution& c, const Place& place)
      : line_(static_cast<int>(threadIdx.x) / kPieces),
        piece_(static_cast<int>(threadIdx.x) % kPieces),
        left_(c.co - place.channel),
        stride_(static_cast<int64_t>(c.steps) * kStep<T>) {
    const int64_t first = static_cast<int64_t>(2 * place.p + place.q) * c.co + place.channel;
    from_ = static_cast<const T*>(c.weight) + (first + line_) * stride_ + piece_ * kPerPiece<T>;
  }

  __device__ __forceinline__ void copy(char* stage) {
#pragma unroll
    for (int i = 0; i < kLines; i++) {
      const int line = line_ + i * kLinesApart;
      if (kLines * kLinesApart > Tile::kN && line >= Tile::kN) break;
      const bool exists = line < left_;
      copyAsync16(stage + pieceAt(line, piece_), from_ + (exists ? i * kLinesApart * stride_ : 0),
                  exists);
    }
    from_ += kStep<T>;
  }

 private:
  static constexpr int kLinesApart = Tile::kThreads / kPieces;
  static constexpr int kLines = (Tile::kN + kLinesApart - 1) / kLinesApart;

  int line_, piece_, left_;
  int64_t stride_;
  const T* from_;
};

}  // namespace dit::cuda::conv
