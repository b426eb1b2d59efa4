#include "model/vae.h"

#include "core/two_ended_arena.h"

namespace dit {

// One image on its way through the network. `x_`, the activation that the layers hand on, lies at
// one end of the arena. A layer that cannot work in place puts its result at the other end, and
// the ends change roles. With an arena that measures, nothing is computed.
class Vae::Pass {
 public:
  Pass(Ops& ops, const VaeConfig& config, Precision precision, TwoEndedArena& arena,
       const Checkpoint& checkpoint, const Probe& probe)
      : ops_(ops),
        config_(config),
        precision_(precision),
        act_(precision == Precision::BF16 ? DType::BF16 : DType::F32),
        arena_(arena),
        checkpoint_(checkpoint),
        probe_(probe) {}

  // x = values * scale + shift; values [1, C, H, W] in host memory.
  void begin(const float* values, const Shape& shape, float scale = 1, float shift = 0) {
    const Tensor planes = makeHere(DType::F32, shape);
    upload(planes, values);
    const Tensor y = makeThere(act_, {1, shape[2], shape[3], shape[1]});
    step([&] { ops_.toChannelsLast({.x = planes, .scale = scale, .shift = shift, .y = y}); });
    moveTo(y);
  }

  void conv(const ConvLayer& layer) {
    const Tensor y = makeThere(act_, {1, x_.shape[1], x_.shape[2], layer.out});
    conv(layer, x_, y);
    moveTo(y);
  }

  // y = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))
  void resnet(const VaeResnet& layer) {
    const Shape shape{1, x_.shape[1], x_.shape[2], layer.conv2.out};
    if (layer.shortcut) {
      const Tensor y = makeThere(act_, shape);
      conv(*layer.shortcut, x_, y);
      norm(layer.norm1, x_, x_, /*silu=*/true);
      const Tensor hidden = makeThere(act_, shape);
      conv(layer.conv1, x_, hidden);
      norm(layer.norm2, hidden, hidden, /*silu=*/true);
      conv(layer.conv2, hidden, y, /*residual=*/y);
      moveTo(y);
    } else {
      const Tensor normed = makeThere(act_, shape), hidden = makeThere(act_, shape);
      norm(layer.norm1, x_, normed, /*silu=*/true);
      conv(layer.conv1, normed, hidden);
      norm(layer.norm2, hidden, hidden, /*silu=*/true);
      conv(layer.conv2, hidden, x_, /*residual=*/x_);
      clearThere();
    }
  }

  // x = x + out(attention(qkv(norm(x)))), one head of all channels, among all pixels.
  void attention(const VaeAttention& layer) {
    const int64_t height = x_.shape[1], width = x_.shape[2], C = x_.shape[3];
    const Tensor normed = makeThere(act_, x_.shape);
    const Tensor qkv = makeThere(act_, {1, height, width, 3 * C});
    norm(layer.norm, x_, normed, /*silu=*/false);
    conv(layer.qkv, normed, qkv);
    const Tensor& attended = normed;
    step([&] {
      ops_.attention({.qkv = qkv.reshape({1, height * width, 3 * C}),
                      .y = attended.reshape({1, height * width, C}),
                      .heads = 1,
                      .tf32 = precision_ == Precision::TF32});
    });
    conv(layer.out, attended, x_, /*residual=*/x_);
    clearThere();
  }

  // Half the height and width. The kernel reaches one pixel over the right and the bottom edge.
  void downsample(const ConvLayer& layer) {
    const Tensor y = makeThere(act_, {1, x_.shape[1] / 2, x_.shape[2] / 2, layer.out});
    step([&] {
      ops_.conv2d({.x = x_,
                   .weight = layer.weight.get(),
                   .bias = layer.bias,
                   .y = y,
                   .stride = 2,
                   .padBottom = 1,
                   .padRight = 1});
    });
    moveTo(y);
  }

  // Twice the height and width: nearest neighbour, then a convolution.
  void upsample(const ConvLayer& layer) {
    const Tensor y = makeThere(act_, {1, 2 * x_.shape[1], 2 * x_.shape[2], layer.out});
    conv(layer, x_, y);
    moveTo(y);
  }

  void middle(const VaeMiddle& layer, const std::string& name) {
    resnet(layer.first);
    if (layer.attention) {
      attention(*layer.attention);
      show(name + ".mid_attn");
    }
    resnet(layer.second);
    show(name + ".mid_block");
  }

  // x = silu(norm(x))
  void normOut(const NormLayer& layer) { norm(layer, x_, x_, /*silu=*/true); }

