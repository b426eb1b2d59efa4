// Convolutions of images [N, H, W, C]. conv.cuh has the kernel; here are the layout of the weights,
// the choice of the tile and the launch.
//
// Upsampling (nearest neighbour) before a 3 x 3 kernel is four 2 x 2 kernels of the image as it is,
// one for each of the output's pixels (2 i + p, 2 j + q): along each axis the three taps fall on
// two pixels. For p = 0 these are i - 1 (tap 0) and i (taps 1 and 2), for p = 1 they are i (taps 0
// and 1) and i + 1 (tap 2). The weights are summed in fp32 and rounded once, which costs no
// precision, and 4/9 of the operations remain: of the 0.62 TFLOP of the Stable Diffusion decoder at
// 256 x 256, 0.17 are in these three layers. The phases are one launch. Where other kernels meet an
// upsampled image, the copies read each pixel at half its coordinates.
//
// Hopper has products of warpgroups for bf16 and channels by the 64 (conv_sm90.cu): nearly all of
// that decoder, of which the four phases leave 0.52 TFLOP with K = 1152 to 4608. What is left there
// for the kernel of conv.cuh: the first and the last layer, the encoder's strides of 2, fp32 and
// TF32. Memory is no bound: an activation of [256, 256, 128] in bf16 is 16 MB, 6 us, beside 19
// GFLOP.
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "cuda/conv.cuh"
#include "cuda/conv.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int>::max();

// To nearest, ties away from 0, as toTf32 does it.
float roundedToTf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// [co, ci, 3, 3] -> [co, ci, 2, 2] of phase (p, q).
std::vector<float> phaseOf(const std::vector<float>& kernels, int p, int q) {
  const int rows[] = {0, 1 + p, 3}, columns[] = {0, 1 + q, 3};
  std::vector<float> sums(kernels.size() / 9 * 4);
  for (size_t plane = 0; plane < kernels.size() / 9; plane++) {
    for (int tap = 0; tap < 4; tap++) {
      float sum = 0;
      for (int a = rows[tap / 2]; a < rows[tap / 2 + 1]; a++) {
        for (int b = columns[tap % 2]; b < columns[tap % 2 + 1]; b++) {
          sum += kernels[plane * 9 + static_cast<size_t>(3 * a + b)];
        }
      }
      sums[plane * 4 + static_cast<size_t>(tap)] = sum;
    }
  }
  return sums;
}

// [co, ci, taps] -> [co, steps kStep], channels innermost, zeros at the end.
template <typename Stored, typename Round>
void layOut(const ConvWeight& weight, const std::vector<float>& kernels, Stored* to,
            const Round& round) {
  const int64_t taps = weight.kh * weight.kw, perStep = conv::kLineBytes / sizeof(Stored);
  for (int64_t co = 0; co < weight.co; co++) {
    const float* const from = kernels.data() + co * weight.ci * taps;
    Stored* const line = to + co * weight.steps * perStep;
    for (int64_t tap = 0; tap < taps; tap++) {
      for (int64_t ci = 0; ci < weight.ci; ci++) {
        line[tap * weight.ci + ci] = round(from[ci * taps + tap]);
      }
    }
  }
}

std::vector<float> floats(const Tensor& values) {
  std::vector<float> result(static_cast<size_t>(values.count()));
  if (values.dtype == DType::F32) {
    std::memcpy(result.data(), values.data, values.bytes());
  } else {
    for (size_t i = 0; i < result.size(); i++) result[i] = bf16ToFloat(values.as<uint16_t>()[i]);
  }
  return result;
}

// ---------------------------------------------------------------- tiles

enum class TileSize : uint8_t { Large, Small, Narrow };

// Large: 64 FLOP for every byte that a block reads, 69 KB of shared memory and 128 registers for
// each of 256 threads: two blocks on a multiprocessor, so that one's epilogue runs beside the
// other's products. Small: for images that large tiles would not spread over the device (at 32 x 32
// pixels and 512 channels 128 tiles instead of 32), and for few channels. Narrow: a picture's 3
// channels, a latent's 4 or 8. pixels: of one image, so that the number of images has no say; it
// would not show in the bits.
constexpr TileSize tileFor(int64_t channels, int64_t pixels, bool aligned) {
  constexpr int64_t kNarrow = 16, kWide = 64, kEnoughTiles = 96, kSide = 128;
  if (channels <= kNarrow) return TileSize::Narrow;
  const int64_t tiles = ((pixels + kSide - 1) / kSide) * ((channels + kSide - 1) / kSide);
  return aligned && channels > kWide && tiles >= kEnoughTiles ? TileSize::Large : TileSize::Small;
}

