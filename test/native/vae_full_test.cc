// Stable Diffusion's VAE at its full size, with the listed random weights: the reference's numbers
// at 256 and 512 pixels, memory, and the time of a decode.

#include <memory>
#include <string>
#include <vector>

#include "fixture.h"
#include "harness.h"
#include "model/preview.h"
#include "model/vae.h"
#include "naive_bf16.h"
#include "prng_weights.h"
#include "timed_backend.h"

namespace dit::test {
namespace {

using Floats = std::vector<float>;

VaeConfig sdConfig() {
  VaeConfig config;
  config.scalingFactor = 1;  // the fixtures' latents are in the VAE's own scale
  return config;
}

Floats decode(Vae& vae, const Floats& latents, int64_t h, int64_t w, const Probe& probe = {}) {
  Floats images(static_cast<size_t>(3 * 8 * h * 8 * w));
  vae.decode({.n = 1, .height = h, .width = w, .latents = latents.data(), .images = images.data()},
             {}, probe);
  return images;
}

// What of a picture [C, H, W] (or of an activation) the fixtures keep.

Floats everyNth(const Floats& x, int64_t c, int64_t h, int64_t w, int64_t cStep, int64_t step) {
  Floats y;
  for (int64_t channel = 0; channel < c; channel += cStep) {
    for (int64_t i = 0; i < h; i += step) {
      for (int64_t j = 0; j < w; j += step) y.push_back(x[(channel * h + i) * w + j]);
    }
  }
  return y;
}

Floats blockMeans(const Floats& x, int64_t c, int64_t h, int64_t w, int64_t size) {
  Floats y;
  for (int64_t block = 0; block < c * (h / size) * (w / size); block++) {
    const int64_t column = block % (w / size), row = block / (w / size);  // row of all channels
    double sum = 0;
    for (int64_t i = 0; i < size * size; i++) {
      sum += x[(row * size + i / size) * w + column * size + i % size];
    }
    y.push_back(static_cast<float>(sum / static_cast<double>(size * size)));
  }
  return y;
}

Floats window(const Floats& x, int64_t c, int64_t h, int64_t w, int64_t top, int64_t left) {
  constexpr int64_t kSize = 16;
  Floats y;
  for (int64_t channel = 0; channel < c; channel++) {
    for (int64_t i = top; i < top + kSize; i++) {
      const float* row = &x[(channel * h + i) * w + left];
      y.insert(y.end(), row, row + kSize);
    }
  }
  return y;
}

void expectFixture(Test& test, const Fixture& file, const std::string& name, const Floats& got) {
  const Tensor& want = file.at(name);
  const Tolerance tolerance = suggestedTolerance(file.name(), name);
  EXPECT(static_cast<int64_t>(got.size()) == want.count(), name, ": ", got.size(), " values");
  if (static_cast<int64_t>(got.size()) != want.count()) return;
  const Tolerance error = difference(got.data(), want.as<float>(), want.count());
  EXPECT(error.relL2 <= tolerance.relL2, name, ": rel L2 ", error.relL2, " > ", tolerance.relL2);
  EXPECT(error.maxAbs <= tolerance.maxAbs, name, ": max abs ", error.maxAbs, " > ",
         tolerance.maxAbs);
}

Floats floats(const Tensor& x) { return {x.as<float>(), x.as<float>() + x.count()}; }

DIT_FULL_CASE("full/vae/fp32") {
  PrngWeights weights("full_size/sd_vae.json");
  Vae vae(test.ops(), sdConfig(), weights, Precision::F32);
  const size_t idle = vae.bytes();

  const Fixture small("full_size/sd_vae.safetensors");
  Floats middle;
  const Probe probe = [&](const std::string& name, const Tensor& x) {
    if (name != "dec.mid_block") return;
    Floats last(static_cast<size_t>(x.count()));
    test.backend().download(last.data(), x);
    middle.resize(last.size());
    for (int64_t i = 0; i < x.count(); i++) middle[i % 512 * 1024 + i / 512] = last[i];
  };
  const Floats decoded = decode(vae, floats(small.at("z")), 32, 32, probe);
  expectFixture(test, small, "act.dec.mid_block", everyNth(middle, 512, 32, 32, 16, 4));
  expectFixture(test, small, "decoded_every3", everyNth(decoded, 3, 256, 256, 1, 3));
  expectFixture(test, small, "decoded_mean8", blockMeans(decoded, 3, 256, 256, 8));
  expectFixture(test, small, "decoded_corner", window(decoded, 3, 256, 256, 0, 0));
  expectFixture(test, small, "decoded_last_corner", window(decoded, 3, 256, 256, 240, 240));

  const Fixture large("full_size/sd_vae_512.safetensors");
  const Floats decoded512 = decode(vae, floats(large.at("z")), 64, 64);
  expectFixture(test, large, "decoded_every7", everyNth(decoded512, 3, 512, 512, 1, 7));
  expectFixture(test, large, "decoded_mean16", blockMeans(decoded512, 3, 512, 512, 16));
  expectFixture(test, large, "decoded_corner", window(decoded512, 3, 512, 512, 0, 0));
  expectFixture(test, large, "decoded_last_corner", window(decoded512, 3, 512, 512, 496, 496));
  // One activation of [512, 512, 256] and two of [512, 512, 128], no more.
  const size_t need = 512 * 512 * (256 + 128 + 128) * sizeof(float);
  EXPECT(vae.bytes() - idle == need, vae.bytes() - idle, " bytes of activations, need ", need);

  const Floats image = weights.listing().at("input.x").values();
  Floats moments(2 * 4 * 32 * 32);
  vae.encode(
      {.n = 1, .height = 256, .width = 256, .images = image.data(), .moments = moments.data()}, {});
  const Floats mean(moments.begin(), moments.begin() + 4 * 32 * 32);
  const Floats logvar(moments.begin() + 4 * 32 * 32, moments.end());
  expectFixture(test, small, "mean", mean);
  expectFixture(test, small, "logvar", logvar);
}

// bf16: at most twice the error of a naive bf16 run.
DIT_FULL_CASE("full/vae/bf16") {
  PrngWeights weights("full_size/sd_vae.json");
  if (!test.backend().supports(Precision::BF16)) {
    EXPECT_ERROR(Device, Vae(test.ops(), sdConfig(), weights, Precision::BF16));
    return;
  }
  const Fixture file("full_size/sd_vae.safetensors");
  const Floats z = floats(file.at("z")), image = weights.listing().at("input.x").values();
  struct Errors {
    Tolerance decoded, mean;
  };
  const auto run = [&](Ops& ops, Precision precision) {
    Vae vae(ops, sdConfig(), weights, precision);
    const Floats decoded = everyNth(decode(vae, z, 32, 32), 3, 256, 256, 1, 3);
    Floats moments(2 * 4 * 32 * 32);
    vae.encode(
        {.n = 1, .height = 256, .width = 256, .images = image.data(), .moments = moments.data()},
        {});
    const Tensor &want = file.at("decoded_every3"), &mean = file.at("mean");
    return Errors{difference(decoded.data(), want.as<float>(), want.count()),
                  difference(moments.data(), mean.as<float>(), mean.count())};
  };
  Ops naiveOps(std::make_unique<NaiveBf16Backend>(
      openBackend({.device = test.options().device, .threads = test.options().threads})));
  const Errors naive = run(naiveOps, Precision::F32), got = run(test.ops(), Precision::BF16);
  EXPECT(got.decoded.relL2 <= 2 * naive.decoded.relL2, "decode: rel L2 ", got.decoded.relL2,
         ", naive ", naive.decoded.relL2);
  EXPECT(got.mean.relL2 <= 2 * naive.mean.relL2, "encode: rel L2 ", got.mean.relL2, ", naive ",
         naive.mean.relL2);
  EXPECT(naive.decoded.relL2 < 0.05 && naive.mean.relL2 < 0.05, "the naive run is itself far off");
}

// Multiply-accumulates of all convolutions and of the attention of a decode, twice.
double decodeFlops(const VaeConfig& config, int64_t h, int64_t w) {
  VaeLayers layers = describeVae(config);
  double sum = 0, pixels = static_cast<double>(h * w);
  const auto conv = [&](const ConvLayer& layer) {
    sum += 2 * pixels * static_cast<double>(layer.in * layer.out * layer.kernel * layer.kernel);
  };
  const auto resnet = [&](const VaeResnet& layer) {
    conv(layer.conv1);
    conv(layer.conv2);
    if (layer.shortcut) conv(*layer.shortcut);
  };
  const VaeHalf& decoder = layers.decoder;
  if (layers.postQuantConv) conv(*layers.postQuantConv);
  conv(decoder.convIn);
  resnet(decoder.middle.first);
  resnet(decoder.middle.second);
  if (decoder.middle.attention) {
    conv(decoder.middle.attention->qkv);
    conv(decoder.middle.attention->out);
    sum += 4 * pixels * pixels * static_cast<double>(decoder.convIn.out);
  }
  for (const VaeLevel& level : decoder.levels) {
    for (const VaeResnet& layer : level.resnets) resnet(layer);
    if (!level.resample) continue;
    pixels *= 4;
    conv(*level.resample);
  }
  conv(decoder.convOut);
  return sum;
}

void benchDecode(Test& test, Precision precision) {
  if (!test.backend().supports(precision)) {
    std::printf("%s: not on this device\n", precisionName(precision));
    return;
  }
  PrngWeights weights("full_size/sd_vae.json");
  Vae vae(test.ops(), sdConfig(), weights, precision);
  const Fixture file("full_size/sd_vae.safetensors");
  const Floats z = floats(file.at("z"));
  std::vector<uint8_t> rgb8(3 * 256 * 256);
  test.bench(detail::concat("decode 256x256 ", precisionName(precision)),
             decodeFlops(vae.config(), 32, 32), 0, [&] {
               vae.decode(
                   {.n = 1, .height = 32, .width = 32, .latents = z.data(), .rgb8 = rgb8.data()},
                   {});
             });
  LinearPreview preview(vae.config());
  const auto fit = [&] {
    preview = LinearPreview(vae.config());
    preview.fit(vae, {});
  };
  test.bench(detail::concat("fit of linear previews ", precisionName(precision)), 0, 0, fit);
  test.bench(detail::concat("linear preview 32x32 ", precisionName(precision)), 0, 0,
             [&] { preview.picture(z, 32, 32); });
}

// Where the time of a decode goes, operation by operation.
void profileDecode(Test& test, Precision precision) {
  if (!test.backend().supports(precision)) {
    std::printf("%s: not on this device\n", precisionName(precision));
    return;
  }
  auto timed = std::make_unique<TimedBackend>(
      openBackend({.device = test.options().device, .threads = test.options().threads}));
  TimedBackend& times = *timed;
  Ops ops(std::move(timed));
  PrngWeights weights("full_size/sd_vae.json");
  Vae vae(ops, sdConfig(), weights, precision);
  const Fixture file("full_size/sd_vae.safetensors");
  for (int i = 0; i < 6; i++) {
    decode(vae, floats(file.at("z")), 32, 32);
    times.endRun();
  }
  times.print();
}

DIT_BENCH("vae/profile/fp32") { profileDecode(test, Precision::F32); }
DIT_BENCH("vae/profile/bf16") { profileDecode(test, Precision::BF16); }

DIT_BENCH("vae/decode/fp32") { benchDecode(test, Precision::F32); }
DIT_BENCH("vae/decode/bf16") { benchDecode(test, Precision::BF16); }

}  // namespace
}  // namespace dit::test
