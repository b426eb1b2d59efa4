#include <cmath>

#include "harness.h"
#include "oracle.h"

namespace dit::test {
namespace {

enum class Residual { None, InPlace, Separate };

struct ConvCase {
  oracle::ConvShape shape;
  Precision precision;
  Residual residual = Residual::None;
  bool prepared = false;      // the weight knows that it will upsample
  DType stored = DType::F32;  // type of the weight's values

  DType type() const { return precision == Precision::BF16 ? DType::BF16 : DType::F32; }

  std::string name() const {
    const char* residuals[] = {"", "-in-place", "-separate"};
    return detail::concat("conv2d/", precision == Precision::TF32 ? "TF32" : dtypeName(type()),
                          shape.upsample ? "/upsample" : "/plain", prepared ? "-prepared" : "",
                          residuals[static_cast<int>(residual)],
                          stored == DType::BF16 ? "-stored-bf16" : "", "/", shape.n, "x", shape.h,
                          "x", shape.w, "x", shape.ci, "-", shape.co, "-k", shape.kh, "x", shape.kw,
                          "-s", shape.stride, "-p", shape.padTop, shape.padLeft, shape.padBottom,
                          shape.padRight);
  }
};

Precision precisionOf(DType type) { return type == DType::BF16 ? Precision::BF16 : Precision::F32; }

std::unique_ptr<PreparedWeight> prepare(Test& test, const Values& w, Precision precision,
                                        bool upsample) {
  const std::vector<float> floats = w.as<float>();
  std::vector<uint16_t> halves;
  for (float value : floats) halves.push_back(floatToBf16(value));
  const bool bf16 = w.dtype == DType::BF16;
  void* data = bf16 ? static_cast<void*>(halves.data()) : const_cast<float*>(floats.data());
  return test.ops().prepareConv(
      {.values = Tensor(data, w.dtype, w.shape), .precision = precision, .upsample = upsample});
}
std::unique_ptr<PreparedWeight> prepare(Test& test, const Values& w, DType type, bool upsample) {
  return prepare(test, w, precisionOf(type), upsample);
}

Conv2dArgs argsOf(const oracle::ConvShape& s) {
  Conv2dArgs args;
  args.stride = s.stride;
  args.padTop = s.padTop;
  args.padLeft = s.padLeft;
  args.padBottom = s.padBottom;
  args.padRight = s.padRight;
  args.upsample = s.upsample;
  return args;
}

// Where the device has no bf16 or TF32, asking for it must say so.
bool precisionIsHere(Test& test, Precision precision) {
  if (test.backend().supports(precision)) return true;
  const Values w = test.random(DType::F32, {1, 1, 1, 1});
  EXPECT_ERROR(Device, prepare(test, w, precision, false));
  return false;
}
bool precisionIsHere(Test& test, DType type) { return precisionIsHere(test, precisionOf(type)); }

// The nearest TF32: 10 bits after the point, ties away from 0.
Values roundedToTf32(Values values) {
  for (double& value : values.v) {
    int exponent = 0;
    const double fraction = std::frexp(value, &exponent);
    value = std::ldexp(std::round(std::ldexp(fraction, 11)), exponent - 11);
  }
  return values;
}

// Image i of [N, ...].
Values image(const Values& all, int64_t i) {
  const int64_t size = all.count() / all.shape[0];
  return {all.dtype,
          {1, all.shape[1], all.shape[2], all.shape[3]},
          {&all.v[i * size], &all.v[i * size] + size}};
}

void checkConv(Test& test, const ConvCase& c) {
  if (!precisionIsHere(test, c.precision)) return;
  const oracle::ConvShape& s = c.shape;
  const DType type = c.type();
  const double scale = 1 / std::sqrt(static_cast<double>(s.ci * s.kh * s.kw));
  const Values x = test.random(type, {s.n, s.h, s.w, s.ci});
  const Values w = test.random(c.stored, {s.co, s.ci, s.kh, s.kw}, scale);
  const Shape outShape{s.n, s.outHeight(), s.outWidth(), s.co};
  // Smaller than the sums of products, which are of size 1: on processors without AVX-512 oneDNN's
  // sums begin with bias and residual, so that every addition rounds at their size, while the naive
  // run adds them last.
  const Values bias = test.random(DType::F32, {s.co}, 0.25);
  const Values residual = test.random(type, outShape, 0.5);
  const auto weight = prepare(test, w, c.precision, c.prepared);

  std::vector<char> bits;
  auto run = [&](const Values& in, const Values& added) {
    DeviceTensor y = test.output(type, added.shape);
    Conv2dArgs args = argsOf(s);
    args.x = test.upload(in);
    args.weight = weight.get();
    args.bias = test.upload(bias);
    args.y = y;
    if (c.residual == Residual::InPlace) {
      y.upload(added);
      args.residual = y;
    } else if (c.residual == Residual::Separate) {
      args.residual = test.upload(added);
    }
    test.ops().conv2d(args);
    bits = y.bytes();
    return y.download();
  };

  // The naive run has its factors in the precision of the convolution, the true result has not.
  const Values got = run(x, residual);
  const std::vector<char> together = bits;
  const auto used = [&](const Values& factors) {
    return c.precision == Precision::TF32 ? roundedToTf32(factors)
                                          : Values::of(type, factors.shape, factors.v);
  };
  auto want = [&]<typename T>(T, const Values& image, const Values& weights) {
    return oracle::conv2d<T>(s, image.as<T>(), weights.as<T>(), bias.as<T>(),
                             c.residual == Residual::None ? std::vector<T>{} : residual.as<T>());
  };
  const std::vector<float> naive = want(float{}, used(x), used(w));
  const std::string problem =
      compare(got, want(double{}, x, w), std::vector<double>(naive.begin(), naive.end()));
  EXPECT(problem.empty(), problem);

  // The same bits for each image alone.
  std::vector<char> alone;
  for (int64_t i = 0; i < s.n; i++) {
    run(image(x, i), image(residual, i));
    alone.insert(alone.end(), bits.begin(), bits.end());
  }
  EXPECT(together == alone, "an image depends on the others");
}

DIT_CASES(convCases) {
  const oracle::ConvShape shapes[] = {
      {1, 1, 1, 1, 1, 1, 1},
      {2, 8, 8, 16, 32, 3, 3, 1, 1, 1, 1, 1},
      {2, 7, 5, 3, 5, 3, 3, 1, 1, 1, 1, 1},
      {1, 32, 32, 4, 64, 3, 3, 1, 1, 1, 1, 1},
      {1, 16, 16, 64, 3, 3, 3, 1, 1, 1, 1, 1},
      {2, 9, 12, 33, 65, 3, 3, 1, 1, 1, 1, 1},
      {2, 8, 8, 24, 24, 3, 3, 2, 0, 0, 1, 1},  // as the encoder's: padded below and on the right
      {1, 9, 7, 5, 6, 3, 3, 2, 0, 0, 1, 1},
      {1, 9, 7, 5, 6, 3, 3, 2, 1, 1, 0, 1},
      {2, 6, 10, 8, 8, 1, 1},
      {1, 11, 3, 130, 7, 1, 1},
      {1, 8, 7, 6, 9, 1, 1, 2},
      {1, 7, 9, 5, 4, 3, 1, 1, 1, 0, 1, 0},  // kernels that are not square
      {1, 7, 9, 5, 4, 2, 3, 1, 0, 1, 1, 2},
      {1, 5, 5, 7, 3, 5, 5, 1, 2, 2, 2, 2},
      {1, 4, 6, 5, 3, 3, 3, 1},  // no padding
      {1, 16, 16, 256, 128, 3, 3, 1, 1, 1, 1, 1},
  };
  const oracle::ConvShape upsampled[] = {
      {3, 1, 1, 8, 16, 3, 3, 1, 1, 1, 1, 1, true},  {1, 9, 6, 1, 1, 3, 3, 1, 1, 1, 1, 1, true},
      {2, 4, 5, 6, 7, 3, 3, 1, 1, 1, 1, 1, true},   {2, 8, 8, 32, 32, 3, 3, 1, 1, 1, 1, 1, true},
      {1, 7, 3, 33, 17, 3, 3, 1, 1, 1, 1, 1, true}, {1, 8, 8, 256, 128, 3, 3, 1, 1, 1, 1, 1, true},
  };
  // Upsampling where no trick helps.
  const oracle::ConvShape others[] = {
      {2, 4, 5, 6, 7, 1, 1, 1, 0, 0, 0, 0, true},
      {1, 5, 4, 6, 7, 3, 3, 2, 0, 0, 1, 1, true},
      {1, 5, 4, 6, 7, 2, 2, 1, 0, 1, 1, 0, true},
  };
  std::vector<ConvCase> cases;
  auto add = [&](ConvCase c) {
    for (Residual residual : {Residual::None, Residual::InPlace, Residual::Separate}) {
      c.residual = residual;
      cases.push_back(c);
    }
  };
  // So many pixels and channels that a GPU takes its largest tiles.
  const oracle::ConvShape large[] = {
      {1, 79, 78, 16, 136, 3, 3, 1, 1, 1, 1, 1},
      {2, 64, 97, 40, 130, 1, 1},
      {1, 40, 39, 16, 136, 3, 3, 1, 1, 1, 1, 1, true},
  };
  // With channels by the 64, as Hopper's products of warpgroups take them: images that are no whole
  // number of patches, and smaller than one; tiles of every size, alone and in pairs, of which some
  // lie beyond the last image; kernels of all kinds.
  const oracle::ConvShape inPatches[] = {
      {3, 5, 7, 64, 24, 3, 3, 1, 1, 1, 1, 1},
      {1, 1, 1, 64, 17, 3, 3, 1, 1, 1, 1, 1},
      {1, 33, 40, 64, 136, 3, 3, 1, 1, 1, 1, 1},
      {3, 17, 18, 128, 200, 1, 1},
      {1, 3, 300, 64, 32, 1, 1},
      {1, 300, 3, 64, 72, 3, 3, 1, 1, 1, 1, 1},
      {1, 7, 9, 64, 20, 3, 1, 1, 1, 0, 1, 0},
      {1, 7, 9, 192, 20, 2, 3, 1, 0, 1, 1, 2},
      {2, 5, 5, 64, 33, 5, 5, 1, 2, 2, 2, 2},
      {1, 14, 16, 64, 68, 3, 3, 1},
      {3, 33, 31, 64, 128, 3, 3, 1, 1, 1, 1, 1},
      {1, 9, 6, 64, 40, 3, 3, 1, 1, 1, 1, 1, true},
      {3, 8, 16, 64, 130, 3, 3, 1, 1, 1, 1, 1, true},
      {1, 40, 33, 64, 136, 3, 3, 1, 1, 1, 1, 1, true},
  };
  for (const oracle::ConvShape& shape : inPatches) {
    add({.shape = shape, .precision = Precision::BF16, .prepared = shape.upsample});
  }
  for (Precision precision : {Precision::F32, Precision::TF32, Precision::BF16}) {
    for (const oracle::ConvShape& shape : shapes) add({.shape = shape, .precision = precision});
    for (const oracle::ConvShape& shape : upsampled) {
      add({.shape = shape, .precision = precision});
      add({.shape = shape, .precision = precision, .prepared = true});
      cases.push_back(
          {.shape = shape, .precision = precision, .prepared = true, .stored = DType::BF16});
    }
    for (const oracle::ConvShape& shape : others) add({.shape = shape, .precision = precision});
    for (const oracle::ConvShape& shape : large) {
      cases.push_back({.shape = shape,
                       .precision = precision,
                       .residual = Residual::Separate,
                       .prepared = shape.upsample});
    }
    cases.push_back({.shape = others[0], .precision = precision, .prepared = true});
    cases.push_back({.shape = shapes[1], .precision = precision, .stored = DType::BF16});
  }
  for (const ConvCase& c : cases) {
    addCase(CaseKind::Plain, c.name(), [c](Test& test) { checkConv(test, c); });
  }
}

// One weight for images of several sizes, back and forth: its results do not change. (oneDNN 2.6
// wants another layout of 96 channels for sizes below 16.)
DIT_CASE("conv2d/sizes-take-turns") {
  for (DType type : {DType::F32, DType::BF16}) {
    if (!precisionIsHere(test, type)) continue;
    const int64_t ci = 96, co = 96;
    const Values w = test.random(type, {co, ci, 3, 3}, 0.05), bias = test.random(DType::F32, {co});
    const auto weight = prepare(test, w, type, false);
    const int64_t sizes[] = {4, 40, 20, 4, 40, 20};
    std::vector<Values> images;
    for (int i = 0; i < 3; i++) images.push_back(test.random(type, {1, sizes[i], sizes[i], ci}));
    std::vector<std::vector<char>> results;
    for (int i = 0; i < 6; i++) {
      DeviceTensor y = test.output(type, {1, sizes[i], sizes[i], co});
      test.ops().conv2d({.x = test.upload(images[i % 3]),
                         .weight = weight.get(),
                         .bias = test.upload(bias),
                         .y = y,
                         .padTop = 1,
                         .padLeft = 1,
                         .padBottom = 1,
                         .padRight = 1});
      results.push_back(y.bytes());
    }
    for (int i = 0; i < 3; i++) EXPECT(results[i] == results[i + 3], "size ", sizes[i]);
  }
}

DIT_CASE("conv2d/errors") {
  const Values x = test.random(DType::F32, {1, 6, 6, 4});
  const Values w = test.random(DType::F32, {5, 4, 3, 3});
  const auto plain = prepare(test, w, DType::F32, false);
  const auto upsampling = prepare(test, w, DType::F32, true);
  const Tensor bias = test.upload(test.random(DType::F32, {5}));
  auto run = [&](const PreparedWeight& weight, const Tensor& in, Shape out, int64_t pad,
                 bool upsample) {
    DeviceTensor y = test.output(in.dtype, out);
    test.ops().conv2d({.x = in,
                       .weight = &weight,
                       .bias = bias,
                       .y = y,
                       .padTop = pad,
                       .padLeft = pad,
                       .padBottom = pad,
                       .padRight = pad,
                       .upsample = upsample});
  };
  const Tensor in = test.upload(x);
  run(*plain, in, {1, 6, 6, 5}, 1, false);
  run(*upsampling, in, {1, 12, 12, 5}, 1, true);
  // The output's size, the channels and the type are the weight's and the image's.
  EXPECT_ERROR(Shape, run(*plain, in, {1, 6, 6, 5}, 0, false));
  EXPECT_ERROR(Shape, run(*plain, in, {1, 6, 6, 5}, 1, true));
  EXPECT_ERROR(Shape, run(*plain, test.upload(test.random(DType::F32, {1, 6, 6, 3})), {1, 6, 6, 5},
                          1, false));
  EXPECT_ERROR(Shape, run(*plain, test.upload(test.random(DType::BF16, {1, 6, 6, 4})), {1, 6, 6, 5},
                          1, false));
  EXPECT_ERROR(Shape, run(*plain, test.upload(test.random(DType::F32, {1, 2, 2, 4})), {1, 1, 1, 5},
                          0, false));
  // A weight for upsampling does nothing else.
  EXPECT_ERROR(Shape, run(*upsampling, in, {1, 6, 6, 5}, 1, false));
  EXPECT_ERROR(Shape, run(*upsampling, in, {1, 10, 10, 5}, 0, true));
}

// The convolutions of the Stable Diffusion VAE's decoder for an image of 256 x 256.
DIT_BENCH("conv2d/sd-vae") {
  struct Layer {
    int64_t side, ci, co, kernel;
    bool upsample, residual;
  };
  const Layer layers[] = {
      {32, 4, 512, 3, false, false},    {32, 512, 512, 3, false, true},
      {32, 512, 512, 3, true, false},   {64, 512, 512, 3, false, true},
      {64, 512, 512, 3, true, false},   {128, 512, 256, 3, false, false},
      {128, 512, 256, 1, false, false}, {128, 256, 256, 3, false, true},
      {128, 256, 256, 3, true, false},  {256, 256, 128, 3, false, false},
      {256, 256, 128, 1, false, false}, {256, 128, 128, 3, false, true},
      {256, 128, 3, 3, false, false},
  };
  for (Precision precision : {Precision::F32, Precision::TF32, Precision::BF16}) {
    if (!precisionIsHere(test, precision)) continue;
    const DType type = precision == Precision::BF16 ? DType::BF16 : DType::F32;
    const char* const name = precision == Precision::TF32 ? "TF32" : dtypeName(type);
    for (const Layer& layer : layers) {
      const int64_t pad = layer.kernel / 2, side = layer.side * (layer.upsample ? 2 : 1);
      const Values w =
          test.random(DType::F32, {layer.co, layer.ci, layer.kernel, layer.kernel}, 0.02);
      const auto weight = prepare(test, w, precision, layer.upsample);
      const Tensor x = test.upload(test.random(type, {1, layer.side, layer.side, layer.ci}));
      DeviceTensor y = test.output(type, {1, side, side, layer.co});
      y.upload(test.random(type, y.tensor().shape));
      const Conv2dArgs args{.x = x,
                            .weight = weight.get(),
                            .bias = test.upload(test.random(DType::F32, {layer.co})),
                            .residual = layer.residual ? y.tensor() : Tensor{},
                            .y = y,
                            .padTop = pad,
                            .padLeft = pad,
                            .padBottom = pad,
                            .padRight = pad,
                            .upsample = layer.upsample};
      // Upsampling counts as it is defined, 3 x 3 taps an output; four 2 x 2 kernels do with 4/9.
      test.bench(detail::concat("conv2d ", name, " ", layer.side, "^2 ", layer.ci, "-", layer.co,
                                " k", layer.kernel, layer.upsample ? " upsample" : "",
                                layer.residual ? " + residual" : ""),
                 2.0 * static_cast<double>(side * side * layer.ci * layer.co * layer.kernel *
                                           layer.kernel),
                 0, [&] { test.ops().conv2d(args); });
    }
  }
}

}  // namespace
}  // namespace dit::test