  void show(const std::string& name) const {
    if (probe_ && !arena_.measuring()) probe_(name, x_);
  }

  // Results, to host memory.

  void rgb8(uint8_t* host) {
    const Tensor y = makeThere(DType::U8, x_.shape);
    step([&] { ops_.toRgb8({.x = x_, .y = y}); });
    download(host, y);
    clearThere();
  }

  // [1, C, H, W]
  void planes(float* host) {
    const Tensor y = makeThere(DType::F32, {1, x_.shape[3], x_.shape[1], x_.shape[2]});
    step([&] { ops_.toChannelsFirst({.x = x_, .y = y}); });
    download(host, y);
    clearThere();
  }

  // The posterior's [mean | log variance] to a latent [1, C, H, W] in the model's scale.
  void latent(const uint64_t* seed, const float* noise, float* host) {
    const Shape shape{1, config_.latentChannels, x_.shape[1], x_.shape[2]};
    const Tensor y = makeThere(DType::F32, shape);
    Tensor z;
    if (seed || noise) z = makeThere(DType::F32, shape);
    if (noise) {
      upload(z, noise);
    } else if (seed) {
      step([&] {
        ops_.noise({.seed = *seed, .stream = static_cast<uint32_t>(NoiseStream::Moments), .y = z});
      });
    }
    step([&] {
      ops_.sampleMoments({.moments = x_,
                          .noise = z,
                          .scale = config_.scalingFactor,
                          .shift = config_.shiftFactor,
                          .y = y});
    });
    download(host, y);
    clearThere();
  }

 private:
  // ---- one operation ----

  template <typename Operation>
  void step(const Operation& operation) {
    if (arena_.measuring()) return;
    if (checkpoint_) checkpoint_();
    operation();
  }

  void conv(const ConvLayer& layer, const Tensor& x, const Tensor& y, const Tensor& residual = {}) {
    const int64_t pad = layer.kernel / 2;
    step([&] {
      ops_.conv2d({.x = x,
                   .weight = layer.weight.get(),
                   .bias = layer.bias,
                   .residual = residual,
                   .y = y,
                   .padTop = pad,
                   .padLeft = pad,
                   .padBottom = pad,
                   .padRight = pad,
                   .upsample = layer.upsample});
    });
  }

  void norm(const NormLayer& layer, const Tensor& x, const Tensor& y, bool silu) {
    step([&] {
      ops_.groupNorm({.x = x,
                      .gamma = layer.gamma,
                      .beta = layer.beta,
                      .groups = config_.groups,
                      .silu = silu,
                      .y = y});
    });
  }

  void upload(const Tensor& to, const float* values) {
    if (!arena_.measuring()) ops_.backend().upload(to, values);
  }
  void download(void* host, const Tensor& from) {
    if (!arena_.measuring()) ops_.backend().download(host, from);
  }

  // ---- memory ----

  Tensor makeHere(DType dtype, const Shape& shape) { return arena_.make(end_, dtype, shape); }
  Tensor makeThere(DType dtype, const Shape& shape) { return arena_.make(1 - end_, dtype, shape); }
  void clearThere() { arena_.release(1 - end_, 0); }

  // x = y, the first tensor at the other end; everything else is given back.
  void moveTo(const Tensor& y) {
    arena_.release(end_, 0);
    end_ = 1 - end_;
    arena_.release(end_, 0);
    x_ = arena_.make(end_, y.dtype, y.shape);
  }

