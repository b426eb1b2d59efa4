#include "addon/session.h"

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

}  // namespace

Session::Session(Napi::Env env)
    : env_(env), runner_(new Runner([this](JobEvent&& event) { post(std::move(event)); })) {}

std::shared_ptr<Session> Session::open(Napi::Env env, const Napi::Function& listener) {
  const std::shared_ptr<Session> session(new Session(env));
  auto context = std::make_unique<Context>(session);
  session->channel_ = Channel::New(
      env, listener, "dit-native", 0, 1, context.get(),
      [](Napi::Env, void*, Context* released) { delete released; }, static_cast<void*>(nullptr));
  context.release();
  session->channel_.Unref(env);
  // Registered after the thread-safe function, so that it runs before that function's own hook.
  napi_add_env_cleanup_hook(env, environmentEnds, session.get());
  env.GetInstanceData<OpenSessions>()->sessions.insert(session.get());
  return session;
}

Session::~Session() = default;

void Session::endAll(Napi::Env env) {
  const std::set<Session*> open = env.GetInstanceData<OpenSessions>()->sessions;
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
  const napi_value argument = eventOrFailure(env_, event);
  // The one place that calls into JavaScript. What it throws, null included, becomes an uncaught
  // exception instead of a warning or an abort: hence the C calls.
  if (napi_call_function(env_, env_.Undefined(), listener, 1, &argument, nullptr) ==
      napi_pending_exception) {
    napi_value thrown = nullptr;
    if (napi_get_and_clear_last_exception(env_, &thrown) == napi_ok) {
      napi_fatal_exception(env_, thrown);
    }
  }
  if (!last) return;
  if (--underWay_ == 0 && !ended()) channel_.Unref(env_);
  if (closing_ && event.job == closeJob_ && !ended()) {
    joinThread();
    napi_remove_env_cleanup_hook(env_, environmentEnds, this);
    channel_.Release();
  }
}

void Session::joinThread() {
  runner_.reset();
  env_.GetInstanceData<OpenSessions>()->sessions.erase(this);
}

void Session::environmentEnds(void* session) { static_cast<Session*>(session)->joinThread(); }

}  // namespace dit::addon
