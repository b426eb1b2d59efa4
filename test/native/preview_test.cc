// The linear preview of latents: its fit against a naive one, what it is good for, interruptions.
#include "model/preview.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "fixture.h"
#include "harness.h"
#include "vae_weights.h"

namespace dit::test {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Decoded pixels, as far as they can be shown, averaged over those of each latent pixel:
// [outChannels, h, w].
Doubles averaged(Vae& vae, const Floats& z, int64_t h, int64_t w) {
  const int64_t f = vae.downscale(), channels = vae.config().outChannels;
  Floats images(static_cast<size_t>(channels * h * f * w * f));
  vae.decode({.n = 1, .height = h, .width = w, .latents = z.data(), .images = images.data()}, {});
  Doubles means(static_cast<size_t>(channels * h * w));
  for (int64_t i = 0; i < static_cast<int64_t>(images.size()); i++) {
    const int64_t column = i % (w * f) / f, line = i / (w * f);  // of all channels
    means[line / f * w + column] += std::clamp(images[i], -1.0f, 1.0f) / static_cast<double>(f * f);
  }
  return means;
}

// Least squares by Givens rotations of the rows (x, y), which never forms x x^T.
class NaiveFit {
 public:
  NaiveFit(int64_t inputs, int64_t outputs)
      : n_(inputs), k_(outputs), r_(static_cast<size_t>(inputs * (inputs + outputs))) {}

  void add(Doubles row) {
    const int64_t width = n_ + k_;
    for (int64_t i = 0; i < n_; i++) {
      double* top = &r_[i * width];
      const double norm = std::hypot(top[i], row[i]);
      if (norm == 0) continue;
      const double c = top[i] / norm, s = row[i] / norm;
      for (int64_t j = 0; j < width; j++) {
        const double upper = top[j], lower = row[j];
        top[j] = c * upper + s * lower;
        row[j] = c * lower - s * upper;
      }
    }
  }

  // [outputs, inputs]
  Doubles solution() const {
    Doubles w(static_cast<size_t>(k_ * n_));
    for (int64_t o = 0; o < k_; o++) {
      for (int64_t i = n_ - 1; i >= 0; i--) {
        double sum = r_[i * (n_ + k_) + n_ + o];
        for (int64_t j = i + 1; j < n_; j++) sum -= r_[i * (n_ + k_) + j] * w[o * n_ + j];
        w[o * n_ + i] = sum / r_[i * (n_ + k_) + i];
      }
    }
    return w;
  }

