#include "addon/session.h"

#include <initializer_list>

#include "addon/convert.h"

namespace dit::addon {
namespace {

// A result for which JavaScript has no memory is a failed job.
Napi::Object eventOrFailure(Napi::Env env, const JobEvent& event) {
  try {
    return fromEvent(env, event);
  } catch (const Napi::Error& error) {
    JobEvent failure;
    failure.kind = JobEvent::Kind::Failed;
    failure.job = event.job;
    failure.error = ErrorCode::Oom;
    failure.message = "The result does not fit into memory: " + error.Message();
    return fromEvent(env, failure);
  }
}

// Calls into JavaScript from the event loop. What it throws, null included, becomes an uncaught
// exception instead of a warning or an abort: hence the C calls.
void callFromLoop(Napi::Env env, napi_value self, napi_value function,
                  std::initializer_list<napi_value> arguments) {
  if (napi_call_function(env, self, function, arguments.size(), arguments.begin(), nullptr) !=
      napi_pending_exception) {
    return;
  }
  napi_value thrown = nullptr;
  if (napi_get_and_clear_last_exception(env, &thrown) == napi_ok) napi_fatal_exception(env, thrown);
}

Napi::Object processOf(Napi::Env env) { return env.Global().Get("process").As<Napi::Object>(); }

}  // namespace

Session::Session(Napi::Env env)
    : env_(env), runner_(new Runner([this](JobEvent&& event) { post(std::move(event)); })) {}

std::shared_ptr<Session> Session::open(Napi::Env env, const Napi::Function& listener) {
  const Napi::Object process = processOf(env);
  // Its listeners of 'exit' run, ours among them.
  DIT_CHECK(!process.Get("_exiting").ToBoolean(), ErrorCode::Closed, "The process is ending");
  auto& open = *env.GetInstanceData<OpenSessions>();
  if (open.exitListener.IsEmpty()) {
    const auto exitListener = Napi::Function::New<processExits>(env, "endSessions");
    process.Get("on").As<Napi::Function>().Call(process,
                                                {Napi::String::New(env, "exit"), exitListener});
    open.exitListener = Napi::Persistent(exitListener);
  }
  const std::shared_ptr<Session> session(new Session(env));
  auto context = std::make_unique<Context>(session);
  session->channel_ = Channel::New(
      env, listener, "dit-native", 0, 1, context.get(),
      [](Napi::Env, void*, Context* released) { delete released; }, static_cast<void*>(nullptr));
  context.release();
  session->channel_.Unref(env);
  // Registered after the thread-safe function, so that it runs before that function's own hook.
  napi_add_env_cleanup_hook(env, environmentEnds, session.get());
  open.sessions.insert(session.get());
  return session;
}

Session::~Session() = default;

void Session::processExits(const Napi::CallbackInfo& info) {
  const std::set<Session*> open = info.Env().GetInstanceData<OpenSessions>()->sessions;
  for (Session* session : open) session->joinThread();
}

Runner& Session::runner() {
  DIT_CHECK(runner_, ErrorCode::Closed, "The model was closed");
  return *runner_;
}

void Session::began() {
  if (underWay_++ == 0) channel_.Ref(env_);
}

uint64_t Session::close() {
  if (closing_) return closeJob_;
  closeJob_ = runner().close();
  closing_ = true;
  began();
  return closeJob_;
}

void Session::abandon() {
  if (ended() || closing_) return;
  closeJob_ = runner_->close();
  closing_ = true;
  underWay_++;
}

// On the model's thread.
void Session::post(JobEvent&& event) {
  // The call fails when the environment is ending: nobody is left to be told.
  if (outbox_.put(std::move(event))) channel_.NonBlockingCall();
}

void Session::callJs(Napi::Env env, Napi::Function listener, Context* session, void*) {
  // Without an environment: it ends, and what is left in the outbox is freed with the session.
  if (static_cast<napi_env>(env) == nullptr) return;
  const std::optional<JobEvent> event = (*session)->outbox_.take();
  if (event) (*session)->deliver(listener, *event);
}

void Session::deliver(const Napi::Function& listener, const JobEvent& event) {
  const bool last = event.kind == JobEvent::Kind::Done || event.kind == JobEvent::Kind::Failed;
  callFromLoop(env_, env_.Undefined(), listener, {eventOrFailure(env_, event)});
  if (!last) return;
  if (--underWay_ == 0 && !ended()) channel_.Unref(env_);
  if (closing_ && event.job == closeJob_ && !ended()) {
    joinThread();
    napi_remove_env_cleanup_hook(env_, environmentEnds, this);
    channel_.Release();
    stopListening();
  }
}

void Session::stopListening() {
  auto& open = *env_.GetInstanceData<OpenSessions>();
  if (!open.sessions.empty()) return;
  const Napi::Object process = processOf(env_);
  callFromLoop(env_, process, process.Get("off"),
               {Napi::String::New(env_, "exit"), open.exitListener.Value()});
  open.exitListener.Reset();
}

void Session::joinThread() {
  runner_.reset();
  env_.GetInstanceData<OpenSessions>()->sessions.erase(this);
}

void Session::environmentEnds(void* session) { static_cast<Session*>(session)->joinThread(); }

}  // namespace dit::addon
