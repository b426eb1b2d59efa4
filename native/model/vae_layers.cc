#include "model/vae_layers.h"

#include <type_traits>
#include <utility>

namespace dit {
namespace {

// ---- names and sizes ---------------------------------------------------------------------------

ConvLayer convLayer(const std::string& name, int64_t in, int64_t out, int64_t kernel = 3) {
  return {.names = {name}, .in = in, .out = out, .kernel = kernel};
}

NormLayer normLayer(const std::string& name, int64_t channels) {
  return {.name = name, .channels = channels};
}

VaeResnet resnet(const std::string& name, int64_t in, int64_t out) {
  VaeResnet layer{.norm1 = normLayer(name + ".norm1", in),
                  .conv1 = convLayer(name + ".conv1", in, out),
                  .norm2 = normLayer(name + ".norm2", out),
                  .conv2 = convLayer(name + ".conv2", out, out),
                  .shortcut = {}};
  if (in != out) layer.shortcut = convLayer(name + ".conv_shortcut", in, out, 1);
  return layer;
}

VaeMiddle middle(const std::string& name, int64_t channels, bool attention) {
  VaeMiddle layer{.first = resnet(name + ".resnets.0", channels, channels),
                  .attention = {},
                  .second = resnet(name + ".resnets.1", channels, channels)};
  if (attention) {
    const std::string a = name + ".attentions.0";
    layer.attention = {.norm = normLayer(a + ".group_norm", channels),
                       .qkv = {.names = {a + ".to_q", a + ".to_k", a + ".to_v"},
                               .in = channels,
                               .out = 3 * channels,
                               .kernel = 1,
                               .linear = true},
                       .out = {.names = {a + ".to_out.0"},
                               .in = channels,
                               .out = channels,
                               .kernel = 1,
                               .linear = true}};
  }
  return layer;
}

// `channels`: of each level, in the order in which an image passes through them.
std::vector<VaeLevel> levels(const std::string& name, bool upsample, int64_t in,
                             const std::vector<int64_t>& channels, int64_t resnets) {
  std::vector<VaeLevel> result;
  for (size_t i = 0; i < channels.size(); i++) {
    const std::string level = name + "." + std::to_string(i);
    const int64_t out = channels[i];
    VaeLevel layers;
    for (int64_t j = 0; j < resnets; j++) {
      layers.resnets.push_back(resnet(level + ".resnets." + std::to_string(j), j ? out : in, out));
    }
    if (i + 1 < channels.size()) {
      const char* resample = upsample ? ".upsamplers.0.conv" : ".downsamplers.0.conv";
      layers.resample = convLayer(level + resample, out, out);
      layers.resample->upsample = upsample;
    }
    result.push_back(std::move(layers));
    in = out;
  }
  return result;
}

void checkConfig(const VaeConfig& config) {
  const auto positive = [](int64_t value, const char* name) {
    DIT_CHECK(value > 0, ErrorCode::Option, "VAE config: ", name, " must be positive, got ", value);
  };
  positive(config.inChannels, "inChannels");
  positive(config.outChannels, "outChannels");
  positive(config.latentChannels, "latentChannels");
  positive(config.layersPerBlock, "layersPerBlock");
  positive(config.groups, "groups");
  DIT_CHECK(!config.blockOutChannels.empty() && config.blockOutChannels.size() <= 16,
            ErrorCode::Option, "VAE config: blockOutChannels must have 1 to 16 entries, got ",
            config.blockOutChannels.size());
  for (const int64_t channels : config.blockOutChannels) {
    positive(channels, "each of blockOutChannels");
    DIT_CHECK(channels % config.groups == 0, ErrorCode::Option,
              "VAE config: each of blockOutChannels must be a multiple of groups (", config.groups,
              "), got ", channels);
  }
  DIT_CHECK(config.scalingFactor != 0, ErrorCode::Option,
            "VAE config: scalingFactor must not be 0");
}

// ---- walking over the layers -------------------------------------------------------------------

// Calls visit(layer) for each ConvLayer and NormLayer in the order of a checkpoint.
template <typename Visit>
void forEachLayer(VaeResnet& layer, Visit& visit) {
  visit(layer.norm1);
  visit(layer.conv1);
  visit(layer.norm2);
  visit(layer.conv2);
  if (layer.shortcut) visit(*layer.shortcut);
}

template <typename Visit>
void forEachLayer(VaeHalf& half, Visit& visit) {
  visit(half.convIn);
  for (VaeLevel& level : half.levels) {
    for (VaeResnet& resnet : level.resnets) forEachLayer(resnet, visit);
    if (level.resample) visit(*level.resample);
  }
  if (half.middle.attention) {
    visit(half.middle.attention->norm);
    visit(half.middle.attention->qkv);
    visit(half.middle.attention->out);
  }
  forEachLayer(half.middle.first, visit);
  forEachLayer(half.middle.second, visit);
  visit(half.normOut);
  visit(half.convOut);
}

template <typename Visit>
void forEachLayer(VaeLayers& layers, Visit&& visit) {
  forEachLayer(layers.encoder, visit);
  forEachLayer(layers.decoder, visit);
  if (layers.quantConv) visit(*layers.quantConv);
  if (layers.postQuantConv) visit(*layers.postQuantConv);
}

// Weights, then biases, of one layer: one of each for every name.
struct LayerParams {
  std::vector<ParamSpec> weights, biases;
};

LayerParams paramsOf(const ConvLayer& layer) {
  LayerParams params;
  const int64_t out = layer.out / static_cast<int64_t>(layer.names.size());
  for (const std::string& name : layer.names) {
    const Shape weight =
        layer.linear ? Shape{out, layer.in} : Shape{out, layer.in, layer.kernel, layer.kernel};
    params.weights.push_back({.name = name + ".weight", .shape = weight});
    params.biases.push_back({.name = name + ".bias", .shape = {out}});
  }
  return params;
}

LayerParams paramsOf(const NormLayer& layer) {
  return {.weights = {{.name = layer.name + ".weight", .shape = {layer.channels}}},
          .biases = {{.name = layer.name + ".bias", .shape = {layer.channels}}}};
}

// ---- values ------------------------------------------------------------------------------------

class Loader {
 public:
  Loader(Ops& ops, WeightSource& source, Precision precision, Arena& vectors, int64_t total,
         const LoadProgress& progress)
      : ops_(ops),
        source_(source),
        precision_(precision),
        vectors_(vectors),
        total_(total),
        progress_(progress) {}

