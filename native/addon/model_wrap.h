#pragma once

#include <napi.h>

#include <memory>

#include "addon/session.h"

namespace dit::addon {

// The class Model of bindings.d.ts.
class ModelWrap : public Napi::ObjectWrap<ModelWrap> {
 public:
  static Napi::Function define(Napi::Env env);

  // new Model(listener)
  explicit ModelWrap(const Napi::CallbackInfo& info);
  // Collected without close(): the memory is freed all the same.
  ~ModelWrap() override;

 private:
  Napi::Value load(const Napi::CallbackInfo& info);
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value admit(const Napi::CallbackInfo& info);
  Napi::Value leave(const Napi::CallbackInfo& info);
  Napi::Value stats(const Napi::CallbackInfo& info);
  Napi::Value sample(const Napi::CallbackInfo& info);
  Napi::Value denoise(const Napi::CallbackInfo& info);
  Napi::Value decode(const Napi::CallbackInfo& info);
  Napi::Value encode(const Napi::CallbackInfo& info);
  Napi::Value save(const Napi::CallbackInfo& info);
  Napi::Value train(const Napi::CallbackInfo& info);
  Napi::Value release(const Napi::CallbackInfo& info);
  Napi::Value accumulate(const Napi::CallbackInfo& info);
  Napi::Value apply(const Napi::CallbackInfo& info);
  Napi::Value cancel(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  template <typename Request>
  Napi::Value submit(const Napi::CallbackInfo& info, uint64_t (Runner::*ask)(Request),
                     Request (*convert)(const Napi::Value&));

  std::shared_ptr<Session> session_;
};

}  // namespace dit::addon