// fp32 needs more registers: one block of the large ones.
template <bool kTensor>
using LargeTile = conv::Tile<128, 128, 64, 32, kTensor ? 2 : 1>;
using SmallTile = conv::Tile<64, 64, 32, 32, 4>;
using NarrowTile = conv::Tile<128, 16, 32, 16, 4>;

template <typename T, bool kTensor, typename Tile, bool kAligned>
void start(const Context& context, conv::Convolution c, int64_t images) {
  using Sums = std::conditional_t<kTensor, conv::TensorSums<T, Tile>, conv::Fp32Sums<Tile>>;
  c.tilesOfImage = static_cast<int>(divideUp(int64_t{c.rows} * c.columns, Tile::kM));
  c.tilesOfChannels = static_cast<int>(divideUp(c.co, Tile::kN));
  const int64_t blocks = images * c.tilesOfImage * c.tilesOfChannels * int64_t{c.spread} * c.spread;
  DIT_CHECK(blocks <= kMaxInt, ErrorCode::Shape, "conv2d: ", images,
            " images of this size are too many for one call");
  launch(context, conv::convKernel<T, Tile, Sums, kAligned>, dim3(static_cast<unsigned>(blocks)),
         dim3(Tile::kThreads), Tile::kShared, c);
}

// kTensor: false for true fp32.
template <typename T, bool kTensor>
void run(const Context& context, const conv::Convolution& c, int64_t images, bool aligned) {
  const int64_t pixels = int64_t{c.rows} * c.columns * c.spread * c.spread;
  switch (tileFor(c.co, pixels, aligned)) {
    case TileSize::Large:
      return start<T, kTensor, LargeTile<kTensor>, true>(context, c, images);
    case TileSize::Small:
      return aligned ? start<T, kTensor, SmallTile, true>(context, c, images)
                     : start<T, kTensor, SmallTile, false>(context, c, images);
    case TileSize::Narrow:
      return aligned ? start<T, kTensor, NarrowTile, true>(context, c, images)
                     : start<T, kTensor, NarrowTile, false>(context, c, images);
  }
}

bool isAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

std::unique_ptr<PreparedWeight> prepareConv(Context& context, const ConvWeightArgs& args) {
  auto weight = std::make_unique<ConvWeight>();
  const Shape& shape = args.values.shape;
  weight->co = shape[0];
  weight->ci = shape[1];
  weight->kh = shape[2];
  weight->kw = shape[3];
  weight->precision = args.precision;
  weight->phases = args.upsample && weight->kh == 3 && weight->kw == 3;
  if (weight->phases) weight->kh = weight->kw = 2;
  const auto elementSize = static_cast<int64_t>(dtypeSize(weight->type()));
  weight->steps = divideUp(weight->kh * weight->kw * weight->ci, conv::kLineBytes / elementSize);

  const std::vector<float> kernels = floats(args.values);
  const int64_t phaseBytes = weight->co * weight->steps * conv::kLineBytes;
  const int phases = weight->phases ? 4 : 1;
  std::vector<char> host(static_cast<size_t>(phases * phaseBytes));
  for (int i = 0; i < phases; i++) {
    char* const to = host.data() + i * phaseBytes;
    const std::vector<float> phase = weight->phases ? phaseOf(kernels, i / 2, i % 2) : kernels;
    if (args.precision == Precision::BF16) {
      layOut(*weight, phase, reinterpret_cast<uint16_t*>(to), floatToBf16);
    } else if (args.precision == Precision::TF32) {
      layOut(*weight, phase, reinterpret_cast<float*>(to), roundedToTf32);
    } else {
      layOut(*weight, phase, reinterpret_cast<float*>(to), [](float x) { return x; });
    }
  }

  weight->values = DeviceMemory(context, host.size());
  context.upload(weight->values.data(), host.data(), host.size());
  return weight;
}

