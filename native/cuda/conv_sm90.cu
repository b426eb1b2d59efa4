// Convolutions on Hopper in bf16, as the products of gemm_sm90.cuh: rows of a are output pixels,
// their K runs over the kernel's taps and, innermost, the channels. a is never written out. A
// tile's rows are a patch of pixels, 16 x 8 for instance, and under each tap the image shows a
// patch of the same size, which TMA copies as a box of 64 channels: what of it lies outside of the
// image, its padding, comes as zeros, and no thread computes an address.
//
//   conv.cu's weights are b [Co, taps Ci]; those of the phases of an upsampled image lie below one
//   another, and a tile belongs to one phase.
//
// A sum runs over the taps, then the channels, 16 at a time, whatever the patch and the tile. With
// 128 channels a tile is 256 x 128: a step copies (256 + 128) 128 bytes, (256 + 64) 128 where two
// blocks share b, for 1024 clocks of products, 40 bytes a clock; the L2 cache gives about 39 to
// each multiprocessor. A pixel is copied once for each tap, from L2: an activation of [256, 256,
// 128] has 16 MB.
#include <limits>

#include "cuda/conv.h"
#include "cuda/gemm_sm90.cuh"

namespace dit::cuda::hopper {

namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int>::max();

// How the output, or each of its phases, is cut into patches: rows of tiles in the order of phases,
// images, patches.
struct Patches {
  int rows, columns;      // pixels of the output, or of a phase
  int logWidth, logSize;  // of a patch: 2^logWidth pixels wide, 2^logSize in all
  int wide, ofImage;      // patches from left to right, and in all
  int ofPhase;            // all images together
  int phases;             // 1 or 4

  struct Place {
    int phase, image, row, column;  // of the first pixel
  };
  // A tile beyond the last belongs to no image, and to the last phase: a cluster shares one phase.
  __device__ __forceinline__ Place place(int tile) const {
    const int phase = min(tile / ofPhase, phases - 1), rest = tile - phase * ofPhase;
    const int image = rest / ofImage, patch = rest - image * ofImage, row = patch / wide;
    return {phase, image, row << (logSize - logWidth), (patch - row * wide) << logWidth};
  }
};

// The pixels under the taps.
struct PixelSource {
  static constexpr bool kTransposed = false;

  Patches patches;
  int co, ci, kw;
  int padTop, padLeft;

  struct Tile {
    int column;              // where b's rows begin
    int image, row, x;       // of the image, under the first tap of a row of taps: x is the column
    int channel, tapColumn;  // of the next step
  };
  template <typename Shape>
  __device__ __forceinline__ Tile tile(const Work& work) const {
    const Patches::Place at = patches.place(static_cast<int>(work.row) / Shape::kTileM);
    // Phase (p, q) has p and q less padding.
    return {static_cast<int>(work.column) + at.phase * co,
            at.image,
            at.row - padTop + at.phase / 2,
            at.column - padLeft + at.phase % 2,
            0,
            0};
  }
  template <typename Shape>
  __device__ __forceinline__ void load(char* to, const CUtensorMap* a, uint64_t* barrier,
                                       Tile& tile) const {
    loadBox4(to, a, barrier, tile.channel, tile.x + tile.tapColumn, tile.row, tile.image);
    tile.channel += Shape::kTileK;
    if (tile.channel < ci) return;
    tile.channel = 0;
    if (++tile.tapColumn < kw) return;
    tile.tapColumn = 0;
    tile.row++;
  }
};

// y = v + bias + residual, at the pixels of a tile's patch.
template <int kTileM>
struct PixelEpilogue {
  Patches patches;
  const float* bias;
  const Bf16* residual;  // or null
  Bf16* y;
  int64_t co;
  bool vectors;

  struct Row {
    int64_t at;  // of y
    bool exists;
  };
  __device__ __forceinline__ Row row(int r) const {
    const int tile = r / kTileM, pixel = r % kTileM, spread = patches.phases == 4 ? 2 : 1;
    const Patches::Place at = patches.place(tile);
    const int row = at.row + (pixel >> patches.logWidth),
              column = at.column + (pixel & ((1 << patches.logWidth) - 1));
    const bool exists = row < patches.rows && column < patches.columns;
    const int64_t images = static_cast<int64_t>(at.image) * patches.rows * spread;
    const int64_t line = images + row * spread + at.phase / 2;
    const int64_t place = line * patches.columns * spread + column * spread + at.phase % 2;
    return {exists ? place * co : 0, exists};
  }

  struct Read {
    float4 bias;
    Neighbours<Bf16> residual;
  };
  template <bool kWhole>
  __device__ __forceinline__ Read read(const Row& from, int column, int count) const {
    Read read = {};
    read.bias = loadFour<kWhole>(bias + column, count);
    if (residual) read.residual.template load<kWhole>(residual + from.at + column, count);
    return read;
  }
  template <bool kWhole>
  __device__ __forceinline__ void finish(const Row& to, int column, float4 v, const Read& read,
                                         int count) const {
    if (!to.exists) return;
    const float4 &b = read.bias, r = read.residual.values();
    storeFour<kWhole>(
        y + to.at + column,
        make_float4(v.x + b.x + r.x, v.y + b.y + r.y, v.z + b.z + r.z, v.w + b.w + r.w), count);
  }
};

// The patches that cover the output with the fewest pixels beyond it; the squarest of these, whose
// border is the shortest.
Patches cut(int64_t images, int64_t rows, int64_t columns, int phases, int logSize) {
  Patches best = {};
  int64_t leastTiles = 0, leastSides = 0;
  for (int logWidth = 0; logWidth <= logSize; logWidth++) {
    const int64_t width = int64_t{1} << logWidth, height = int64_t{1} << (logSize - logWidth);
    const int64_t wide = divideUp(columns, width), tiles = wide * divideUp(rows, height);
    const int64_t sides = width + height;
    if (logWidth > 0 && (tiles > leastTiles || (tiles == leastTiles && sides >= leastSides))) {
      continue;
    }
    leastTiles = tiles;
    leastSides = sides;
    best = {.rows = static_cast<int>(rows),
            .columns = static_cast<int>(columns),
            .logWidth = logWidth,
            .logSize = logSize,
            .wide = static_cast<int>(wide),
            .ofImage = static_cast<int>(tiles),
            .ofPhase = static_cast<int>(tiles * images),
            .phases = phases};
  }
  return best;
}

// What the output is, and the phases that it is computed in.
struct Output {
  int64_t images, rows, columns;  // of a phase
  int phases;