  Ops& ops_;
  const VaeConfig& config_;
  Precision precision_;
  DType act_;
  TwoEndedArena& arena_;
  const Checkpoint& checkpoint_;
  const Probe& probe_;
  int end_ = 0;
  Tensor x_;  // [1, H, W, C]
};

Vae::Vae(Ops& ops, const VaeConfig& config, WeightSource& weights, Precision precision,
         const LoadProgress& progress)
    : ops_(ops),
      config_(config),
      precision_(precision),
      layers_(describeVae(config)),
      parameters_(loadVae(layers_, ops, weights, precision, progress)),
      weightBytes_(vaeWeightBytes(layers_) + parameters_.bytes()) {}

void Vae::decodeImage(Pass& pass, const Decode& job, int64_t i) const {
  const VaeHalf& decoder = layers_.decoder;
  const Shape shape{1, config_.latentChannels, job.height, job.width};

  pass.begin(job.latents + i * shape.count(), shape, 1 / config_.scalingFactor,
             config_.shiftFactor);
  if (layers_.postQuantConv) {
    pass.conv(*layers_.postQuantConv);
    pass.show("dec.post_quant_conv");
  }
  pass.conv(decoder.convIn);
  pass.show("dec.conv_in");
  pass.middle(decoder.middle, "dec");
  for (size_t level = 0; level < decoder.levels.size(); level++) {
    for (const VaeResnet& resnet : decoder.levels[level].resnets) pass.resnet(resnet);
    if (decoder.levels[level].resample) pass.upsample(*decoder.levels[level].resample);
    pass.show("dec.up_blocks." + std::to_string(level));
  }
  pass.normOut(decoder.normOut);
  pass.show("dec.norm_out");
  // In bf16 too the picture has the type of the activations: rounding it is worth at most a quarter
  // of a step of the bytes, and little beside what bf16 costs before.
  pass.conv(decoder.convOut);

  const int64_t pixels = shape.count() / config_.latentChannels * downscale() * downscale();
  const int64_t numbers = pixels * config_.outChannels;
  if (job.rgb8) pass.rgb8(job.rgb8 + i * numbers);
  if (job.images) pass.planes(job.images + i * numbers);
}

void Vae::encodeImage(Pass& pass, const Encode& job, int64_t i) const {
  const VaeHalf& encoder = layers_.encoder;
  const Shape shape{1, config_.inChannels, job.height, job.width};

  pass.begin(job.images + i * shape.count(), shape);
  pass.conv(encoder.convIn);
  pass.show("enc.conv_in");
  for (size_t level = 0; level < encoder.levels.size(); level++) {
    for (const VaeResnet& resnet : encoder.levels[level].resnets) pass.resnet(resnet);
    if (encoder.levels[level].resample) pass.downsample(*encoder.levels[level].resample);
    pass.show("enc.down_blocks." + std::to_string(level));
  }
  pass.middle(encoder.middle, "enc");
  pass.normOut(encoder.normOut);
  pass.conv(encoder.convOut);
  if (layers_.quantConv) pass.conv(*layers_.quantConv);
  pass.show("enc.moments");

  const int64_t numbers =
      config_.latentChannels * (job.height / downscale()) * (job.width / downscale());
  if (job.moments) pass.planes(job.moments + i * 2 * numbers);
  if (job.latents) {
    pass.latent(job.seeds ? job.seeds + i : nullptr, job.noise ? job.noise + i * numbers : nullptr,
                job.latents + i * numbers);
  }
}

// Measures what one image needs, makes sure that there is so much memory (keeping what there is,
// unless more than half of it would lie idle), then takes one image after another through it.
template <typename Job>
void Vae::runImages(const Job& job, void (Vae::*image)(Pass&, const Job&, int64_t) const,
                    const Checkpoint& checkpoint, const Probe& probe) {
  TwoEndedArena measure;
  Pass dryRun(ops_, config_, precision_, measure, checkpoint, probe);
  (this->*image)(dryRun, job, 0);
  const size_t need = measure.peak();
  if (need > activations_.bytes() || need < activations_.bytes() / 2) {
    activations_ = DeviceBuffer();
    activations_ = DeviceBuffer(ops_.backend(), need);
  }
  for (int64_t i = 0; i < job.n; i++) {
    TwoEndedArena arena(activations_.data(), activations_.bytes());
    Pass pass(ops_, config_, precision_, arena, checkpoint, probe);
    (this->*image)(pass, job, i);
  }
}

void Vae::decode(const Decode& job, const Checkpoint& checkpoint, const Probe& probe) {
  DIT_CHECK(job.n >= 0 && job.height > 0 && job.width > 0 && job.latents, ErrorCode::Shape,
            "decode: expected latents [n, ", config_.latentChannels, ", h, w], got [", job.n, ", ",
            config_.latentChannels, ", ", job.height, ", ", job.width, "]");
  runImages(job, &Vae::decodeImage, checkpoint, probe);
}

void Vae::encode(const Encode& job, const Checkpoint& checkpoint, const Probe& probe) {
  const int64_t factor = downscale();
  DIT_CHECK(job.n >= 0 && job.height > 0 && job.width > 0 && job.images, ErrorCode::Shape,
            "encode: expected images [n, ", config_.inChannels, ", H, W], got [", job.n, ", ",
            config_.inChannels, ", ", job.height, ", ", job.width, "]");
  DIT_CHECK(job.height % factor == 0 && job.width % factor == 0, ErrorCode::Shape,
            "encode: expected a height and width that are multiples of ", factor, ", got ",
            job.height, " x ", job.width, "; resize or crop the images");
  runImages(job, &Vae::encodeImage, checkpoint, probe);
}

}  // namespace dit
