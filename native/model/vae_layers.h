#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/arena.h"
#include "model/callbacks.h"
#include "model/weights.h"
#include "ops/ops.h"

// What an AutoencoderKL (Rombach et al. 2022; the layer names are those of diffusers) consists of.
// How its parts work together is in vae.cc.

namespace dit {

struct VaeConfig {
  int64_t inChannels = 3, outChannels = 3;  // of the images that are encoded and decoded
  int64_t latentChannels = 4;
  // Channels of each resolution, the finest first; neighbours differ by a factor of 2 in size.
  std::vector<int64_t> blockOutChannels = {128, 256, 512, 512};
  int64_t layersPerBlock = 2;  // residual blocks a resolution in the encoder; the decoder has +1
  int64_t groups = 32;         // of every group norm
  // latent of the model = (z - shiftFactor) * scalingFactor
  float scalingFactor = 0.18215f, shiftFactor = 0;
  bool quantConv = true, postQuantConv = true, midAttention = true;

  int64_t downscale() const { return int64_t{1} << (blockOutChannels.size() - 1); }
};

// A convolution with a square kernel, or (kernel 1) a linear layer over the channels of each pixel.
// Several names: layers that share their input, run as one; their outputs follow one another.
struct ConvLayer {
  std::vector<std::string> names;
  int64_t in = 0, out = 0;  // channels; `out` of all names together
  int64_t kernel = 3;
  bool linear = false;    // the checkpoint has [out, in], not [out, in, 1, 1]
  bool upsample = false;  // of an image that is first doubled in height and width
  std::unique_ptr<PreparedWeight> weight = {};
  Tensor bias = {};
};

struct NormLayer {
  std::string name;
  int64_t channels = 0;
  Tensor gamma = {}, beta = {};
};

struct VaeResnet {
  NormLayer norm1;
  ConvLayer conv1;
  NormLayer norm2;
  ConvLayer conv2;
  std::optional<ConvLayer> shortcut;  // where the number of channels changes
};

struct VaeAttention {
  NormLayer norm;
  ConvLayer qkv, out;
};

// Residual blocks of one resolution, then the step to the next (the last level has none).
struct VaeLevel {
  std::vector<VaeResnet> resnets;
  std::optional<ConvLayer> resample;
};

struct VaeMiddle {
  VaeResnet first;
  std::optional<VaeAttention> attention;
  VaeResnet second;
};

// Encoder: convIn, levels, middle, normOut, convOut. Decoder: convIn, middle, levels, ...
struct VaeHalf {
  ConvLayer convIn;
  std::vector<VaeLevel> levels;
  VaeMiddle middle;
  NormLayer normOut;
  ConvLayer convOut;
};

struct VaeLayers {
  VaeHalf encoder, decoder;
  std::optional<ConvLayer> quantConv, postQuantConv;
};

// Names and sizes of all layers, without values. Throws Option for a config that cannot be.
VaeLayers describeVae(const VaeConfig& config);

// The parameters of all layers under diffusers' (new) names, in the order of a checkpoint.
std::vector<ParamSpec> vaeParams(const VaeConfig& config);

// Gives all layers their values; biases and norms go to the buffer that is returned.
DeviceBuffer loadVae(VaeLayers& layers, Ops& ops, WeightSource& source, Precision precision,
                     const LoadProgress& progress);

// Device memory held by the weights of all convolutions.
size_t vaeWeightBytes(VaeLayers& layers);

}  // namespace dit
