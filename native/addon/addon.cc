#include <napi.h>

#include "addon/convert.h"
#include "addon/model_wrap.h"

// dit_native.node: what bindings.d.ts names. All state belongs to objects or to the
// environment (the process's, each worker's has its own).

namespace dit::addon {
namespace {

Napi::Value devices(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return fromDevices(info.Env(), listDevices()); });
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

void onExit(const Napi::CallbackInfo& info) { Session::endAll(info.Env()); }

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new OpenSessions);
  const auto process = env.Global().Get("process").As<Napi::Object>();
  process.Get("on").As<Napi::Function>().Call(
      process, {Napi::String::New(env, "exit"), Napi::Function::New<onExit>(env, "endSessions")});
  exports["Model"] = ModelWrap::define(env);
  exports["devices"] = Napi::Function::New<devices>(env, "devices");
  exports["schedule"] = Napi::Function::New<schedule>(env, "schedule");
  exports["version"] = DIT_VERSION;
  return exports;
}

}  // namespace

NODE_API_MODULE(dit_native, init)

}  // namespace dit::addon
