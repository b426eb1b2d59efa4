#include "harness.h"
#include "oracle.h"

namespace dit::test {
namespace {

constexpr DType kActs[] = {DType::F32, DType::BF16};

DIT_KERNEL_CASE("patchify") {
  struct {
    int64_t lanes, c, h, w, p;
  } const kCases[] = {{2, 4, 8, 8, 2},  {1, 4, 32, 32, 2}, {3, 3, 6, 9, 3},
                      {2, 4, 8, 16, 4}, {1, 1, 5, 3, 1},   {1, 4, 16, 8, 8}};
  for (DType act : kActs) {
    for (const auto& s : kCases) {
      const Values x = test.random(DType::F32, {s.lanes, s.c, s.h, s.w});
      std::vector<int32_t> lane{0};
      for (int64_t l = s.lanes - 1; l >= 0; l--) lane.push_back(static_cast<int32_t>(l));
      const int64_t rows = s.lanes + 1, tokens = s.h / s.p * (s.w / s.p);
      DeviceTensor y = test.output(act, {rows, tokens, s.c * s.p * s.p});
      test.ops().patchify({.x = test.upload(x), .lane = test.upload(lane), .patch = s.p, .y = y});
      EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
        return oracle::patchify<T>(s.c, s.h, s.w, s.p, x.as<T>(), lane);
      });

      const Values tokenValues = test.random(act, {rows, tokens, s.p * s.p * s.c});
      DeviceTensor image = test.output(DType::F32, {rows, s.c, s.h, s.w});
      test.ops().unpatchify({.x = test.upload(tokenValues), .patch = s.p, .y = image});
      EXPECT_MATCHES(image.download(), [&]<typename T>(T) {
        return oracle::unpatchify<T>(rows, s.c, s.h, s.w, s.p, tokenValues.as<T>());
      });
    }
  }
}

DIT_KERNEL_CASE("toChannelsLast") {
  for (DType act : kActs) {
    for (const Shape& shape : {Shape{1, 3, 17, 20}, Shape{2, 4, 8, 8}, Shape{3, 33, 1, 5}}) {
      const int64_t n = shape[0], c = shape[1], h = shape[2], w = shape[3];
      const Values x = test.random(DType::F32, shape);
      DeviceTensor last = test.output(act, {n, h, w, c});
      test.ops().toChannelsLast(
          {.x = test.upload(x), .scale = 5.489981f, .shift = -0.7f, .y = last});
      EXPECT_MATCHES(last.download(), [&]<typename T>(T) {
        return oracle::toChannelsLast<T>(n, c, h * w, x.as<T>(), 5.489981f, -0.7f);
      });

      const Values pixels = test.random(act, {n, h, w, c});
      DeviceTensor first = test.output(DType::F32, shape);
      test.ops().toChannelsFirst({.x = test.upload(pixels), .y = first});
      EXPECT_MATCHES(first.download(), [&]<typename T>(T) {
        return oracle::toChannelsFirst<T>(n, c, h * w, pixels.as<T>());
      });
    }
  }
}

DIT_KERNEL_CASE("sampleMoments") {
  for (DType act : kActs) {
    for (bool withNoise : {true, false}) {
      constexpr int64_t kN = 2, kC = 4, kH = 5, kW = 7;
      // Some log variances lie beyond the limits.
      const Values moments = test.random(act, {kN, kH, kW, 2 * kC}, 14);
      const Values noise = test.random(DType::F32, {kN, kC, kH, kW});
      DeviceTensor y = test.output(DType::F32, noise.shape);
      test.ops().sampleMoments({.moments = test.upload(moments),
                                .noise = withNoise ? test.upload(noise) : Tensor(),
                                .scale = 0.18215f,
                                .shift = 0.05f,
                                .y = y});
      EXPECT_MATCHES(y.download(), [&]<typename T>(T) {
        return oracle::sampleMoments<T>(kN, kC, kH * kW, moments.as<T>(),
                                        withNoise ? noise.as<T>() : std::vector<T>(), 0.18215f,
                                        0.05f);
      });
    }
  }
}

// XL/2 at 256 px, two rows; the VAE's image at 512 px.
DIT_BENCH("layout") {
  const Tensor latent = test.upload(test.random(DType::F32, {1, 4, 32, 32}));
  const Tensor lane = test.upload(std::vector<int32_t>{0, 0});
  const DeviceTensor tokens = test.output(DType::BF16, {2, 256, 16});
  test.bench("patchify bf16 [2, 256, 16]", 0, static_cast<double>(tokens.tensor().bytes()) * 3,
             [&] { test.ops().patchify({.x = latent, .lane = lane, .patch = 2, .y = tokens}); });
  const Tensor last = test.upload(test.random(DType::F32, {2, 256, 32}));
  const DeviceTensor model = test.output(DType::F32, {2, 8, 32, 32});
  test.bench("unpatchify f32 [2, 256, 32]", 0, static_cast<double>(last.bytes()) * 2,
             [&] { test.ops().unpatchify({.x = last, .patch = 2, .y = model}); });

  const Tensor image = test.upload(test.random(DType::F32, {1, 3, 512, 512}));
  const DeviceTensor pixels = test.output(DType::F32, {1, 512, 512, 3});
  const double bytes = static_cast<double>(image.bytes()) * 2;
  test.bench("toChannelsLast f32 [1, 3, 512, 512]", 0, bytes,
             [&] { test.ops().toChannelsLast({.x = image, .y = pixels}); });
  test.bench("toChannelsFirst f32 [1, 512, 512, 3]", 0, bytes,
             [&] { test.ops().toChannelsFirst({.x = pixels, .y = image}); });
  const Tensor moments = test.upload(test.random(DType::F32, {1, 64, 64, 8}));
  const DeviceTensor z = test.output(DType::F32, {1, 4, 64, 64});
  const Tensor noise = test.upload(test.random(DType::F32, {1, 4, 64, 64}));
  test.bench("sampleMoments f32 [1, 64, 64, 8]", 0, static_cast<double>(moments.bytes()) * 2,
             [&] { test.ops().sampleMoments({.moments = moments, .noise = noise, .y = z}); });
}

}  // namespace
}  // namespace dit::test
