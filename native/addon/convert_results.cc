#include <cstring>

#include "addon/convert.h"
#include "addon/names.h"

// Plain structs of native/model to the JS objects of bindings.d.ts.

namespace dit::addon {
namespace {

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

Napi::Value fromTrainerInfo(Napi::Env env, const TrainerInfo& info) {
  auto object = Napi::Object::New(env);
  object["microBatch"] = number(info.microBatch);
  object["step"] = number(info.step);
  object["parameterBytes"] = number(info.parameterBytes);
  object["activationBytes"] = number(info.activationBytes);
  return object;
}

Napi::Value fromStepResult(Napi::Env env, const StepResult& step) {
  auto object = Napi::Object::New(env);
  object["outcome"] = nameOf(kOutcomes, step.outcome);
  object["step"] = number(step.step);
  object["rows"] = number(step.rows);
  object["loss"] = step.loss;
  object["mse"] = step.mse;
  object["vb"] = step.vb;
  object["gradNorm"] = step.gradNorm;
  object["quartileLoss"] = doublesOf(env, step.quartileLoss);
  return object;
}

}  // namespace

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
      object["trainer"] = event.trainer ? fromTrainerInfo(env, *event.trainer) : env.Null();
      object["step"] = event.step ? fromStepResult(env, *event.step) : env.Null();
      object["queueSeconds"] = event.queueSeconds;
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
  object["precision"] = nameOf(kPrecisions, info.precision);
  object["weightBytes"] = number(info.weightBytes);
  object["vaeBytes"] = number(info.vaeBytes);
  object["activationBytes"] = number(info.activationBytes);
  object["trainerBytes"] = number(info.trainerBytes);
  return object;
}

Napi::Object fromCallStats(Napi::Env env, const CallStats& stats) {
  auto object = Napi::Object::New(env);
  object["maxLanes"] = number(stats.maxLanes);
  object["lanes"] = number(stats.lanes);
  object["waiting"] = number(stats.waiting);
  object["suspended"] = number(stats.suspended);
  object["images"] = number(stats.images);
  object["rounds"] = number(stats.rounds);
  object["refusedBusy"] = number(stats.refusedBusy);
  object["refusedDeadline"] = number(stats.refusedDeadline);
  object["cancelled"] = number(stats.cancelled);
  object["busySeconds"] = stats.busySeconds;
  object["roundSeconds"] = stats.roundSeconds;
  object["rowSeconds"] = stats.rowSeconds;
  object["imagesPerSecond"] =
      stats.imagesPerSecond ? Napi::Number::New(env, *stats.imagesPerSecond) : env.Null();
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

Napi::Object fromDevice(Napi::Env env, const DeviceInfo& device) {
  auto precisions = Napi::Array::New(env, device.precisions.size());
  for (uint32_t i = 0; i < device.precisions.size(); i++) {
    precisions[i] = nameOf(kPrecisions, device.precisions[i]);
  }
  auto object = Napi::Object::New(env);
  object["device"] = device.device;
  object["problem"] = device.problem;
  object["name"] = device.name;
  object["kernels"] = device.kernels;
  object["computeCapability"] = device.computeCapability;
  object["precisions"] = precisions;
  object["memoryBytes"] = number(device.memoryBytes);
  return object;
}

Napi::Error fromError(Napi::Env env, ErrorCode code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, errorCodeName(code)));
  return error;
}

}  // namespace dit::addon