  Output(const ConvWeight& weight, const Conv2dArgs& args) {
    const int64_t spread = weight.phases ? 2 : 1;
    images = args.y.shape[0];
    rows = args.y.shape[1] / spread;
    columns = args.y.shape[2] / spread;
    phases = static_cast<int>(spread * spread);
  }
};

template <typename Shape>
void run(const Context& context, const ConvWeight& weight, const Conv2dArgs& args,
         const Patches& patches) {
  const Tensor &x = args.x, &y = args.y;
  const int width = 1 << patches.logWidth, height = 1 << (patches.logSize - patches.logWidth);
  const int64_t k = weight.kh * weight.kw * weight.ci;
  const PixelSource source = {.patches = patches,
                              .co = static_cast<int>(weight.co),
                              .ci = static_cast<int>(weight.ci),
                              .kw = static_cast<int>(weight.kw),
                              .padTop = static_cast<int>(args.padTop),
                              .padLeft = static_cast<int>(args.padLeft)};
  using Epilogue = PixelEpilogue<Shape::kTileM>;
  const Epilogue epilogue = {
      .patches = patches,
      .bias = args.bias.as<float>(),
      .residual = args.residual.as<Bf16>(),
      .y = y.as<Bf16>(),
      .co = weight.co,
      .vectors = alignedVectors(args.bias) && alignedVectors(args.residual) && alignedVectors(y)};
  launchGemm<Shape, false>(
      context, imageMap(x.data, x.shape[0], x.shape[1], x.shape[2], x.shape[3], width, height),
      Matrix{weight.values.data(), patches.phases * weight.co, k, k},
      Problem{
          .m = int64_t{patches.ofPhase} * patches.phases * Shape::kTileM, .n = weight.co, .k = k},
      source, Whole<Epilogue>{epilogue});
}

// Tiles of 256 x 128 copy the least for what they compute, smaller ones spread a small image over
// more multiprocessors: the shape whose rounds of tiles take the least time (the shares of the peak
// are estimates). It does not show in the bits.
struct TileSize {
  int logRows, columns;
  double share;
};
constexpr TileSize kSizes[] = {{8, 128, 1.0}, {7, 128, 0.85}, {7, 64, 0.6}};

int64_t roundsOf(const Patches& patches, int64_t co, int columns, int multiprocessors) {
  return divideUp(int64_t{patches.ofPhase} * patches.phases * divideUp(co, columns),
                  multiprocessors);
}

}  // namespace

bool convFits(const ConvWeight& weight, const Conv2dArgs& args) {
  constexpr int64_t kNarrow = 16;  // channels of a picture or a latent: most of a tile were empty
  const Output out(weight, args);
  const int64_t pixels = out.images * out.rows * out.columns * out.phases;
  constexpr int64_t kLargestTile = 256;  // all of a row of pixels that is one pixel wide
  return weight.precision == Precision::BF16 && weight.ci % kBoxColumns == 0 &&
         weight.co > kNarrow && args.stride == 1 && args.upsample == weight.phases &&
         reinterpret_cast<uintptr_t>(args.x.data) % 16 == 0 && args.x.count() > 0 &&
         args.y.dtype == DType::BF16 && pixels <= kMaxInt / kLargestTile;
}

void conv2d(Context& context, const ConvWeight& weight, const Conv2dArgs& args) {
  const Output out(weight, args);
  const TileSize* best = nullptr;
  Patches patches;
  double least = 0;
  for (const TileSize& size : kSizes) {
    const Patches cutSo = cut(out.images, out.rows, out.columns, out.phases, size.logRows);
    const double time =
        static_cast<double>(roundsOf(cutSo, weight.co, size.columns, context.multiprocessors) *
                            (int64_t{size.columns} << size.logRows)) /
        size.share;
    if (best && time >= least) continue;
    best = &size;
    patches = cutSo;
    least = time;
  }
  // Two blocks share b, so their tiles are of one phase.
  const bool pairs = context.multiprocessors > 1 && patches.ofPhase > 1 &&
                     (patches.phases == 1 || patches.ofPhase % 2 == 0);
  if (best->logRows == 8) {
    return pairs ? run<GemmShape<256, 128, 2>>(context, weight, args, patches)
                 : run<GemmShape<256, 128>>(context, weight, args, patches);
  }
  if (best->columns == 128) {
    return pairs ? run<GemmShape<128, 128, 2>>(context, weight, args, patches)
                 : run<GemmShape<128, 128>>(context, weight, args, patches);
  }
  run<GemmShape<128, 64>>(context, weight, args, patches);
}

}  // namespace dit::cuda::hopper