  void operator()(NormLayer& layer) {
    const LayerParams params = paramsOf(layer);
    layer.gamma = loadVector(params.weights);
    layer.beta = loadVector(params.biases);
  }

  void operator()(ConvLayer& layer) {
    const LayerParams params = paramsOf(layer);
    const Shape shape{layer.out, layer.in, layer.kernel, layer.kernel};
    std::vector<float> joined;
    Tensor values;
    if (params.weights.size() == 1) {
      values = source_.read(params.weights[0], /*keepBf16=*/true).reshape(shape);
    } else {
      joined = join(params.weights);
      values = Tensor(joined.data(), DType::F32, shape);
    }
    layer.weight =
        ops_.prepareConv({.values = values, .precision = precision_, .upsample = layer.upsample});
    advance(shape.count());
    layer.bias = loadVector(params.biases);
  }

 private:
  Tensor loadVector(const std::vector<ParamSpec>& parts) {
    const std::vector<float> values = join(parts);
    const int64_t size = static_cast<int64_t>(values.size());
    const Tensor device = vectors_.make(DType::F32, {size});
    ops_.backend().upload(device, values.data());
    advance(size);
    return device;
  }

  std::vector<float> join(const std::vector<ParamSpec>& parts) {
    std::vector<float> values;
    for (const ParamSpec& part : parts) {
      const Tensor read = source_.read(part, /*keepBf16=*/false);
      values.insert(values.end(), read.as<float>(), read.as<float>() + read.count());
    }
    return values;
  }

  void advance(int64_t count) {
    done_ += count;
    if (progress_) progress_(done_, total_);
  }

  Ops& ops_;
  WeightSource& source_;
  Precision precision_;
  Arena& vectors_;
  int64_t done_ = 0, total_;
  const LoadProgress& progress_;
};

}  // namespace

VaeLayers describeVae(const VaeConfig& config) {
  checkConfig(config);
  const std::vector<int64_t>& channels = config.blockOutChannels;
  const std::vector<int64_t> reversed(channels.rbegin(), channels.rend());
  const int64_t fine = channels.front(), coarse = channels.back(), latent = config.latentChannels;

  VaeLayers layers;
  layers.encoder = {.convIn = convLayer("encoder.conv_in", config.inChannels, fine),
                    .levels = levels("encoder.down_blocks", /*upsample=*/false, fine, channels,
                                     config.layersPerBlock),
                    .middle = middle("encoder.mid_block", coarse, config.midAttention),
                    .normOut = normLayer("encoder.conv_norm_out", coarse),
                    .convOut = convLayer("encoder.conv_out", coarse, 2 * latent)};
  layers.decoder = {.convIn = convLayer("decoder.conv_in", latent, coarse),
                    .levels = levels("decoder.up_blocks", /*upsample=*/true, coarse, reversed,
                                     config.layersPerBlock + 1),
                    .middle = middle("decoder.mid_block", coarse, config.midAttention),
                    .normOut = normLayer("decoder.conv_norm_out", fine),
                    .convOut = convLayer("decoder.conv_out", fine, config.outChannels)};
  if (config.quantConv) layers.quantConv = convLayer("quant_conv", 2 * latent, 2 * latent, 1);
  if (config.postQuantConv) layers.postQuantConv = convLayer("post_quant_conv", latent, latent, 1);
  return layers;
}

std::vector<ParamSpec> vaeParams(const VaeConfig& config) {
  VaeLayers layers = describeVae(config);
  std::vector<ParamSpec> params;
  forEachLayer(layers, [&](const auto& layer) {
    const LayerParams own = paramsOf(layer);
    for (size_t i = 0; i < own.weights.size(); i++) {
      params.push_back(own.weights[i]);
      params.push_back(own.biases[i]);
    }
  });
  return params;
}

DeviceBuffer loadVae(VaeLayers& layers, Ops& ops, WeightSource& source, Precision precision,
                     const LoadProgress& progress) {
  int64_t total = 0;
  size_t vectorBytes = 0;
  forEachLayer(layers, [&](const auto& layer) {
    const LayerParams own = paramsOf(layer);
    for (const auto* params : {&own.weights, &own.biases}) {
      for (const ParamSpec& param : *params) {
        total += param.shape.count();
        if (param.shape.rank() > 1) continue;
        vectorBytes += static_cast<size_t>(param.shape.count()) * sizeof(float) + Arena::kAlignment;
      }
    }
  });
  DeviceBuffer memory(ops.backend(), vectorBytes);
  Arena vectors(memory.data(), memory.bytes());
  forEachLayer(layers, Loader(ops, source, precision, vectors, total, progress));
  return memory;
}

size_t vaeWeightBytes(VaeLayers& layers) {
  size_t bytes = 0;
  forEachLayer(layers, [&]<typename Layer>(const Layer& layer) {
    if constexpr (std::is_same_v<Layer, ConvLayer>) bytes += layer.weight->bytes();
  });
  return bytes;
}

}  // namespace dit
