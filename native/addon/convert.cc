#include "addon/convert.h"

#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "addon/fields.h"

namespace dit::addon {
namespace {

// The value whose name is `text`. `names` are those of bindings.d.ts.
template <typename T, size_t n>
T named(const std::array<std::pair<const char*, T>, n>& names, const std::string& text,
        const char* what) {
  for (const auto& [name, value] : names) {
    if (text == name) return value;
  }
  fail(ErrorCode::Internal, "Unknown ", what, " '", text, "'");
}

constexpr std::array kPrecisions{std::pair{"fp32", Precision::F32},
                                 std::pair{"tf32", Precision::TF32},
                                 std::pair{"bf16", Precision::BF16}};
constexpr std::array kSamplers{std::pair{"ddpm", SamplerKind::Ddpm},
                               std::pair{"ddim", SamplerKind::Ddim},
                               std::pair{"dpm++", SamplerKind::DpmSolver}};
constexpr std::array kSchedules{std::pair{"linear", BetaSchedule::Linear},
                                std::pair{"cosine", BetaSchedule::Cosine}};
constexpr std::array kDTypes{std::pair{"F64", DType::F64}, std::pair{"F32", DType::F32},
                             std::pair{"F16", DType::F16}, std::pair{"BF16", DType::BF16},
                             std::pair{"I64", DType::I64}, std::pair{"I32", DType::I32},
                             std::pair{"U8", DType::U8}};

const char* precisionText(Precision precision) {
  for (const auto& [name, value] : kPrecisions) {
    if (value == precision) return name;
  }
  fail(ErrorCode::Internal, "A precision without a name");
}

std::vector<TensorSource> toTensors(const Napi::Array& array) {
  std::vector<TensorSource> tensors;
  tensors.reserve(array.Length());
  for (uint32_t i = 0; i < array.Length(); i++) {
    const Fields fields(array.Get(i), "TensorSource");
    TensorSource tensor{.name = fields.text("name"), .parts = {}};
    const Napi::Array parts = fields.list("parts");
    for (uint32_t p = 0; p < parts.Length(); p++) {
      const Fields part(parts.Get(p), "TensorPart");
      const std::string dtype = part.text("dtype");
      tensor.parts.push_back({.file = part.text("file"),
                              .offset = static_cast<uint64_t>(part.integer("offset")),
                              .dtype = named(kDTypes, dtype, "element type of a weight"),
                              .shape = part.integers("shape"),
                              .strides = part.integers("strides")});
    }
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

DitConfig toDitConfig(const Fields& fields) {
  const std::vector<int64_t> size = fields.integers("latentSize");
  DIT_CHECK(size.size() == 2, ErrorCode::Internal, "Expected two numbers for latentSize");
  return {.depth = fields.integer("depth"),
          .hidden = fields.integer("hidden"),
          .heads = fields.integer("heads"),
          .mlpHidden = fields.integer("mlpHidden"),
          .patch = fields.integer("patchSize"),
          .channels = fields.integer("channels"),
          .height = size[0],
          .width = size[1],
          .classes = fields.integer("numClasses"),
          .nullClass = fields.flag("nullClass"),
          .learnSigma = fields.flag("learnSigma")};
}

VaeConfig toVaeConfig(const Fields& fields) {
  return {.inChannels = fields.integer("inChannels"),
          .outChannels = fields.integer("outChannels"),
          .latentChannels = fields.integer("latentChannels"),
          .blockOutChannels = fields.integers("blockOutChannels"),
          .layersPerBlock = fields.integer("layersPerBlock"),
          .groups = fields.integer("groups"),
          .scalingFactor = static_cast<float>(fields.number("scalingFactor")),
          .shiftFactor = static_cast<float>(fields.number("shiftFactor")),
          .quantConv = fields.flag("useQuantConv"),
          .postQuantConv = fields.flag("usePostQuantConv"),
          .midAttention = fields.flag("midBlockAddAttention")};
}

ScheduleConfig toSchedule(const Fields& fields) {
  return {.kind = named(kSchedules, fields.text("kind"), "noise schedule"),
          .steps = fields.integer("steps"),
          .betaStart = fields.number("betaStart"),
          .betaEnd = fields.number("betaEnd")};
}

Napi::Uint8Array bytesOf(Napi::Env env, const std::vector<uint8_t>& values) {
  auto array = Napi::Uint8Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size());
  return array;
}

Napi::Float32Array floatsOf(Napi::Env env, const std::vector<float>& values) {
  auto array = Napi::Float32Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(float));
  return array;
}

Napi::Float64Array doublesOf(Napi::Env env, const auto& values) {
  auto array = Napi::Float64Array::New(env, values.size());
  for (size_t i = 0; i < values.size(); i++) array[i] = static_cast<double>(values[i]);
  return array;
}

double number(auto value) { return static_cast<double>(value); }

}  // namespace

ModelSpec toModelSpec(const Napi::Value& value) {
  const Fields fields(value, "ModelSpec");
  const Fields dit = fields.object("dit", "ModelSpec.dit");
  ModelSpec spec;
  spec.backend = {.device = fields.text("device"),
                  .threads = static_cast<int>(fields.integer("threads"))};
  spec.precision = named(kPrecisions, fields.text("precision"), "precision");
  spec.maxLanes = fields.integer("maxLanes");
  spec.dit = toDitConfig(dit.object("config", "DiTConfig"));
  if (!dit.isNull("tensors")) spec.ditTensors = toTensors(dit.list("tensors"));
  spec.initSeed = dit.bigint("seed");
  if (!fields.isNull("vae")) {
    const Fields vae = fields.object("vae", "ModelSpec.vae");
    spec.vae = toVaeConfig(vae.object("config", "VaeConfig"));
    spec.vaeTensors = toTensors(vae.list("tensors"));
  }
  spec.schedule = toSchedule(fields.object("schedule", "ScheduleConfig"));
  return spec;
}

SampleRequest toSampleRequest(const Napi::Value& value) {
  const Fields fields(value, "SampleRequest");
  const Napi::Array interval = fields.list("guidanceInterval");
  SampleRequest request;
  request.plan = {.sampler = named(kSamplers, fields.text("sampler"), "sampler"),
                  .spacing = fields.text("spacing"),
                  .eta = fields.number("eta"),
                  .clip = fields.flag("clip")};
  request.labels = fields.copy<int32_t>("labels");
  request.vectors = fields.vectorsOrNone("vectors");
  request.seeds = fields.copy<uint64_t>("seeds");
  request.noise = fields.copyOrNone<float>("noise");
  request.stepNoise = fields.copyOrNone<float>("stepNoise");
  request.guidance = static_cast<float>(fields.number("guidance"));
  request.guidanceChannels = static_cast<int32_t>(fields.integer("guidanceChannels"));
  request.guidanceFrom = interval.Get(0u).ToNumber().FloatValue();
  request.guidanceTo = interval.Get(1u).ToNumber().FloatValue();
  request.latentOnly = fields.flag("latentOnly");
  request.previewEvery = fields.integer("previewEvery");
  return request;
}

DenoiseRequest toDenoiseRequest(const Napi::Value& value) {
  const Fields fields(value, "DenoiseRequest");
  return {.n = fields.integer("n"),
          .x = fields.copy<float>("x"),
          .timesteps = fields.copy<float>("timesteps"),
          .labels = fields.copy<int32_t>("labels"),
          .vectors = fields.vectorsOrNone("vectors"),
          .guidance = static_cast<float>(fields.number("guidance")),
          .guidanceChannels = static_cast<int32_t>(fields.integer("guidanceChannels"))};
}

DecodeRequest toDecodeRequest(const Napi::Value& value) {
  const Fields fields(value, "DecodeRequest");
  return {.n = fields.integer("n"),
          .height = fields.integer("height"),
          .width = fields.integer("width"),
          .latents = fields.copy<float>("latents")};
}

EncodeRequest toEncodeRequest(const Napi::Value& value) {
  const Fields fields(value, "EncodeRequest");
  EncodeRequest request{.n = fields.integer("n"),
                        .height = fields.integer("height"),
                        .width = fields.integer("width"),
                        .images = fields.copy<float>("images"),
                        .seeds = std::nullopt};
  if (!fields.isNull("seeds")) request.seeds = fields.copy<uint64_t>("seeds");
  return request;
}

SaveRequest toSaveRequest(const Napi::Value& value) {
  const Fields fields(value, "SaveRequest");
  const Napi::Uint8Array header = fields.bytes("header");
  const Napi::Array tensors = fields.list("tensors");
  SaveRequest request{.path = fields.text("path"),
                      .header = {reinterpret_cast<const char*>(header.Data()), header.ByteLength()},
                      .vae = fields.text("part") == "vae",
                      .tensors = {}};
  for (uint32_t i = 0; i < tensors.Length(); i++) {
    const Fields tensor(tensors.Get(i), "SaveRequest.tensors");
    request.tensors.push_back(
        {.name = tensor.text("name"),
         .rowBegin = tensor.integer("rowBegin"),
         .rowEnd = tensor.integer("rowEnd"),
         .dtype = named(kDTypes, tensor.text("dtype"), "element type to save")});
  }
  return request;
}

ScheduleConfig toScheduleConfig(const Napi::Value& value) {
  return toSchedule(Fields(value, "ScheduleConfig"));
}

Napi::Object fromEvent(Napi::Env env, const JobEvent& event) {
  auto object = Napi::Object::New(env);
  object["job"] = number(event.job);
  switch (event.kind) {
    case JobEvent::Kind::Progress:
      object["kind"] = "progress";
      object["done"] = number(event.done);
      object["total"] = number(event.total);
      break;
    case JobEvent::Kind::Preview:
      object["kind"] = "preview";
      object["image"] = number(event.image);
      object["done"] = number(event.done);
      object["total"] = number(event.total);
      object["bytes"] = bytesOf(env, event.bytes);
      object["height"] = number(event.height);
      object["width"] = number(event.width);
      object["channels"] = number(event.channels);
      break;
    case JobEvent::Kind::Done: {
      object["kind"] = "done";
      object["bytes"] = event.bytes.empty() ? env.Null() : bytesOf(env, event.bytes);
      object["height"] = number(event.height);
      object["width"] = number(event.width);
      object["channels"] = number(event.channels);
      object["floats"] = event.floats.empty() ? env.Null() : floatsOf(env, event.floats);
      auto shape = Napi::Array::New(env, event.shape.rank());
      for (int i = 0; i < event.shape.rank(); i++) {
        shape[static_cast<uint32_t>(i)] = number(event.shape[i]);
      }
      object["shape"] = shape;
      object["sampleSeconds"] = event.sampleSeconds;
      object["decodeSeconds"] = event.decodeSeconds;
      break;
    }
    case JobEvent::Kind::Failed:
      object["kind"] = "failed";
      object["code"] = errorCodeName(event.error);
      object["message"] = event.message;
      break;
  }
  return object;
}

Napi::Object fromModelInfo(Napi::Env env, const ModelInfo& info) {
  auto object = Napi::Object::New(env);
  object["device"] = info.device;
  object["precision"] = precisionText(info.precision);
  object["weightBytes"] = number(info.weightBytes);
  object["vaeBytes"] = number(info.vaeBytes);
  object["activationBytes"] = number(info.activationBytes);
  return object;
}

Napi::Object fromSchedule(Napi::Env env, const Schedule& schedule) {
  auto object = Napi::Object::New(env);
  object["betas"] = doublesOf(env, schedule.betas);
  object["alphasCumprod"] = doublesOf(env, schedule.alphasCumprod);
  object["alphasCumprodPrev"] = doublesOf(env, schedule.alphasCumprodPrev);
  object["alphasCumprodNext"] = doublesOf(env, schedule.alphasCumprodNext);
  object["sqrtAlphasCumprod"] = doublesOf(env, schedule.sqrtAlphasCumprod);
  object["sqrtOneMinusAlphasCumprod"] = doublesOf(env, schedule.sqrtOneMinusAlphasCumprod);
  object["logOneMinusAlphasCumprod"] = doublesOf(env, schedule.logOneMinusAlphasCumprod);
  object["sqrtRecipAlphasCumprod"] = doublesOf(env, schedule.sqrtRecipAlphasCumprod);
  object["sqrtRecipm1AlphasCumprod"] = doublesOf(env, schedule.sqrtRecipm1AlphasCumprod);
  object["posteriorVariance"] = doublesOf(env, schedule.posteriorVariance);
  object["posteriorLogVarianceClipped"] = doublesOf(env, schedule.posteriorLogVarianceClipped);
  object["posteriorMeanCoef1"] = doublesOf(env, schedule.posteriorMeanCoef1);
  object["posteriorMeanCoef2"] = doublesOf(env, schedule.posteriorMeanCoef2);
  object["timestepMap"] = doublesOf(env, schedule.timestepMap);
  return object;
}

Napi::Array fromDevices(Napi::Env env, const std::vector<DeviceInfo>& devices) {
  auto array = Napi::Array::New(env, devices.size());
  for (uint32_t i = 0; i < devices.size(); i++) {
    const DeviceInfo& device = devices[i];
    auto precisions = Napi::Array::New(env, device.precisions.size());
    for (uint32_t p = 0; p < device.precisions.size(); p++) {
      precisions[p] = precisionText(device.precisions[p]);
    }
    auto object = Napi::Object::New(env);
    object["device"] = device.device;
    object["name"] = device.name;
    object["isa"] = device.isa;
    object["precisions"] = precisions;
    object["memoryBytes"] = number(device.memoryBytes);
    object["threads"] = device.threads;
    array[i] = object;
  }
  return array;
}

Napi::Error fromError(Napi::Env env, ErrorCode code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, errorCodeName(code)));
  return error;
}

}  // namespace dit::addon
