#pragma once

#include <napi.h>

#include "model/runner.h"
#include "ops/devices.h"

// JS objects of bindings.d.ts to and from the plain structs of native/model.

namespace dit::addon {

ModelSpec toModelSpec(const Napi::Value& value);
CallRequest toCallRequest(const Napi::Value& value);
SampleRequest toSampleRequest(const Napi::Value& value);
DenoiseRequest toDenoiseRequest(const Napi::Value& value);
DecodeRequest toDecodeRequest(const Napi::Value& value);
EncodeRequest toEncodeRequest(const Napi::Value& value);
SaveRequest toSaveRequest(const Napi::Value& value);
TrainerRequest toTrainerRequest(const Napi::Value& value);
AccumulateRequest toAccumulateRequest(const Napi::Value& value);
ApplyRequest toApplyRequest(const Napi::Value& value);
ScheduleConfig toScheduleConfig(const Napi::Value& value);

Napi::Object fromEvent(Napi::Env env, const JobEvent& event);
Napi::Object fromModelInfo(Napi::Env env, const ModelInfo& info);
Napi::Object fromCallStats(Napi::Env env, const CallStats& stats);
Napi::Object fromSchedule(Napi::Env env, const Schedule& schedule);
Napi::Object fromDevice(Napi::Env env, const DeviceInfo& device);

// A JS Error with the code and the message of `error`.
Napi::Error fromError(Napi::Env env, ErrorCode code, const std::string& message);

// Calls body; a dit::Error becomes a JS exception with its code. Everything that JS calls runs in
// here.
template <typename Body>
auto guarded(Napi::Env env, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw fromError(env, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    throw fromError(env, ErrorCode::Oom, "Not enough memory");
  }
}

}  // namespace dit::addon
