#include "cpu/conv.h"

#include <array>
#include <cstring>
#include <vector>

#include "cpu/parallel.h"

namespace dit::cpu {

namespace {

// Nearest 2x upsampling followed by a 3 x 3 convolution is four 2 x 2 convolutions of the original,
// one for each of the output's pixels (2 i + p, 2 j + q): along each axis, the three taps fall on
// two source pixels. For p = 0 these are i - 1 (tap 0) and i (taps 1 and 2), for p = 1 they are i
// (taps 0 and 1) and i + 1 (tap 2). That is 4/9 of the operations.
constexpr int kPhases = 4;

struct ConvWeight final : PreparedWeight {
  int64_t co, ci, kh, kw;
  DType type;
  bool upsamples = false;
  // Of phase 2 p + q, or one alone. Their layout is a cache: see PackedWeight.
  mutable std::vector<PackedWeight> packed;

  size_t bytes() const override {
    size_t sum = 0;
    for (const PackedWeight& part : packed) sum += part.bytes();
    return sum;
  }

  // Of an image of this size, with padding that keeps it.
  ConvShape shape(int64_t height, int64_t width) const {
    return {.height = height,
            .width = width,
            .ci = ci,
            .co = co,
            .kh = kh,
            .kw = kw,
            .stride = 1,
            .padTop = kh / 2,
            .padLeft = kw / 2,
            .padBottom = kh / 2,
            .padRight = kw / 2,
            .type = type};
  }

