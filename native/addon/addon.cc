#include <napi.h>

#include "addon/convert.h"
#include "addon/model_wrap.h"
#include "ops/cuda_client.h"
#include "ops/devices.h"

// dit_native.node: what bindings.d.ts names. All state belongs to objects or to the
// environment (the process's, each worker's has its own).

namespace dit::addon {
namespace {

Napi::Value cpuDevice(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return fromDevice(info.Env(), dit::cpuDevice()); });
}

Napi::Value cudaDevices(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::vector<DeviceInfo> devices = dit::cudaDevices();
    auto array = Napi::Array::New(info.Env(), devices.size());
    for (uint32_t i = 0; i < devices.size(); i++) array[i] = fromDevice(info.Env(), devices[i]);
    return array;
  });
}

Napi::Value cudaObstacle(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::String::New(info.Env(), dit::cudaObstacle()); });
}

Napi::Value tryDevice(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    DIT_CHECK(info[0].IsString(), ErrorCode::Internal, "Expected a string for device");
    dit::tryDevice(info[0].As<Napi::String>().Utf8Value());
    return info.Env().Undefined();
  });
}

Napi::Value schedule(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const ScheduleConfig config = toScheduleConfig(info[0]);
    DIT_CHECK(info[1].IsString(), ErrorCode::Internal, "Expected a string for spacing");
    const std::string spacing = info[1].As<Napi::String>().Utf8Value();
    return fromSchedule(info.Env(),
                        makeSchedule(makeBetas(config), spaceTimesteps(config.steps, spacing)));
  });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new OpenSessions);
  exports["Model"] = ModelWrap::define(env);
  exports["cpuDevice"] = Napi::Function::New<cpuDevice>(env, "cpuDevice");
  exports["cudaDevices"] = Napi::Function::New<cudaDevices>(env, "cudaDevices");
  exports["cudaObstacle"] = Napi::Function::New<cudaObstacle>(env, "cudaObstacle");
  exports["tryDevice"] = Napi::Function::New<tryDevice>(env, "tryDevice");
  exports["schedule"] = Napi::Function::New<schedule>(env, "schedule");
  exports["version"] = DIT_VERSION;
  return exports;
}

}  // namespace

NODE_API_MODULE(dit_native, init)

}  // namespace dit::addon
