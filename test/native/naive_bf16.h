#pragma once

#include <vector>

#include "forwarding_backend.h"

namespace dit::test {

// A naive bf16 run of a network that works in fp32: the operations of another backend, with the
// weights of products and convolutions and every activation of DiT and VAE rounded to bf16. What
// bf16 may cost at sizes where the oracle takes too long is measured with it.
class NaiveBf16Backend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) override {
    const float* values = args.values.as<float>();
    std::vector<float> copy(values, values + args.values.count());
    round(copy);
    return inner().prepareLinear({.values = Tensor(copy.data(), DType::F32, args.values.shape),
                                  .rows = args.rows,
                                  .precision = args.precision});
  }
  void linear(const LinearArgs& args) override {
    inner().linear(args);
    round(args.y);
  }
  void layerNormModulate(const LayerNormModulateArgs& args) override {
    inner().layerNormModulate(args);
    round(args.y);
  }
  void silu(const SiluArgs& args) override {
    inner().silu(args);
    round(args.y);
  }
  void timestepEmbedding(const TimestepEmbeddingArgs& args) override {
    inner().timestepEmbedding(args);
    round(args.y);
  }
  void patchify(const PatchifyArgs& args) override {
    inner().patchify(args);
    round(args.y);
  }

  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) override {
    const float* values = args.values.as<float>();
    std::vector<float> copy(values, values + args.values.count());
    round(copy);
    return inner().prepareConv({.values = Tensor(copy.data(), DType::F32, args.values.shape),
                                .precision = args.precision,
                                .upsample = args.upsample});
  }
  void conv2d(const Conv2dArgs& args) override {
    inner().conv2d(args);
    round(args.y);
  }
  void groupNorm(const GroupNormArgs& args) override {
    inner().groupNorm(args);
    round(args.y);
  }
  void attention(const AttentionArgs& args) override {
    inner().attention(args);
    round(args.y);
  }
  void toChannelsLast(const ToChannelsLastArgs& args) override {
    inner().toChannelsLast(args);
    round(args.y);
  }

 private:
  static void round(std::vector<float>& values) {
    for (float& x : values) x = bf16ToFloat(floatToBf16(x));
  }
  void round(const Tensor& device) {
    std::vector<float> values(static_cast<size_t>(device.count()));
    inner().download(values.data(), device);
    round(values);
    inner().upload(device, values.data());
  }
};

}  // namespace dit::test
