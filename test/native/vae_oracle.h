#pragma once

#include <string>
#include <vector>

#include "model/vae_layers.h"
#include "oracle.h"

// AutoencoderKL from the oracle's operations, one image at a time. In double it is the truth; in
// float it is the naive run; with `bf16` each operation's activations and matrices are rounded to
// bf16 first, as a naive run in that precision does.

namespace dit::test {

template <typename T>
class VaeOracle {
 public:
  using Vector = oracle::Vector<T>;

  VaeOracle(const VaeConfig& config, WeightSource& weights, bool bf16 = false)
      : config_(config), weights_(weights), bf16_(bf16) {}

  // z [latentChannels, h, w] in the VAE's own scale -> [outChannels, H, W].
  Vector decode(const Vector& z, int64_t h, int64_t w) {
    load(z, config_.latentChannels, h, w);
    const std::vector<int64_t>& channels = config_.blockOutChannels;
    const int64_t levels = static_cast<int64_t>(channels.size());
    if (config_.postQuantConv) conv("post_quant_conv", config_.latentChannels, 1);
    conv("decoder.conv_in", channels.back());
    middle("decoder.mid_block");
    for (int64_t level = 0; level < levels; level++) {
      const std::string name = "decoder.up_blocks." + std::to_string(level);
      for (int64_t i = 0; i <= config_.layersPerBlock; i++) {
        resnet(name + ".resnets." + std::to_string(i), channels[levels - 1 - level]);
      }
      if (level + 1 < levels) {
        conv(name + ".upsamplers.0.conv", shape_.ci, 3, {.upsample = true});
      }
    }
    norm("decoder.conv_norm_out", true);
    conv("decoder.conv_out", config_.outChannels);
    return oracle::toChannelsFirst<T>(1, shape_.ci, shape_.h * shape_.w, x_);
  }

  // images [inChannels, H, W] -> [2 latentChannels, h, w], means and log variances.
  Vector encode(const Vector& image, int64_t h, int64_t w) {
    load(image, config_.inChannels, h, w);
    const std::vector<int64_t>& channels = config_.blockOutChannels;
    conv("encoder.conv_in", channels.front());
    for (size_t level = 0; level < channels.size(); level++) {
      const std::string name = "encoder.down_blocks." + std::to_string(level);
      for (int64_t i = 0; i < config_.layersPerBlock; i++) {
        resnet(name + ".resnets." + std::to_string(i), channels[level]);
      }
      if (level + 1 < channels.size()) {
        conv(name + ".downsamplers.0.conv", shape_.ci, 3, {.downsample = true});
      }
    }
    middle("encoder.mid_block");
    norm("encoder.conv_norm_out", true);
    conv("encoder.conv_out", 2 * config_.latentChannels);
    if (config_.quantConv) conv("quant_conv", 2 * config_.latentChannels, 1);
    return oracle::toChannelsFirst<T>(1, shape_.ci, shape_.h * shape_.w, x_);
  }

 private:
  struct How {
    bool upsample = false, downsample = false;
  };

  void load(const Vector& planes, int64_t c, int64_t h, int64_t w) {
    x_ = oracle::toChannelsLast<T>(1, c, h * w, planes, 1, 0);
    shape_ = {.n = 1, .h = h, .w = w, .ci = c, .co = c, .kh = 1, .kw = 1};
  }

  Vector param(const std::string& name) {
    const Tensor values = weights_.read(name, false);
    Vector v(values.as<float>(), values.as<float>() + values.count());
    return values.shape.rank() > 1 ? rounded(std::move(v)) : v;
  }

  Vector rounded(Vector v) const {
    if (!bf16_) return v;
    for (T& x : v) x = static_cast<T>(bf16ToFloat(floatToBf16(static_cast<float>(x))));
    return v;
  }

  Vector convolved(const std::string& name, const Vector& x, int64_t out, int64_t kernel,
                   const Vector& residual = {}, How how = {}) {
    oracle::ConvShape s = shape_;
    s.co = out;
    s.kh = s.kw = kernel;
    s.upsample = how.upsample;
    s.padTop = s.padLeft = how.downsample ? 0 : kernel / 2;
    s.padBottom = s.padRight = kernel / 2;
    s.stride = how.downsample ? 2 : 1;
    Vector y = oracle::conv2d<T>(s, rounded(x), param(name + ".weight"), param(name + ".bias"),
                                 rounded(residual));
    shape_.h = s.outHeight();
    shape_.w = s.outWidth();
    shape_.ci = out;
    return y;
  }

  void conv(const std::string& name, int64_t out, int64_t kernel = 3, How how = {}) {
    x_ = convolved(name, x_, out, kernel, {}, how);
  }

  Vector normed(const std::string& name, const Vector& x, bool silu) {
    return oracle::groupNorm<T>(1, shape_.h * shape_.w, shape_.ci, config_.groups, rounded(x),
                                param(name + ".weight"), param(name + ".bias"), silu);
  }

  void norm(const std::string& name, bool silu) { x_ = normed(name, x_, silu); }

  void resnet(const std::string& name, int64_t out) {
    const int64_t in = shape_.ci;
    Vector skip = x_;
    if (weights_.has(name + ".conv_shortcut.weight")) {
      skip = convolved(name + ".conv_shortcut", x_, out, 1);
      shape_.ci = in;
    }
    norm(name + ".norm1", true);
    conv(name + ".conv1", out);
    norm(name + ".norm2", true);
    x_ = convolved(name + ".conv2", x_, out, 3, skip);
  }

  void middle(const std::string& name) {
    resnet(name + ".resnets.0", shape_.ci);
    if (config_.midAttention) attention(name + ".attentions.0");
    resnet(name + ".resnets.1", shape_.ci);
  }

  void attention(const std::string& name) {
    const int64_t tokens = shape_.h * shape_.w, c = shape_.ci;
    const Vector n = normed(name + ".group_norm", x_, false);
    const Vector parts[3] = {convolved(name + ".to_q", n, c, 1), convolved(name + ".to_k", n, c, 1),
                             convolved(name + ".to_v", n, c, 1)};
    Vector qkv;
    for (int64_t t = 0; t < tokens; t++) {
      for (const Vector& part : parts) {
        qkv.insert(qkv.end(), &part[t * c], &part[t * c] + c);
      }
    }
    const Vector attended = oracle::attention<T>(1, tokens, c, 1, rounded(qkv));
    x_ = convolved(name + ".to_out.0", attended, c, 1, x_);
  }

  const VaeConfig& config_;
  WeightSource& weights_;
  bool bf16_;
  oracle::ConvShape shape_{};  // of x_: n, h, w, ci
  Vector x_;                   // [1, H, W, C]
};

}  // namespace dit::test
