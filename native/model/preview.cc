#include "model/preview.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/rng.h"

namespace dit {

namespace {

// Planes [channels, size, size] of normal numbers with the deviation `scale`, as much of it in
// squares of 1, 2, 4 ... `size` pixels. `number` tells one from another.
std::vector<float> octaves(int64_t channels, int64_t size, float scale, int64_t number) {
  int64_t levels = 1;
  while (int64_t{1} << (levels - 1) < size) levels++;
  const float share = scale / std::sqrt(static_cast<float>(levels));
  std::vector<float> planes(static_cast<size_t>(channels * size * size));
  for (int64_t level = 0; level < levels; level++) {
    const int64_t cells = std::max<int64_t>(size >> level, 1);
    std::vector<float> values(static_cast<size_t>((channels * cells * cells + 3) / 4 * 4));
    for (size_t i = 0; i < values.size(); i += 4) {
      normal4(/*seed=*/0, NoiseStream::Latent, static_cast<uint32_t>(1 + number * 64 + level),
              i / 4, &values[i]);
    }
    for (int64_t c = 0; c < channels; c++) {
      for (int64_t y = 0; y < size; y++) {
        for (int64_t x = 0; x < size; x++) {
          const int64_t cell = (c * cells + y * cells / size) * cells + x * cells / size;
          planes[(c * size + y) * size + x] += share * values[cell];
        }
      }
    }
  }
  return planes;
}

float shown(float value) { return std::clamp(value, -1.0f, 1.0f); }

bool finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace

LinearPreview::LinearPreview(const VaeConfig& config)
    : inputs_(config.latentChannels + 1),
      outputs_(config.outChannels),
      moments_(static_cast<size_t>(inputs_ * inputs_)),
      products_(static_cast<size_t>(outputs_ * inputs_)) {}

std::vector<float> LinearPreview::latent(Vae& vae, int64_t i, const Checkpoint& checkpoint) {
  const VaeConfig& config = vae.config();
  if (i % 2) return octaves(config.latentChannels, kSize, 1, i);
  const int64_t size = kSize * vae.downscale();
  // Half of the range: 5 % of a picture are beyond it, as flat black and white.
  std::vector<float> image = octaves(config.inChannels, size, 0.5f, i);
  for (float& value : image) value = shown(value);
  std::vector<float> latent(static_cast<size_t>(config.latentChannels * kSize * kSize));
  vae.encode(
      {.n = 1, .height = size, .width = size, .images = image.data(), .latents = latent.data()},
      checkpoint);
  return latent;
}

void LinearPreview::fit(Vae& vae, const Checkpoint& checkpoint) {
  const int64_t factor = vae.downscale(), size = kSize * factor;
  std::vector<float> pixels(static_cast<size_t>(outputs_ * size * size));
  for (; done_ < kLatents; done_++) {
    const std::vector<float> z = latent(vae, done_, checkpoint);
    vae.decode(
        {.n = 1, .height = kSize, .width = kSize, .latents = z.data(), .images = pixels.data()},
        checkpoint);
    // What a VAE cannot take says nothing about what it can.
    if (finite(z) && finite(pixels)) add(z, pixels, factor);
    if (done_ == kLatents - 1) solve();
  }
}

void LinearPreview::add(const std::vector<float>& latent, const std::vector<float>& pixels,
                        int64_t factor) {
  const int64_t size = kSize * factor;
  std::vector<double> x(static_cast<size_t>(inputs_), 1);
  for (int64_t row = 0; row < kSize; row++) {
    for (int64_t column = 0; column < kSize; column++) {
      for (int64_t i = 0; i < inputs_ - 1; i++) x[i] = latent[(i * kSize + row) * kSize + column];
      for (int64_t i = 0; i < inputs_; i++) {
        for (int64_t j = 0; j < inputs_; j++) moments_[i * inputs_ + j] += x[i] * x[j];
      }
      for (int64_t o = 0; o < outputs_; o++) {
        double sum = 0;
        for (int64_t dy = 0; dy < factor; dy++) {
          const float* line = &pixels[(o * size + row * factor + dy) * size + column * factor];
          for (int64_t dx = 0; dx < factor; dx++) sum += shown(line[dx]);
        }
        const double mean = sum / static_cast<double>(factor * factor);
        for (int64_t i = 0; i < inputs_; i++) products_[o * inputs_ + i] += mean * x[i];
      }
    }
  }
  pixels_ += kSize * kSize;
}

// Ridge regression: map (moments + r I) = products. The ridge, on A only, is 1e-4 of the variance
// of the latents' noise: nothing to a channel that matters, and an answer where one is always zero.
void LinearPreview::solve() {
  std::vector<double> left = moments_;
  map_ = products_;
  const double ridge = 1e-4 * static_cast<double>(std::max<int64_t>(pixels_, 1));
  const int64_t n = inputs_;
  for (int64_t i = 0; i < n; i++) left[i * n + i] += i < n - 1 ? ridge : pixels_ ? 0 : 1;
  // left = L L^T (Cholesky), in its lower triangle.
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = 0; j <= i; j++) {
      double sum = left[i * n + j];
      for (int64_t k = 0; k < j; k++) sum -= left[i * n + k] * left[j * n + k];
      left[i * n + j] = i == j ? std::sqrt(sum) : sum / left[j * n + j];
    }
  }
  for (int64_t o = 0; o < outputs_; o++) {
    double* x = &map_[o * n];
    for (int64_t i = 0; i < n; i++) {
      for (int64_t k = 0; k < i; k++) x[i] -= left[i * n + k] * x[k];
      x[i] /= left[i * n + i];
    }
    for (int64_t i = n - 1; i >= 0; i--) {
      for (int64_t k = i + 1; k < n; k++) x[i] -= left[k * n + i] * x[k];
      x[i] /= left[i * n + i];
    }
  }
}

Picture LinearPreview::picture(const std::vector<float>& latent, int64_t height,
                               int64_t width) const {
  DIT_CHECK(fitted(), ErrorCode::Internal, "a preview before its fit");
  const int64_t pixels = height * width;
  DIT_CHECK(static_cast<int64_t>(latent.size()) == (inputs_ - 1) * pixels, ErrorCode::Internal,
            "a preview of ", latent.size(), " numbers as ", height, " x ", width);
  Picture picture{height, width, outputs_, {}};
  picture.bytes.resize(static_cast<size_t>(pixels * outputs_));
  for (int64_t o = 0; o < outputs_; o++) {
    const double* row = &map_[o * inputs_];
    for (int64_t p = 0; p < pixels; p++) {
      double value = row[inputs_ - 1];
      for (int64_t i = 0; i < inputs_ - 1; i++) value += row[i] * latent[i * pixels + p];
      const double scaled = 127.5 * value + 128;  // as Ops::toRgb8
      // NaN is black there, too.
      const double byte = scaled > 0 ? std::min(scaled, 255.0) : 0;
      picture.bytes[p * outputs_ + o] = static_cast<uint8_t>(byte);
    }
  }
  return picture;
}

}  // namespace dit
