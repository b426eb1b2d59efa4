#include "addon/convert.h"

#include <array>
#include <utility>

#include "addon/fields.h"
#include "addon/names.h"

namespace dit::addon {
namespace {

float single(const Fields& fields, const char* name) {
  return static_cast<float>(fields.number(name));
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
          .scalingFactor = single(fields, "scalingFactor"),
          .shiftFactor = single(fields, "shiftFactor"),
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

}  // namespace

ModelSpec toModelSpec(const Napi::Value& value) {
  const Fields fields(value, "ModelSpec");
  const Fields dit = fields.object("dit", "ModelSpec.dit");
  ModelSpec spec;
  spec.backend = {.device = fields.text("device"),
                  .threads = static_cast<int>(fields.integer("threads"))};
  spec.precision = named(kPrecisions, fields.text("precision"), "precision");
  spec.maxLanes = fields.integer("maxLanes");
  if (!fields.isNull("maxQueue")) spec.maxQueue = fields.count("maxQueue");
  spec.dit = toDitConfig(dit.object("config", "DiTConfig"));
  if (!dit.isNull("tensors")) spec.ditTensors = toTensors(dit.list("tensors"));
  if (!dit.isNull("stored")) spec.storedDit = toDitConfig(dit.object("stored", "DiTConfig"));
  spec.initSeed = dit.bigint("seed");
  if (!fields.isNull("vae")) {
    const Fields vae = fields.object("vae", "ModelSpec.vae");
    spec.vae = toVaeConfig(vae.object("config", "VaeConfig"));
    spec.vaeTensors = toTensors(vae.list("tensors"));
  }
  spec.schedule = toSchedule(fields.object("schedule", "ScheduleConfig"));
  return spec;
}

CallRequest toCallRequest(const Napi::Value& value) {
  const Fields fields(value, "CallRequest");
  CallRequest request{.images = fields.count("images"),
                      .steps = fields.count("steps"),
                      .rows = fields.count("rows"),
                      .priority = static_cast<int32_t>(fields.integer("priority")),
                      .caller = fields.text("caller"),
                      .decoded = fields.flag("decoded")};
  if (!fields.isNull("deadline")) request.deadline = fields.number("deadline");
  return request;
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
  request.guidance = single(fields, "guidance");
  request.guidanceChannels = static_cast<int32_t>(fields.integer("guidanceChannels"));
  request.guidanceFrom = interval.Get(0u).ToNumber().FloatValue();
  request.guidanceTo = interval.Get(1u).ToNumber().FloatValue();
  request.latentOnly = fields.flag("latentOnly");
  request.previewEvery = fields.integer("previewEvery");
  request.previewKind = named(kPreviews, fields.text("previewKind"), "kind of preview");
  request.call = static_cast<uint64_t>(fields.count("call"));
  return request;
}

DenoiseRequest toDenoiseRequest(const Napi::Value& value) {
  const Fields fields(value, "DenoiseRequest");
  return {.n = fields.integer("n"),
          .x = fields.copy<float>("x"),
          .timesteps = fields.copy<float>("timesteps"),
          .labels = fields.copy<int32_t>("labels"),
          .vectors = fields.vectorsOrNone("vectors"),
          .guidance = single(fields, "guidance"),
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
                        .seeds = std::nullopt,
                        .moments = fields.flag("moments")};
  if (!fields.isNull("seeds")) request.seeds = fields.copy<uint64_t>("seeds");
  return request;
}

TrainerRequest toTrainerRequest(const Napi::Value& value) {
  const Fields fields(value, "TrainerRequest");
  TrainerRequest request;
  request.options = {.seed = fields.bigint("seed"),
                     .bound = named(kLosses, fields.text("loss"), "loss"),
                     .labelDropout = single(fields, "labelDropout"),
                     .beta1 = single(fields, "beta1"),
                     .beta2 = single(fields, "beta2"),
                     .eps = single(fields, "eps"),
                     .weightDecay = single(fields, "weightDecay"),
                     .decayAll = fields.flag("decayAll"),
                     .checkpointing = {.every = fields.count("checkpointEvery")},
                     .microBatch = fields.count("microBatch"),
                     .memoryLimit = static_cast<size_t>(fields.count("memoryLimit")),
                     .globalBatch = fields.count("globalBatch")};
  if (!fields.isNull("state")) {
    const Fields state = fields.object("state", "TrainerRequest.state");
    request.step = state.count("step");
    // As Trainer::Part numbers them.
    request.state = {toTensors(state.list("model")), toTensors(state.list("ema")),
                     toTensors(state.list("expAvg")), toTensors(state.list("expAvgSq"))};
  }
  return request;
}

AccumulateRequest toAccumulateRequest(const Napi::Value& value) {
  const Fields fields(value, "AccumulateRequest");
  return {.n = fields.count("n"),
          .x = fields.copy<float>("x"),
          .deviation = fields.copyOrNone<float>("deviation"),
          .scale = single(fields, "scale"),
          .shift = single(fields, "shift"),
          .labels = fields.copy<int32_t>("labels"),
          .firstRow = fields.count("firstRow"),
          .globalBatch = fields.count("globalBatch"),
          .timesteps = fields.copyOrNone<int32_t>("timesteps"),
          .noise = fields.copyOrNone<float>("noise"),
          .drop = fields.copyOrNone<uint8_t>("drop")};
}

ApplyRequest toApplyRequest(const Napi::Value& value) {
  const Fields fields(value, "ApplyRequest");
  return {.options = {.lr = single(fields, "lr"),
                      .emaDecay = single(fields, "emaDecay"),
                      .clipNorm = single(fields, "clipNorm"),
                      .skipAbove = single(fields, "skipAbove")}};
}

SaveRequest toSaveRequest(const Napi::Value& value) {
  const Fields fields(value, "SaveRequest");
  const Napi::Uint8Array header = fields.bytes("header");
  const Napi::Array tensors = fields.list("tensors");
  SaveRequest request{.path = fields.text("path"),
                      .header = {reinterpret_cast<const char*>(header.Data()), header.ByteLength()},
                      .part = named(kParts, fields.text("part"), "part of a model"),
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

}  // namespace dit::addon
