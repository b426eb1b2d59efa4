#include "model/jobs.h"

#include <utility>

namespace dit {

uint64_t JobQueue::submit(Request request) {
  auto job = std::make_shared<Job>();
  job->request = std::move(request);
  const std::lock_guard lock(mutex_);
  job->id = ++lastJob_;
  if (ended_) {
    // The thread is gone: nobody else can answer.
    answerClosed(*job);
    return job->id;
  }
  waiting_.push_back(job);
  live_.emplace(job->id, job);
  wake_.notify_one();
  return job->id;
}

void JobQueue::cancel(uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto it = live_.find(id);
  if (it != live_.end()) it->second->cancel.cancel();
}

uint64_t JobQueue::close() {
  closing_.store(true, std::memory_order_relaxed);
  return submit(CloseRequest{});
}

bool JobQueue::ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

ModelInfo JobQueue::info() const {
  const std::lock_guard lock(mutex_);
  return info_;
}

std::shared_ptr<Job> JobQueue::next(bool wait) {
  std::unique_lock lock(mutex_);
  if (wait) wake_.wait(lock, [this] { return !waiting_.empty(); });
  if (waiting_.empty()) return nullptr;
  std::shared_ptr<Job> job = std::move(waiting_.front());
  waiting_.pop_front();
  return job;
}

void JobQueue::checkOpen() const {
  DIT_CHECK(!closing_.load(std::memory_order_relaxed), ErrorCode::Closed, "the model was closed");
}

void JobQueue::checkpoint(const Job& job) const {
  checkOpen();
  DIT_CHECK(!job.cancel.cancelled(), ErrorCode::Aborted, "the job was cancelled");
}

void JobQueue::progress(const Job& job, int64_t done, int64_t total) {
  JobEvent event;
  event.job = job.id;
  event.done = done;
  event.total = total;
  listener_(std::move(event));
}

void JobQueue::preview(const Job& job, JobEvent event) {
  event.kind = JobEvent::Kind::Preview;
  event.job = job.id;
  listener_(std::move(event));
}

void JobQueue::finish(const Job& job, JobEvent event, const ModelInfo& info) {
  {
    const std::lock_guard lock(mutex_);
    live_.erase(job.id);
    info_ = info;
  }
  event.kind = JobEvent::Kind::Done;
  event.job = job.id;
  listener_(std::move(event));
}

void JobQueue::fail(const Job& job, ErrorCode code, const std::string& message) {
  {
    const std::lock_guard lock(mutex_);
    live_.erase(job.id);
  }
  if (job.call) calls_.failed(*job.call, code);
  tellFailed(job, code, message);
}

std::vector<std::shared_ptr<Job>> JobQueue::end(const Job& closing) {
  std::vector<std::shared_ptr<Job>> unfinished;
  const std::lock_guard lock(mutex_);
  ended_ = true;
  waiting_.clear();
  for (auto& [id, job] : live_) {
    if (id != closing.id) unfinished.push_back(std::move(job));
  }
  live_.clear();
  return unfinished;
}

void JobQueue::answerClosed(const Job& job) {
  if (!std::holds_alternative<CloseRequest>(job.request)) {
    tellFailed(job, ErrorCode::Closed, "the model was closed");
    return;
  }
  JobEvent done;
  done.kind = JobEvent::Kind::Done;
  done.job = job.id;
  listener_(std::move(done));
}

void JobQueue::tellFailed(const Job& job, ErrorCode code, const std::string& message) {
  JobEvent event;
  event.kind = JobEvent::Kind::Failed;
  event.job = job.id;
  event.error = code;
  event.message = message;
  listener_(std::move(event));
}

}  // namespace dit
