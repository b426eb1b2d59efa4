// The autoencoder against the reference's numbers (test/fixtures/vae_tiny), and against the oracle
// for the shapes and configs that the fixtures do not have.

#include "model/vae.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/rng.h"
#include "fixture.h"
#include "harness.h"
#include "prng.h"
#include "vae_oracle.h"
#include "vae_weights.h"

namespace dit::test {
namespace {

using Floats = std::vector<float>;

constexpr const char* kIo = "vae_tiny/io.safetensors";
constexpr const char* kWeights = kTinyVaeWeights;

// The floats of a device's tensor [1, H, W, C], as [C, H, W].
Floats planesOf(Backend& backend, const Tensor& x) {
  std::vector<char> bytes(x.bytes());
  backend.download(bytes.data(), x);
  const int64_t pixels = x.shape[1] * x.shape[2], channels = x.shape[3];
  Floats planes(static_cast<size_t>(x.count()));
  for (int64_t i = 0; i < x.count(); i++) {
    const float value = x.dtype == DType::BF16
                            ? bf16ToFloat(reinterpret_cast<uint16_t*>(bytes.data())[i])
                            : reinterpret_cast<float*>(bytes.data())[i];
    planes[i % channels * pixels + i / channels] = value;
  }
  return planes;
}

// Everything a run shows, by name; the images of a call follow one another.
using Shown = std::map<std::string, Floats>;

Probe collect(Test& test, Shown& shown) {
  return [&test, &shown](const std::string& name, const Tensor& x) {
    const Floats planes = planesOf(test.backend(), x);
    shown[name].insert(shown[name].end(), planes.begin(), planes.end());
  };
}

Floats decode(Vae& vae, const Floats& latents, int64_t n, int64_t h, int64_t w,
              const Probe& probe = {}) {
  const int64_t s = vae.downscale();
  Floats images(static_cast<size_t>(n * vae.config().outChannels * h * s * w * s));
  vae.decode({.n = n, .height = h, .width = w, .latents = latents.data(), .images = images.data()},
             {}, probe);
  return images;
}

Floats encodeMoments(Vae& vae, const Floats& images, int64_t n, int64_t h, int64_t w,
                     const Probe& probe = {}) {
  const int64_t s = vae.downscale();
  Floats moments(static_cast<size_t>(n * 2 * vae.config().latentChannels * (h / s) * (w / s)));
  vae.encode({.n = n, .height = h, .width = w, .images = images.data(), .moments = moments.data()},
             {}, probe);
  return moments;
}

Floats floats(const Tensor& x) { return {x.as<float>(), x.as<float>() + x.count()}; }

// Within the tolerance that the fixtures suggest for an fp32 implementation.
void expectFixture(Test& test, const Fixture& file, const std::string& name, const Floats& got,
                   const Floats& want) {
  const Tolerance tolerance = suggestedTolerance(file.name(), name);
  EXPECT(got.size() == want.size(), name, ": ", got.size(), " values, expected ", want.size());
  if (got.size() != want.size()) return;
  const Tolerance error = difference(got.data(), want.data(), static_cast<int64_t>(want.size()));
  EXPECT(error.relL2 <= tolerance.relL2, name, ": rel L2 ", error.relL2, " > ", tolerance.relL2);
  EXPECT(error.maxAbs <= tolerance.maxAbs, name, ": max abs ", error.maxAbs, " > ",
         tolerance.maxAbs);
}

void expectFixture(Test& test, const Fixture& file, const std::string& name, const Floats& got) {
  expectFixture(test, file, name, got, floats(file.at(name)));
}

template <typename T>
std::vector<T> part(const std::vector<T>& values, int64_t i, int64_t n) {
  const int64_t size = static_cast<int64_t>(values.size()) / n;
  return {values.begin() + i * size, values.begin() + (i + 1) * size};
}

// What a VAE has to have is what files of the two fixtures have.
DIT_CASE("vae/params") {
  std::map<std::string, std::string> want, got;
  const auto text = [](const Shape& shape) { return detail::concat(shape); };
  const Fixture file(kWeights);
  for (const auto& [name, tensor] : file.tensors()) want[name] = text(tensor.shape);
  for (const ParamSpec& param : vaeParams(tinyConfig())) got[param.name] = text(param.shape);
  EXPECT(got == want, "vae_tiny");

  want.clear();
  got.clear();
  for (const PrngTensor& tensor : readPrngListing(fixturePath("full_size/sd_vae.json")).weights) {
    Shape shape;
    for (int64_t size : tensor.shape) shape.append(size);
    want[tensor.name] = text(shape);
  }
  for (const ParamSpec& param : vaeParams({})) got[param.name] = text(param.shape);
  EXPECT(got == want, "sd_vae");
}

DIT_CASE("vae/decode/fixture") {
  FixtureWeights weights(kWeights);
  const Fixture io(kIo);
  Vae vae(test.ops(), tinyConfig(), weights, Precision::F32);
  EXPECT(vae.downscale() == 2);
  Shown shown;
  const Floats decoded = decode(vae, floats(io.at("z")), 2, 8, 8, collect(test, shown));
  expectFixture(test, io, "decoded", decoded);
  for (const char* name : {"dec.post_quant_conv", "dec.conv_in", "dec.mid_attn", "dec.mid_block",
                           "dec.up_blocks.0", "dec.up_blocks.1"}) {
    expectFixture(test, io, std::string("act.") + name, shown[name]);
  }
  // Norm and SiLU are one operation here.
  Floats activated = floats(io.at("act.dec.conv_norm_out"));
  for (float& x : activated) x = oracle::silu(x);
  expectFixture(test, io, "act.dec.conv_norm_out", shown["dec.norm_out"], activated);
}

DIT_CASE("vae/decode/rgb8") {
  FixtureWeights weights(kWeights);
  const Fixture io(kIo);
  Vae vae(test.ops(), tinyConfig(), weights, Precision::F32);
  const Tensor& want = io.at("decoded_u8_nhwc");
  std::vector<uint8_t> rgb8(static_cast<size_t>(want.count()));
  Floats images(rgb8.size());
  const Tensor& z = io.at("z");
  vae.decode({.n = 2,
              .height = 8,
              .width = 8,
              .latents = z.as<float>(),
              .rgb8 = rgb8.data(),
              .images = images.data()},
             {});
  for (size_t i = 0; i < rgb8.size(); i++) {
    const int difference = std::abs(rgb8[i] - want.as<uint8_t>()[i]);
    EXPECT(difference <= 1, "byte ", i, ": ", static_cast<int>(rgb8[i]), ", expected ",
           static_cast<int>(want.as<uint8_t>()[i]));
  }
  EXPECT(images == decode(vae, floats(z), 2, 8, 8), "the floats beside the bytes");
}

DIT_CASE("vae/decode/scale-and-shift") {
  FixtureWeights weights(kWeights);
  const Fixture io(kIo);
  VaeConfig config = tinyConfig();
  config.scalingFactor = 0.18215f;
  config.shiftFactor = 0.25f;
  Vae vae(test.ops(), config, weights, Precision::F32);
  Floats latents = floats(io.at("z"));
  for (float& x : latents) x = (x - config.shiftFactor) * config.scalingFactor;
  expectFixture(test, io, "decoded", decode(vae, latents, 2, 8, 8));
}

DIT_CASE("vae/encode/fixture") {
  FixtureWeights weights(kWeights);
  const Fixture io(kIo);
  VaeConfig config = tinyConfig();
  config.scalingFactor = 0.18215f;
  Vae vae(test.ops(), config, weights, Precision::F32);
  const Floats images = floats(io.at("x"));
  Shown shown;
  const Floats moments = encodeMoments(vae, images, 2, 16, 16, collect(test, shown));
  expectFixture(test, io, "moments", moments);
  for (const char* name :
       {"enc.conv_in", "enc.down_blocks.0", "enc.down_blocks.1", "enc.mid_block"}) {
    expectFixture(test, io, std::string("act.") + name, shown[name]);
  }
  Floats mean, logvar;
  for (int64_t image = 0; image < 2; image++) {
    const Floats own = part(moments, image, 2);
    const Floats means = part(own, 0, 2), logvars = part(own, 1, 2);
    mean.insert(mean.end(), means.begin(), means.end());
    for (const float x : logvars) logvar.push_back(std::clamp(x, -30.0f, 20.0f));
  }
  expectFixture(test, io, "mean", mean);
  expectFixture(test, io, "logvar", logvar);

  Vae::Encode job{.n = 2, .height = 16, .width = 16, .images = images.data()};
  Floats latents(mean.size());
  job.latents = latents.data();
  job.noise = io.at("noise").as<float>();
  vae.encode(job, {});
  expectFixture(test, io, "latent", latents);

  job.noise = nullptr;  // the mode
  vae.encode(job, {});
  for (size_t i = 0; i < mean.size(); i++) {
    EXPECT(std::abs(latents[i] - mean[i] * config.scalingFactor) < 1e-7, "mode, number ", i);
  }
}

// The noise of a seed is Philox's, stream Moments, whatever stands beside the image.
DIT_CASE("vae/encode/seeds") {
  FixtureWeights weights(kWeights);
  const Fixture io(kIo);
  Vae vae(test.ops(), tinyConfig(), weights, Precision::F32);
  const Floats images = floats(io.at("x"));
  const std::vector<uint64_t> seeds{7, 0x123456789abcdef0};
  Floats noise;
  for (const uint64_t seed : seeds) {
    for (uint64_t block = 0; block < 4 * 8 * 8 / 4; block++) {
      float four[4];
      normal4(seed, NoiseStream::Moments, 0, block, four);
      noise.insert(noise.end(), four, four + 4);
    }
  }
  Floats seeded(noise.size()), given(noise.size());
  Vae::Encode job{.n = 2, .height = 16, .width = 16, .images = images.data()};
  job.seeds = seeds.data();
  job.latents = seeded.data();
  vae.encode(job, {});
  job.seeds = nullptr;
  job.noise = noise.data();
  job.latents = given.data();
  vae.encode(job, {});
  const Tolerance error =
      difference(seeded.data(), given.data(), static_cast<int64_t>(given.size()));
  EXPECT(error.relL2 < 1e-6, "rel L2 ", error.relL2);

  Floats alone(noise.size() / 2);
  job = {.n = 1, .height = 16, .width = 16, .images = images.data() + images.size() / 2};
  job.seeds = &seeds[1];
  job.latents = alone.data();
  vae.encode(job, {});
  EXPECT(alone == part(seeded, 1, 2), "the second image alone");
}

// Configs and sizes of all kinds against the oracle, which the tests above tie to the reference.
void expectOracle(Test& test, const VaeConfig& config, int64_t h, int64_t w) {
  RandomVaeWeights weights(test, config);
  Vae vae(test.ops(), config, weights, Precision::F32);
  const Shape latent{config.latentChannels, h, w};
  const Values z = test.random(DType::F32, latent);
  const int64_t s = vae.downscale();
  const auto values = [](const Shape& shape, const Floats& v) {
    return Values{DType::F32, shape, std::vector<double>(v.begin(), v.end())};
  };
  const Values decoded =
      values({config.outChannels, h * s, w * s}, decode(vae, z.as<float>(), 1, h, w));
  EXPECT_MATCHES(decoded, [&]<typename T>(T) {
    return VaeOracle<T>(config, weights).decode(z.as<T>(), h, w);
  });
  const Values image = test.random(DType::F32, {config.inChannels, h * s, w * s}, 0.5);
  const Values moments = values({2 * config.latentChannels, h, w},
                                encodeMoments(vae, image.as<float>(), 1, h * s, w * s));
  EXPECT_MATCHES(moments, [&]<typename T>(T) {
    return VaeOracle<T>(config, weights).encode(image.as<T>(), h * s, w * s);
  });
}

DIT_CASE("vae/configs/not-square") {
  VaeConfig config = tinyConfig();
  expectOracle(test, config, 3, 7);
  expectOracle(test, config, 8, 2);
  expectOracle(test, config, 1, 1);
}

DIT_CASE("vae/configs/deep") {
  expectOracle(test,
               {.inChannels = 1,
                .outChannels = 2,
                .latentChannels = 3,
                .blockOutChannels = {12, 8, 8, 20},
                .layersPerBlock = 2,
                .groups = 4,
                .scalingFactor = 1},
               3, 2);
}

DIT_CASE("vae/configs/one-level") {
  expectOracle(test,
               {.latentChannels = 16,
                .blockOutChannels = {24},
                .layersPerBlock = 3,
                .groups = 3,
                .scalingFactor = 1},
               5, 6);
}

DIT_CASE("vae/configs/without-quant-convs-and-attention") {
  VaeConfig config = tinyConfig();
  config.quantConv = config.postQuantConv = false;
  expectOracle(test, config, 4, 4);
  config.midAttention = false;
  expectOracle(test, config, 4, 4);
  config.quantConv = true;
  expectOracle(test, config, 4, 4);
}

// bf16: at most twice the error of a naive bf16 run, against what fp32 gives.
DIT_CASE("vae/bf16") {
  FixtureWeights weights(kWeights);
  const Fixture io(kIo);
  if (!test.backend().supports(Precision::BF16)) {
    EXPECT_ERROR(Device, Vae(test.ops(), tinyConfig(), weights, Precision::BF16));
    return;
  }
  Vae vae(test.ops(), tinyConfig(), weights, Precision::BF16);
  VaeOracle<float> naive(vae.config(), weights, /*bf16=*/true);
  const auto doubles = [](const Floats& v) { return std::vector<double>(v.begin(), v.end()); };

  const Floats z = floats(io.at("z")), decoded = decode(vae, z, 2, 8, 8);
  const Floats x = floats(io.at("x")), moments = encodeMoments(vae, x, 2, 16, 16);
  for (int64_t i = 0; i < 2; i++) {
    const std::vector<double> wantDecoded = doubles(part(floats(io.at("decoded")), i, 2));
    const std::vector<double> wantMoments = doubles(part(floats(io.at("moments")), i, 2));
    const double decodeLimit =
        2 * relativeL2(doubles(naive.decode(part(z, i, 2), 8, 8)), wantDecoded);
    const double encodeLimit =
        2 * relativeL2(doubles(naive.encode(part(x, i, 2), 16, 16)), wantMoments);
    const double decodeError = relativeL2(doubles(part(decoded, i, 2)), wantDecoded);
    const double encodeError = relativeL2(doubles(part(moments, i, 2)), wantMoments);
    EXPECT(decodeError <= decodeLimit, "decode: ", decodeError, " > ", decodeLimit);
    EXPECT(encodeError <= encodeLimit, "encode: ", encodeError, " > ", encodeLimit);
    EXPECT(decodeLimit < 0.05 && encodeLimit < 0.05, "the naive run is itself far off");
  }
}

DIT_CASE("vae/bf16-file") {
  FixtureWeights bf16(kWeights, /*asBf16=*/true);
  const Fixture io(kIo);
  Vae vae(test.ops(), tinyConfig(), bf16, Precision::F32);
  const Values z = Values::of(DType::F32, {4, 8, 8}, [&] {
    const Floats first = part(floats(io.at("z")), 0, 2);
    return std::vector<double>(first.begin(), first.end());
  }());
  const Floats images = decode(vae, z.as<float>(), 1, 8, 8);
  const Values decoded{DType::F32, {3, 16, 16}, {images.begin(), images.end()}};
  EXPECT_MATCHES(decoded, [&]<typename T>(T) {
    return VaeOracle<T>(vae.config(), bf16).decode(z.as<T>(), 8, 8);
  });
}

// Neither the bits of an image nor the memory depend on the number of images.
DIT_CASE("vae/batch") {
  FixtureWeights weights(kWeights);
  const Fixture io(kIo);
  Vae vae(test.ops(), tinyConfig(), weights, Precision::F32);
  const Floats z = floats(io.at("z")), x = floats(io.at("x"));
  const Floats decoded = decode(vae, z, 2, 8, 8);
  const Floats moments = encodeMoments(vae, x, 2, 16, 16);
  const size_t bytes = vae.bytes();
  for (int64_t i = 0; i < 2; i++) {
    EXPECT(decode(vae, part(z, i, 2), 1, 8, 8) == part(decoded, i, 2), "decode, image ", i);
    EXPECT(encodeMoments(vae, part(x, i, 2), 1, 16, 16) == part(moments, i, 2), "encode, image ",
           i);
  }
  Floats many;
  for (int i = 0; i < 4; i++) many.insert(many.end(), z.begin(), z.end());
  const Floats images = decode(vae, many, 8, 8, 8);
  EXPECT(part(images, 3, 4) == decoded);
  EXPECT(vae.bytes() == bytes, vae.bytes(), " bytes, before ", bytes);
}

// Activation memory follows the size of the image, up and down.
DIT_CASE("vae/memory") {
  FixtureWeights weights(kWeights);
  Vae vae(test.ops(), tinyConfig(), weights, Precision::F32);
  const size_t idle = vae.bytes();
  int64_t numbers = 0;
  for (const ParamSpec& param : vaeParams(vae.config())) numbers += param.shape.count();
  EXPECT(idle >= static_cast<size_t>(numbers) * sizeof(float), idle, " bytes of weights");

  const auto activations = [&](int64_t h, int64_t w) {
    decode(vae, Floats(static_cast<size_t>(4 * h * w)), 1, h, w);
    return vae.bytes() - idle;
  };
  // At its peak the decoder holds 32 channels (in) and twice 16 (out) of the full size.
  const size_t need = 64 * 128 * 128 * sizeof(float);
  EXPECT(activations(64, 64) <= need + 4096, activations(64, 64), " bytes, need ", need);
  EXPECT(activations(64, 48) <= need + 4096, "kept: ", activations(64, 48));
  EXPECT(activations(16, 16) <= need / 16 + 4096, "given back: ", activations(16, 16));
}

DIT_CASE("vae/cancel") {
  FixtureWeights weights(kWeights);
  const Fixture io(kIo);
  Vae vae(test.ops(), tinyConfig(), weights, Precision::F32);
  const Floats z = floats(io.at("z")), x = floats(io.at("x"));
  const Floats before = decode(vae, z, 2, 8, 8);
  Floats images(before.size());
  Vae::Decode job{.n = 2, .height = 8, .width = 8, .latents = z.data(), .images = images.data()};
  int calls = 0;
  vae.decode(job, [&] { calls++; });
  EXPECT(calls > 2 * 30, calls, " checkpoints");  // one a layer
  for (const int last : {1, calls / 2, calls}) {
    int left = last;
    EXPECT_ERROR(Aborted, vae.decode(job, [&] {
      if (--left == 0) fail(ErrorCode::Aborted, "enough");
    }));
    EXPECT(decode(vae, z, 2, 8, 8) == before, "after a cancelled decode");
  }
  Floats moments(2 * 8 * 8 * 8);
  EXPECT_ERROR(
      Aborted,
      vae.encode({.n = 2, .height = 16, .width = 16, .images = x.data(), .moments = moments.data()},
                 [] { fail(ErrorCode::Aborted, "at once"); }));
}

DIT_CASE("vae/load-progress") {
  FixtureWeights weights(kWeights);
  int64_t last = 0, all = 0;
  Vae vae(test.ops(), tinyConfig(), weights, Precision::F32, [&](int64_t done, int64_t total) {
    EXPECT(done > last, done, " after ", last);
    last = done;
    all = total;
  });
  EXPECT(last == all && all == 167959, last, " of ", all);
}

DIT_CASE("vae/errors") {
  FixtureWeights weights(kWeights);
  VaeConfig config = tinyConfig();
  config.groups = 5;
  EXPECT_ERROR(Option, Vae(test.ops(), config, weights, Precision::F32));
  config = tinyConfig();
  config.blockOutChannels = {};
  EXPECT_ERROR(Option, Vae(test.ops(), config, weights, Precision::F32));
  config = tinyConfig();
  config.scalingFactor = 0;
  EXPECT_ERROR(Option, Vae(test.ops(), config, weights, Precision::F32));
  config = tinyConfig();
  config.layersPerBlock = 2;  // the file has no such tensors
  EXPECT_ERROR(Format, Vae(test.ops(), config, weights, Precision::F32));
  config = tinyConfig();
  config.latentChannels = 8;  // the file's have other shapes
  EXPECT_ERROR(Format, Vae(test.ops(), config, weights, Precision::F32));

  Vae vae(test.ops(), tinyConfig(), weights, Precision::F32);
  const Floats image(3 * 15 * 16);
  Floats out(1024);
  EXPECT_ERROR(
      Shape,
      vae.encode({.n = 1, .height = 15, .width = 16, .images = image.data(), .latents = out.data()},
                 {}));
  EXPECT_ERROR(Shape, vae.decode({.n = 1, .height = 0, .width = 8, .latents = image.data()}, {}));
  EXPECT_ERROR(Shape, vae.decode({.n = 1, .height = 8, .width = 8}, {}));
}

}  // namespace
}  // namespace dit::test
