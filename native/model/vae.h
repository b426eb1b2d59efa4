#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/rng.h"
#include "model/callbacks.h"
#include "model/vae_layers.h"
#include "ops/ops.h"

namespace dit {

// AutoencoderKL, the autoencoder of latent diffusion. Images and latents of callers are in host
// memory. One image after another passes through the network, so neither the memory nor the bits
// of a result depend on how many there are.
class Vae {
 public:
  Vae(Ops& ops, const VaeConfig& config, WeightSource& weights, Precision precision,
      const LoadProgress& progress = {});

  const VaeConfig& config() const { return config_; }
  // Pixels of an image per number of its latent, in each direction.
  int64_t downscale() const { return config_.downscale(); }
  // Device memory: weights, and the activations of the largest image of late (kept for the next).
  size_t bytes() const { return weightBytes_ + activations_.bytes(); }

  struct Decode {
    int64_t n = 0, height = 0, width = 0;  // of the latents
    const float* latents = nullptr;        // [n, latentChannels, height, width], the model's scale
    // Either or both, with H = height * downscale(), W = width * downscale():
    uint8_t* rgb8 = nullptr;  // [n, H, W, outChannels]
    float* images = nullptr;  // [n, outChannels, H, W], nominally -1 .. 1
  };
  void decode(const Decode& job, const Checkpoint& checkpoint, const Probe& probe = {});

  struct Encode {
    int64_t n = 0, height = 0, width = 0;  // of the images: multiples of downscale()
    const float* images = nullptr;         // [n, inChannels, height, width], -1 .. 1
    // What the latent is taken from the posterior with: n seeds (Philox, NoiseStream::Moments), or
    // standard normal numbers [n, latentChannels, h, w]; neither: the posterior's mean.
    const uint64_t* seeds = nullptr;
    const float* noise = nullptr;
    // Either or both, with h = height / downscale(), w = width / downscale():
    float* latents = nullptr;  // [n, latentChannels, h, w], the model's scale
    float* moments =
        nullptr;  // [n, 2 latentChannels, h, w]: means, then log variances, not clamped
  };
  void encode(const Encode& job, const Checkpoint& checkpoint, const Probe& probe = {});

 private:
  class Pass;
  // Image i of a job through the network.
  void decodeImage(Pass& pass, const Decode& job, int64_t i) const;
  void encodeImage(Pass& pass, const Encode& job, int64_t i) const;
  template <typename Job>
  void runImages(const Job& job, void (Vae::*image)(Pass&, const Job&, int64_t) const,
                 const Checkpoint& checkpoint, const Probe& probe);

  Ops& ops_;
  VaeConfig config_;
  Precision precision_;
  VaeLayers layers_;
  DeviceBuffer parameters_;  // biases and norms
  size_t weightBytes_;
  DeviceBuffer activations_;
};

}  // namespace dit
