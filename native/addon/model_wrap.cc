#include "addon/model_wrap.h"

#include "addon/convert.h"

namespace dit::addon {

Napi::Function ModelWrap::define(Napi::Env env) {
  return DefineClass(env, "Model",
                     {
                         InstanceMethod<&ModelWrap::load>("load"),
                         InstanceMethod<&ModelWrap::info>("info"),
                         InstanceMethod<&ModelWrap::stats>("stats"),
                         InstanceMethod<&ModelWrap::admit>("admit"),
                         InstanceMethod<&ModelWrap::leave>("leave"),
                         InstanceMethod<&ModelWrap::sample>("sample"),
                         InstanceMethod<&ModelWrap::denoise>("denoise"),
                         InstanceMethod<&ModelWrap::decode>("decode"),
                         InstanceMethod<&ModelWrap::encode>("encode"),
                         InstanceMethod<&ModelWrap::save>("save"),
                         InstanceMethod<&ModelWrap::train>("train"),
                         InstanceMethod<&ModelWrap::release>("release"),
                         InstanceMethod<&ModelWrap::accumulate>("accumulate"),
                         InstanceMethod<&ModelWrap::apply>("apply"),
                         InstanceMethod<&ModelWrap::cancel>("cancel"),
                         InstanceMethod<&ModelWrap::close>("close"),
                     });
}

ModelWrap::ModelWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelWrap>(info) {
  guarded(info.Env(), [&] {
    DIT_CHECK(info[0].IsFunction(), ErrorCode::Internal, "Expected a function for listener");
    session_ = Session::open(info.Env(), info[0].As<Napi::Function>());
  });
}

ModelWrap::~ModelWrap() {
  if (session_) session_->abandon();
}

template <typename Request>
Napi::Value ModelWrap::submit(const Napi::CallbackInfo& info, uint64_t (Runner::*ask)(Request),
                              Request (*convert)(const Napi::Value&)) {
  return guarded(info.Env(), [&] {
    const uint64_t job = session_->submit<Request>(ask, convert(info[0]));
    return Napi::Number::New(info.Env(), static_cast<double>(job));
  });
}

Napi::Value ModelWrap::load(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::load, toModelSpec);
}

Napi::Value ModelWrap::info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return fromModelInfo(info.Env(), session_->runner().info()); });
}

Napi::Value ModelWrap::stats(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return fromCallStats(info.Env(), session_->runner().stats()); });
}

Napi::Value ModelWrap::admit(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    try {
      const uint64_t call = session_->runner().admit(toCallRequest(info[0]));
      return Napi::Number::New(info.Env(), static_cast<double>(call));
    } catch (const Refusal& refusal) {
      Napi::Error error = fromError(info.Env(), refusal.code(), refusal.what());
      if (refusal.retryAfter) {
        error.Set("retryAfter", Napi::Number::New(info.Env(), *refusal.retryAfter));
      }
      throw error;
    }
  });
}

Napi::Value ModelWrap::leave(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    DIT_CHECK(info[0].IsNumber(), ErrorCode::Internal, "Expected a number for call");
    // The calls of a session that has ended have ended, too.
    if (!session_->ended()) {
      session_->runner().leave(static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value()));
    }
    return info.Env().Undefined();
  });
}

Napi::Value ModelWrap::sample(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::sample, toSampleRequest);
}

Napi::Value ModelWrap::denoise(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::denoise, toDenoiseRequest);
}

Napi::Value ModelWrap::decode(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::decode, toDecodeRequest);
}

Napi::Value ModelWrap::encode(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::encode, toEncodeRequest);
}

Napi::Value ModelWrap::save(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::save, toSaveRequest);
}

Napi::Value ModelWrap::train(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::train, toTrainerRequest);
}

Napi::Value ModelWrap::release(const Napi::CallbackInfo& info) {
  return submit<ReleaseRequest>(info, &Runner::release,
                                [](const Napi::Value&) { return ReleaseRequest{}; });
}

Napi::Value ModelWrap::accumulate(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::accumulate, toAccumulateRequest);
}

Napi::Value ModelWrap::apply(const Napi::CallbackInfo& info) {
  return submit(info, &Runner::apply, toApplyRequest);
}

Napi::Value ModelWrap::cancel(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    DIT_CHECK(info[0].IsNumber(), ErrorCode::Internal, "Expected a number for job");
    // A job of a session that has ended has failed already.
    if (!session_->ended()) {
      session_->runner().cancel(static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value()));
    }
    return info.Env().Undefined();
  });
}

Napi::Value ModelWrap::close(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const uint64_t job = session_->close();
    return Napi::Number::New(info.Env(), static_cast<double>(job));
  });
}

}  // namespace dit::addon