  ConvShape phaseShape(int64_t height, int64_t width, int p, int q) const {
    ConvShape s = shape(height, width);
    s.kh = s.kw = 2;
    s.padTop = 1 - p;
    s.padLeft = 1 - q;
    s.padBottom = p;
    s.padRight = q;
    return s;
  }
};

// [co, ci, 3, 3] -> [co, ci, 2, 2] of phase (p, q), in fp32.
std::vector<float> phaseWeights(const Tensor& values, int p, int q) {
  const int64_t planes = values.shape[0] * values.shape[1];
  const std::array<int, 3> rows = {0, 1 + p, 3}, columns = {0, 1 + q, 3};
  std::vector<float> sums(planes * 4);
  parallelFor(planes, [&](int64_t plane) {
    for (int i = 0; i < 2; i++) {
      for (int j = 0; j < 2; j++) {
        float sum = 0;
        for (int a = rows[i]; a < rows[i + 1]; a++) {
          for (int b = columns[j]; b < columns[j + 1]; b++) {
            const int64_t at = plane * 9 + a * 3 + b;
            sum += values.dtype == DType::F32 ? values.as<float>()[at]
                                              : bf16ToFloat(values.as<uint16_t>()[at]);
          }
        }
        sums[plane * 4 + i * 2 + j] = sum;
      }
    }
  });
  return sums;
}

// Image n of [N, H, W, C].
char* image(const Tensor& t, int64_t n) {
  const int64_t count = t.shape[1] * t.shape[2] * t.shape[3];
  return t.as<char>() + n * count * static_cast<int64_t>(dtypeSize(t.dtype));
}

// Pixels of `bytes` bytes of [2 height, 2 width] that belong to phase (p, q), to or from a dense
// image of [height, width].
void copyPhase(char* whole, char* phase, int64_t height, int64_t width, int64_t bytes, int p, int q,
               bool toWhole) {
  parallelFor(height, [&](int64_t i) {
    char* from = phase + i * width * bytes;
    char* to = whole + ((2 * i + p) * 2 * width + q) * bytes;
    for (int64_t j = 0; j < width; j++, from += bytes, to += 2 * bytes) {
      if (toWhole) {
        std::memcpy(to, from, bytes);
      } else {
        std::memcpy(from, to, bytes);
      }
    }
  });
}

void upsampledConv(OneDnn& onednn, const ConvWeight& weight, const Conv2dArgs& args, int64_t n) {
  const int64_t height = args.x.shape[1], width = args.x.shape[2];
  const auto size = static_cast<int64_t>(dtypeSize(weight.type)), pixel = weight.co * size;
  char* phase = static_cast<char*>(scratch(height * width * pixel));
  for (int i = 0; i < kPhases; i++) {
    const int p = i / 2, q = i % 2;
    ConvShape shape = weight.phaseShape(height, width, p, q);
    if (args.residual) {
      copyPhase(image(args.residual, n), phase, height, width, pixel, p, q, /*toWhole=*/false);
      shape.addend = Addend::Stored;
    }
    onednn.run(shape, weight.packed[i],
               {.x = image(args.x, n), .bias = args.bias.data, .y = phase});
    copyPhase(image(args.y, n), phase, height, width, pixel, p, q, /*toWhole=*/true);
  }
}

// [height, width] pixels of `bytes` bytes -> twice as many rows and columns.
void upsampleImage(char* to, const char* from, int64_t height, int64_t width, int64_t bytes) {
  parallelFor(height, [&](int64_t i) {
    char* first = to + 4 * i * width * bytes;
    for (int64_t j = 0; j < width; j++) {
      const char* pixel = from + (i * width + j) * bytes;
      std::memcpy(first + 2 * j * bytes, pixel, bytes);
      std::memcpy(first + (2 * j + 1) * bytes, pixel, bytes);
    }
    std::memcpy(first + 2 * width * bytes, first, 2 * width * bytes);
  });
}

}  // namespace

std::unique_ptr<PreparedWeight> prepareConv(OneDnn& onednn, const ConvWeightArgs& args) {
  auto weight = std::make_unique<ConvWeight>();
  const Shape& shape = args.values.shape;
  weight->co = shape[0];
  weight->ci = shape[1];
  weight->kh = shape[2];
  weight->kw = shape[3];
  weight->type = args.precision == Precision::BF16 ? DType::BF16 : DType::F32;
  weight->upsamples = args.upsample && weight->kh == 3 && weight->kw == 3;

  // The layout that images of a middling size want; others rewrite the weight.
  constexpr int64_t kSide = 64;
  if (!weight->upsamples) {
    weight->packed.push_back(
        onednn.pack(weight->shape(kSide, kSide), args.values.data, args.values.dtype));
  }
  for (int i = 0; weight->upsamples && i < kPhases; i++) {
    const std::vector<float> values = phaseWeights(args.values, i / 2, i % 2);
    weight->packed.push_back(
        onednn.pack(weight->phaseShape(kSide, kSide, i / 2, i % 2), values.data(), DType::F32));
  }
  return weight;
}

void conv2d(OneDnn& onednn, const Conv2dArgs& args) {
  const auto* weight = dynamic_cast<const ConvWeight*>(args.weight);
  DIT_CHECK(weight != nullptr, ErrorCode::Internal,
            "conv2d: the weight was not made by prepareConv of the CPU");
  const Tensor &x = args.x, &y = args.y;
  const int64_t zoom = args.upsample ? 2 : 1;
  ConvShape shape = weight->shape(zoom * x.shape[1], zoom * x.shape[2]);
  shape.stride = args.stride;
  shape.padTop = args.padTop;
  shape.padLeft = args.padLeft;
  shape.padBottom = args.padBottom;
  shape.padRight = args.padRight;
  shape.addend = args.residual ? Addend::Stored : Addend::None;
  const bool fits = shape.height + shape.padTop + shape.padBottom >= shape.kh &&
                    shape.width + shape.padLeft + shape.padRight >= shape.kw;
  DIT_CHECK(fits && x.dtype == weight->type && x.shape[3] == weight->ci &&
                y.shape == Shape({x.shape[0], shape.outHeight(), shape.outWidth(), weight->co}),
            ErrorCode::Shape, "conv2d: a kernel ", weight->kh, " x ", weight->kw, " of ",
            dtypeName(weight->type), " takes images of ", weight->ci, " channels to ", weight->co,
            " channels, here ", shape.outHeight(), " x ", shape.outWidth(), " pixels; got ",
            dtypeName(x.dtype), " ", x.shape, " to ", y.shape);
  if (weight->upsamples) {
    const auto one = [](int64_t value) { return value == 1; };
    DIT_CHECK(args.upsample && one(args.stride) && one(args.padTop) && one(args.padLeft) &&
                  one(args.padBottom) && one(args.padRight),
              ErrorCode::Shape, "conv2d: a weight prepared with `upsample` needs images to be ",
              "upsampled, stride 1 and padding 1");
  }

  const auto size = static_cast<int64_t>(dtypeSize(weight->type));
  const int64_t xBytes = shape.height * shape.width * weight->ci * size;
  const int64_t rowBytes = y.shape[2] * y.shape[3] * size;
  for (int64_t n = 0; n < x.shape[0]; n++) {
    if (weight->upsamples) {
      upsampledConv(onednn, *weight, args, n);
      continue;
    }
    const char* in = image(x, n);
    char* out = image(y, n);
    if (args.upsample) {
      char* large = static_cast<char*>(scratch(xBytes));
      upsampleImage(large, in, x.shape[1], x.shape[2], weight->ci * size);
      in = large;
    }
    if (args.residual && args.residual.data != y.data) {
      // oneDNN's fast convolutions add only what the output holds.
      const char* residual = image(args.residual, n);
      parallelFor(y.shape[1], [&](int64_t i) {
        std::memcpy(out + i * rowBytes, residual + i * rowBytes, rowBytes);
      });
    }
    onednn.run(shape, weight->packed[0], {.x = in, .bias = args.bias.data, .y = out});
  }
}

}  // namespace dit::cpu