 private:
  int64_t n_, k_;
  Doubles r_;
};

Doubles naiveMap(Vae& vae) {
  constexpr int64_t kSize = LinearPreview::kSize, kPixels = kSize * kSize;
  const int64_t channels = vae.config().latentChannels, outputs = vae.config().outChannels;
  NaiveFit fit(channels + 1, outputs);
  for (int64_t number = 0; number < LinearPreview::kLatents; number++) {
    const Floats z = LinearPreview::latent(vae, number, {});
    const Doubles want = averaged(vae, z, kSize, kSize);
    for (int64_t p = 0; p < kPixels; p++) {
      Doubles row;
      for (int64_t c = 0; c < channels; c++) row.push_back(z[c * kPixels + p]);
      row.push_back(1);
      for (int64_t o = 0; o < outputs; o++) row.push_back(want[o * kPixels + p]);
      fit.add(row);
    }
  }
  // The ridge as rows of its own.
  const double ridge = std::sqrt(1e-4 * static_cast<double>(LinearPreview::kLatents * kPixels));
  for (int64_t c = 0; c < channels; c++) {
    Doubles row(static_cast<size_t>(channels + 1 + outputs));
    row[c] = ridge;
    fit.add(row);
  }
  return fit.solution();
}

void expectFit(Test& test, const VaeConfig& config, WeightSource& weights) {
  Vae vae(test.ops(), config, weights, Precision::F32);
  LinearPreview preview(config);
  EXPECT_ERROR(Internal, preview.picture(Floats(4), 1, 1));
  preview.fit(vae, {});
  const Doubles want = naiveMap(vae);
  EXPECT(preview.map().size() == want.size());
  const double error = relativeL2(preview.map(), want);
  EXPECT(error < 1e-9, error);
  LinearPreview again(config);
  again.fit(vae, {});
  EXPECT(again.map() == preview.map());
}

DIT_CASE("preview/fit") {
  FixtureWeights tiny(kTinyVaeWeights);
  expectFit(test, tinyConfig(), tiny);
  VaeConfig grey = tinyConfig();
  grey.inChannels = grey.outChannels = 1;
  grey.latentChannels = 16;
  grey.scalingFactor = 0.3f;
  grey.shiftFactor = 0.1f;
  RandomVaeWeights greyWeights(test, grey);
  expectFit(test, grey, greyWeights);
  VaeConfig flat = tinyConfig();  // latents as large as the picture, of one channel
  flat.blockOutChannels = {16};
  flat.latentChannels = 1;
  RandomVaeWeights flatWeights(test, flat);
  expectFit(test, flat, flatWeights);
}

Floats normals(int64_t count, uint64_t seed) {
  Floats values(static_cast<size_t>((count + 3) / 4 * 4));
  for (size_t i = 0; i < values.size(); i += 4) {
    normal4(seed, NoiseStream::Latent, 0, i / 4, &values[i]);
  }
  values.resize(static_cast<size_t>(count));
  return values;
}

// A decoder that is nearly linear and hardly mixes neighbours, as trained ones are in the large:
// its residual branches do little, and the SiLU at its end sees numbers where it is nearly
// straight.
RandomVaeWeights tameWeights(Test& test, const VaeConfig& config) {
  RandomVaeWeights weights(test, config);
  for (const ParamSpec& param : vaeParams(config)) {
    const std::string& name = param.name;
    if (!name.starts_with("decoder.") || !name.ends_with(".weight")) continue;
    const bool branch = name.ends_with("conv2.weight") || name.ends_with("to_out.0.weight");
    const bool path = name.ends_with("conv_in.weight") || name.ends_with("conv_out.weight") ||
                      name.find("upsamplers") != std::string::npos;
    if (branch) weights.change(name, 0.1f);
    if (path) weights.change(name, name.ends_with("conv_out.weight") ? 1 : 3, 0, /*middle=*/true);
  }
  weights.change("decoder.conv_norm_out.bias", 1, 2);
  return weights;
}

// The share of the averaged pixels' variance that previews explain, for latents made of `seed`.
double explained(Vae& vae, const LinearPreview& preview, int64_t coarse, uint64_t seed) {
  constexpr int64_t kSize = 24;
  const int64_t channels = vae.config().latentChannels, outputs = vae.config().outChannels;
  const Floats squares = normals(channels * kSize * kSize, seed);
  Floats z;
  for (int64_t i = 0; i < channels * kSize * kSize; i++) {
    const int64_t x = i % kSize, line = i / kSize;  // of all channels
    z.push_back(squares[line / coarse * coarse * kSize + x / coarse * coarse]);
  }
  const Picture picture = preview.picture(z, kSize, kSize);
  const Doubles want = averaged(vae, z, kSize, kSize);
  double error = 0, variance = 0;
  for (int64_t o = 0; o < outputs; o++) {
    double mean = 0;
    for (int64_t p = 0; p < kSize * kSize; p++)
      mean += want[o * kSize * kSize + p] / (kSize * kSize);
    for (int64_t p = 0; p < kSize * kSize; p++) {
      const double got = (picture.bytes[p * outputs + o] - 127.5) / 127.5;
      error += std::pow(got - want[o * kSize * kSize + p], 2);
      variance += std::pow(want[o * kSize * kSize + p] - mean, 2);
    }
  }
  return 1 - error / variance;
}

// Latents that the fit has not seen, of another size: noise, and squares of 8 pixels.
DIT_CASE("preview/quality") {
  VaeConfig config = tinyConfig();
  const RandomVaeWeights tame = tameWeights(test, config);
  RandomVaeWeights weights = tame;
  Vae vae(test.ops(), config, weights, Precision::F32);
  LinearPreview preview(config);
  preview.fit(vae, {});
  for (uint64_t seed = 1; seed <= 3; seed++) {
    const double noise = explained(vae, preview, 1, seed),
                 squares = explained(vae, preview, 8, seed);
    EXPECT(noise > 0.5 && squares > 0.5, "explained: ", noise, " and ", squares);
  }
}

// What was fitted before an interruption is not done again, and the result is the same.
DIT_CASE("preview/interrupted") {
  FixtureWeights tiny(kTinyVaeWeights);
  Vae vae(test.ops(), tinyConfig(), tiny, Precision::F32);
  LinearPreview whole(vae.config());
  int calls = 0;
  whole.fit(vae, [&] { calls++; });
  LinearPreview parts(vae.config());
  int interruptions = 0, left = 0;
  while (!parts.fitted()) {
    left = calls / LinearPreview::kLatents + 20;  // enough for one latent, not for two
    try {
      parts.fit(vae, [&] {
        if (--left == 0) fail(ErrorCode::Aborted, "enough");
      });
    } catch (const Error& error) {
      interruptions++;
      EXPECT(error.code() == ErrorCode::Aborted);
      if (interruptions > LinearPreview::kLatents) break;
    }
  }
  EXPECT(interruptions > 0 && parts.fitted(), interruptions);
  EXPECT(parts.map() == whole.map());
}

DIT_CASE("preview/picture") {
  FixtureWeights tiny(kTinyVaeWeights);
  Vae vae(test.ops(), tinyConfig(), tiny, Precision::F32);
  LinearPreview preview(vae.config());
  preview.fit(vae, {});
  constexpr int64_t kHeight = 5, kWidth = 3, kPixels = kHeight * kWidth;
  Floats z = normals(4 * kPixels, 1);
  z[4] = 1e6f;
  z[7] = NAN;
  const Picture picture = preview.picture(z, kHeight, kWidth);
  EXPECT(picture.height == kHeight && picture.width == kWidth && picture.channels == 3);
  EXPECT(picture.bytes.size() == 3 * kPixels);
  for (int64_t p = 0; p < kPixels; p++) {
    for (int64_t o = 0; o < 3; o++) {
      const double* row = &preview.map()[o * 5];
      double value = row[4];
      for (int64_t c = 0; c < 4; c++) value += row[c] * z[c * kPixels + p];
      const double want =
          std::isnan(value) ? 0 : std::clamp(std::floor(127.5 * value + 128), 0., 255.);
      EXPECT(picture.bytes[p * 3 + o] == want, p, ", ", o, ": ", int(picture.bytes[p * 3 + o]));
    }
  }
  EXPECT_ERROR(Internal, preview.picture(z, kHeight, kWidth + 1));
}

// A VAE that makes nothing of anything, or only NaN, has grey previews.
DIT_CASE("preview/hopeless") {
  for (const float scale : {0.0f, NAN}) {
    RandomVaeWeights weights(test, tinyConfig());
    for (const ParamSpec& param : vaeParams(tinyConfig())) weights.change(param.name, scale);
    Vae vae(test.ops(), tinyConfig(), weights, Precision::F32);
    LinearPreview preview(vae.config());
    preview.fit(vae, {});
    const Picture picture = preview.picture(normals(4 * 4, 1), 2, 2);
    EXPECT(picture.bytes == std::vector<uint8_t>(12, 128), "times ", scale);
  }
}

}  // namespace
}  // namespace dit::test
