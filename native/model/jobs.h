#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <variant>
#include <vector>

#include "core/cancel.h"
#include "core/error.h"
#include "model/callbacks.h"
#include "model/calls.h"
#include "model/runner.h"

namespace dit {

struct CloseRequest {};

using Request = std::variant<ModelSpec, SampleRequest, DenoiseRequest, DecodeRequest, EncodeRequest,
                             SaveRequest, TrainerRequest, ReleaseRequest, AccumulateRequest,
                             ApplyRequest, CloseRequest>;

struct Job {
  uint64_t id = 0;
  Request request;
  CancelFlag cancel;
  std::shared_ptr<Call> call;  // of a sample job, from when it joins
};

// The jobs of one model between those who ask and the thread that works: what waits, what was
// cancelled, what is told. Every job gets exactly one last event.
class JobQueue {
 public:
  explicit JobQueue(Runner::Listener listener) : listener_(std::move(listener)) {}

  // ---- for any thread

  uint64_t submit(Request request);
  void cancel(uint64_t id);
  uint64_t close();
  bool ended() const;
  ModelInfo info() const;
  Calls& calls() { return calls_; }

  // ---- for the model's thread

  // The job that has waited longest. Without one, waits for it, or returns null.
  std::shared_ptr<Job> next(bool wait);

  // Throw when nobody wants the work any more.
  void checkOpen() const;
  void checkpoint(const Job& job) const;

  // Runs `work`; when it throws, the job has failed and says so.
  template <typename Work>
  bool guarded(const Job& job, const Work& work) {
    try {
      work();
      return true;
    } catch (const Error& error) {
      fail(job, error.code(), error.what());
    } catch (const std::bad_alloc&) {
      fail(job, ErrorCode::Oom, "out of memory on the host");
    } catch (const std::exception& error) {
      fail(job, ErrorCode::Internal, error.what());
    }
    return false;
  }

  void progress(const Job& job, int64_t done, int64_t total);
  void preview(const Job& job, JobEvent event);
  // The job is done; the model's sizes are now `info`.
  void finish(const Job& job, JobEvent event, const ModelInfo& info);

  // Nothing is accepted from now on. The jobs that have not ended, but for the one that closes:
  // each is to be answered with `answerClosed`.
  std::vector<std::shared_ptr<Job>> end(const Job& closing);
  void answerClosed(const Job& job);

 private:
  void fail(const Job& job, ErrorCode code, const std::string& message);
  void tellFailed(const Job& job, ErrorCode code, const std::string& message);

  const Runner::Listener listener_;
  Calls calls_;
  std::atomic<bool> closing_ = false;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> waiting_;
  std::map<uint64_t, std::shared_ptr<Job>> live_;  // those that have not ended, waiting or not
  uint64_t lastJob_ = 0;
  bool ended_ = false;
  ModelInfo info_;
};

}  // namespace dit
