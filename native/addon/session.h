#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <set>

#include "model/outbox.h"
#include "model/runner.h"

namespace dit::addon {

// One model's thread and its way back to JavaScript. Everything but the events' arrival happens on
// the JS thread.
//
//   JS thread      submit -> Runner            deliver -> listener(event)
//   model thread             works, tells ---> outbox, and a call to take from it
//
// A session ends in one of two ways, both of which join the model's thread first, so that no event
// can arrive later: its close job is done, or the environment (process or worker) ends while it is
// open. In between it keeps the event loop alive while a job is under way, and only then.
//
// Node runs an environment's cleanup hooks when a worker ends or a script comes to its end, but not
// in process.exit(), which goes on to the destructors of the libraries that the model's thread is
// using. So while there are sessions the addon also listens to the process's event 'exit'; and once
// that event is being told, no session can be opened.
class Session : public std::enable_shared_from_this<Session> {
 public:
  // `listener` is called with every event of every job.
  static std::shared_ptr<Session> open(Napi::Env env, const Napi::Function& listener);
  ~Session();

  // Asks the runner for a job; throws Closed when there is none any more.
  template <typename Request>
  uint64_t submit(uint64_t (Runner::*ask)(Request), Request request) {
    const uint64_t job = (runner().*ask)(std::move(request));
    began();
    return job;
  }
  // The thread of an open session; throws Closed after its end.
  Runner& runner();
  bool ended() const { return runner_ == nullptr; }

  // The job that ends the session; the same one when asked again.
  uint64_t close();
  // The same for a model that nobody holds any more: it does not keep the event loop alive.
  void abandon();

 private:
  using Context = std::shared_ptr<Session>;
  static void callJs(Napi::Env env, Napi::Function listener, Context* session, void* nothing);
  // Its queue, which never blocks, holds one call for each event in the outbox.
  using Channel = Napi::TypedThreadSafeFunction<Context, void, callJs>;

  explicit Session(Napi::Env env);
  void post(JobEvent&& event);
  void deliver(const Napi::Function& listener, const JobEvent& event);
  void began();
  void joinThread();
  void stopListening();
  static void processExits(const Napi::CallbackInfo& info);
  static void environmentEnds(void* session);

  Napi::Env env_;
  Channel channel_;
  Outbox outbox_;
  std::unique_ptr<Runner> runner_;
  int64_t underWay_ = 0;  // jobs whose last event has not been delivered
  uint64_t closeJob_ = 0;
  bool closing_ = false;  // closeJob_ is set
};

// The sessions of an environment whose threads run: its instance data. Only while there are any
// does it listen to 'exit': a program may load the addon many times (tests that forget modules do).
struct OpenSessions {
  std::set<Session*> sessions;
  Napi::FunctionReference exitListener;  // empty: not listening
};

}  // namespace dit::addon
