#pragma once

#include <cstdint>
#include <vector>

#include "model/callbacks.h"
#include "model/sampler.h"
#include "model/vae.h"

namespace dit {

// A cheap look at a latent: each of its pixels z becomes one pixel A z + b, where A and b are those
// that come nearest to what the VAE makes of z. They are fitted once, by least squares, between
// latents and their decoded pixels, averaged over the downscale() x downscale() pixels that belong
// to each number of the latent.
//
// A decoder is not linear, so the fit depends on the latents it is made for. Half of them are
// latents of pictures: random ones with as much contrast in every octave of size, as photographs
// have (a power spectrum of 1 / f^2; Field 1987), through the encoder, whose latents are the ones
// that a model learns to make. Half are such noise itself, with the variance 1 that the VAE's scale
// aims at, independent in all channels: they have every direction of z, also where pictures of
// three channels do not, or an encoder says nothing.
class LinearPreview {
 public:
  // Of the fit: latents, and their height and width.
  static constexpr int64_t kLatents = 4, kSize = 16;

  explicit LinearPreview(const VaeConfig& config);

  // Does what is missing of the fit. Where `checkpoint` throws, the next call goes on from there.
  void fit(Vae& vae, const Checkpoint& checkpoint);
  bool fitted() const { return done_ == kLatents; }

  // The picture [height, width, outChannels] of a latent [latentChannels, height, width].
  Picture picture(const std::vector<float>& latent, int64_t height, int64_t width) const;

  // [outChannels, latentChannels + 1]: A, and b as its last column.
  const std::vector<double>& map() const { return map_; }

  // Latent number i of the fit [latentChannels, kSize, kSize], in the model's scale.
  static std::vector<float> latent(Vae& vae, int64_t i, const Checkpoint& checkpoint);

 private:
  void add(const std::vector<float>& latent, const std::vector<float>& pixels, int64_t factor);
  void solve();

  int64_t inputs_, outputs_;
  int64_t done_ = 0;  // latents
  int64_t pixels_ = 0;
  // Normal equations: sums over pixels of x x^T and y x^T, with x = (z, 1).
  std::vector<double> moments_, products_;
  std::vector<double> map_;
};

}  // namespace dit