void conv2d(Context& context, const Conv2dArgs& args) {
  const auto* weight = dynamic_cast<const ConvWeight*>(args.weight);
  DIT_CHECK(weight != nullptr, ErrorCode::Internal,
            "conv2d: the weight was not made by prepareConv of CUDA");
  const Tensor &x = args.x, &y = args.y;
  const int64_t zoom = args.upsample ? 2 : 1, height = zoom * x.shape[1], width = zoom * x.shape[2];
  const int64_t kh = weight->phases ? 3 : weight->kh, kw = weight->phases ? 3 : weight->kw;
  const int64_t slackRows = height + args.padTop + args.padBottom - kh,
                slackColumns = width + args.padLeft + args.padRight - kw;
  const int64_t outHeight = slackRows / args.stride + 1, outWidth = slackColumns / args.stride + 1;
  DIT_CHECK(slackRows >= 0 && slackColumns >= 0 && x.dtype == weight->type() &&
                x.shape[3] == weight->ci &&
                y.shape == Shape({x.shape[0], outHeight, outWidth, weight->co}),
            ErrorCode::Shape, "conv2d: a kernel ", kh, " x ", kw, " of ", dtypeName(weight->type()),
            " takes images of ", weight->ci, " channels to ", weight->co, " channels, here ",
            outHeight, " x ", outWidth, " pixels; got ", dtypeName(x.dtype), " ", x.shape, " to ",
            y.shape);
  if (weight->phases) {
    DIT_CHECK(args.upsample && args.stride == 1 && args.padTop == 1 && args.padLeft == 1 &&
                  args.padBottom == 1 && args.padRight == 1,
              ErrorCode::Shape, "conv2d: a weight prepared with `upsample` needs images to be ",
              "upsampled, stride 1 and padding 1");
  }
  if (context.arch == Arch::Sm90a && hopper::convFits(*weight, args)) {
    return hopper::conv2d(context, *weight, args);
  }
  constexpr int64_t kMostPixels = kMaxInt / 2;
  DIT_CHECK(height * width <= kMostPixels && outHeight * outWidth <= kMostPixels, ErrorCode::Shape,
            "conv2d: an image may have ", kMostPixels, " pixels, got ", x.shape, " to ", y.shape);

  const int zoomBits = args.upsample && !weight->phases ? 1 : 0, spread = weight->phases ? 2 : 1;
  const auto elementSize = static_cast<int64_t>(dtypeSize(weight->type()));
  const int64_t perPiece = 16 / elementSize;
  const conv::Convolution c = {
      .x = x.data,
      .weight = weight->values.data(),
      .bias = args.bias.as<float>(),
      .residual = args.residual.data,
      .y = y.data,
      .height = static_cast<int>(x.shape[1] << zoomBits),
      .width = static_cast<int>(x.shape[2] << zoomBits),
      .storedWidth = static_cast<int>(x.shape[2]),
      .zoom = zoomBits,
      .ci = static_cast<int>(weight->ci),
      .co = static_cast<int>(weight->co),
      .kh = static_cast<int>(weight->kh),
      .kw = static_cast<int>(weight->kw),
      .stride = static_cast<int>(args.stride),
      .padTop = static_cast<int>(args.padTop),
      .padLeft = static_cast<int>(args.padLeft),
      .rows = static_cast<int>(outHeight / spread),
      .columns = static_cast<int>(outWidth / spread),
      .spread = spread,
      .steps = static_cast<int>(weight->steps),
      .tilesOfImage = 0,
      .tilesOfChannels = 0,
      .xImage = x.shape[1] * x.shape[2] * x.shape[3],
      .yImage = outHeight * outWidth * weight->co,
      .vector = weight->co % perPiece == 0 && isAligned(args.bias.data) &&
                isAligned(args.residual.data) && isAligned(y.data),
  };
  const bool aligned = weight->ci % perPiece == 0 && isAligned(x.data);
  if (weight->precision == Precision::BF16) {
    run<Bf16, true>(context, c, x.shape[0], aligned);
  } else if (weight->precision == Precision::TF32) {
    run<float, true>(context, c, x.shape[0], aligned);
  } else {
    run<float, false>(context, c, x.shape[0], aligned);
  }
}

}  // namespace dit::cuda
