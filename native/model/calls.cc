#include "model/calls.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace dit {

namespace {

// Rounds vary: an image is given up only when rounds that are this much faster than those measured
// would not save it.
constexpr double kHope = 0.75;
// Of the moving average of images per second, in busy seconds.
constexpr double kRecentSeconds = 30;
// What is told to a call that has to wait before anything was measured.
constexpr double kUnmeasuredWait = 1;

}  // namespace

double steadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Calls::configure(int64_t maxLanes, std::optional<int64_t> maxQueue) {
  const std::lock_guard lock(mutex_);
  stats_.maxLanes = maxLanes;
  maxQueue_ = maxQueue;
}

std::shared_ptr<Call> Calls::admit(const CallRequest& request, double now) {
  const std::lock_guard lock(mutex_);
  checkQueue(request);
  std::shared_ptr<Call> call = make(request, now);
  checkDeadline(*call, now);
  calls_.emplace(call->id, call);
  return call;
}

std::shared_ptr<Call> Calls::enter(const CallRequest& request, double now) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<Call> call = make(request, now);
  calls_.emplace(call->id, call);
  return call;
}

std::shared_ptr<Call> Calls::make(const CallRequest& request, double now) {
  DIT_CHECK(request.images > 0 && request.steps > 0 && request.rows >= request.steps,
            ErrorCode::Internal, "a call of no images, steps or rows");
  const uint64_t id = ++last_;
  const auto same = std::find_if(calls_.begin(), calls_.end(), [&](const auto& entry) {
    return !request.caller.empty() && entry.second->callerName == request.caller;
  });
  return std::make_shared<Call>(id, same == calls_.end() ? id : same->second->caller, request, now);
}

std::shared_ptr<Call> Calls::find(uint64_t id) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(id);
  return found == calls_.end() ? nullptr : found->second;
}

void Calls::leave(uint64_t id) {
  const std::lock_guard lock(mutex_);
  if (calls_.erase(id) > 0) stats_.cancelled++;
}

// ------------------------------------------------------------------ who is let in

void Calls::checkQueue(const CallRequest& request) {
  if (!maxQueue_) return;
  int64_t ahead = 0;
  Work work;
  for (const auto& [id, call] : calls_) {
    if (call->priority < request.priority) continue;
    ahead += call->images_;
    work += left(*call);
  }
  const int64_t room = stats_.maxLanes + *maxQueue_;
  if (ahead < room) return;
  stats_.refusedBusy++;
  // Until so many of those ahead have ended that there is room again.
  const double all = secondsFor(work, static_cast<double>(std::min(ahead, stats_.maxLanes)));
  const double share = static_cast<double>(ahead - room + 1) / static_cast<double>(ahead);
  throw Refusal(ErrorCode::Busy,
                detail::concat("The queue is full: ", ahead - stats_.maxLanes,
                               " images wait already, and maxQueue is ", *maxQueue_,
                               ". Try again later, or with a higher priority"),
                cost_.measured() ? all * share : kUnmeasuredWait);
}

void Calls::checkDeadline(const Call& call, double now) {
  if (!std::isfinite(call.deadline) || !cost_.measured()) return;
  const double left = call.deadline - now;
  const double needed = alone(call), expectedWait = std::max(needed, expected(call));
  if (expectedWait <= left) return;
  stats_.refusedDeadline++;
  const auto ms = [](double seconds) { return std::lround(1000 * seconds); };
  if (needed > left) {
    throw Refusal(ErrorCode::Deadline,
                  detail::concat("The deadline cannot be met: these images take about ", ms(needed),
                                 " ms alone, and ", ms(left),
                                 " ms are left. Ask for fewer steps or images, or allow more time"),
                  std::nullopt);
  }
  throw Refusal(ErrorCode::Deadline,
                detail::concat("The deadline cannot be met: with what else is to be done these "
                               "images take about ",
                               ms(expectedWait), " ms, and ", ms(left), " ms are left"),
                expectedWait - left);
}

// ------------------------------------------------------------------ how long it will take

Calls::Work& Calls::Work::operator+=(const Work& other) {
  rows += other.rows;
  decodes += other.decodes;
  return *this;
}

Calls::Work Calls::left(const Call& call) {
  return {.rows = static_cast<double>(call.stepsLeft_) * call.rowsPerStep_,
          .decodes = call.decoded_ ? static_cast<double>(call.images_) : 0};
}

// With so many rows in each round.
double Calls::secondsFor(const Work& work, double rowsAtOnce) const {
  return work.rows / rowsAtOnce * cost_.seconds(rowsAtOnce) + work.decodes * decodeSeconds_;
}

// The rest of a call on a model that does nothing else: no schedule is faster.
double Calls::alone(const Call& call) const {
  const double atOnce = static_cast<double>(std::min(call.images_, stats_.maxLanes));
  return secondsFor(left(call), atOnce * call.rowsPerStep_);
}

// The rest of a call beside those that there are. Callers share the lanes, so that another one gets
// as much done before this call ends as this one does, or all that it wants if that is less.
double Calls::expected(const Call& call) const {
  std::map<uint64_t, Work> equals;
  Work ahead;
  int64_t images = call.images_;
  for (const auto& [id, other] : calls_) {
    if (other->priority < call.priority) continue;
    images += other->images_;
    (other->priority > call.priority ? ahead : equals[other->caller]) += left(*other);
  }
  Work own = equals[call.caller];
  own += left(call);
  for (const auto& [caller, work] : equals) {
    if (caller == call.caller) continue;
    const double part = work.rows > own.rows ? own.rows / work.rows : 1;
    ahead += {.rows = part * work.rows, .decodes = part * work.decodes};
  }
  ahead += own;
  const double atOnce = static_cast<double>(std::min(images, stats_.maxLanes));
  return secondsFor(ahead, atOnce * call.rowsPerStep_);
}

bool Calls::tooLate(const Call& call, double now) const {
  if (!std::isfinite(call.deadline)) return false;
  const std::lock_guard lock(mutex_);
  return now + kHope * alone(call) > call.deadline;
}

// ------------------------------------------------------------------ what happened

void Calls::stepped(Call& call, int64_t steps) {
  const std::lock_guard lock(mutex_);
  call.stepsLeft_ -= steps;
}

void Calls::finished(Call& call) {
  const std::lock_guard lock(mutex_);
  call.images_--;
  stats_.images++;
  recentImages_++;
  if (call.images_ == 0) calls_.erase(call.id);
}

void Calls::failed(const Call& call, ErrorCode why) {
  const std::lock_guard lock(mutex_);
  if (calls_.erase(call.id) == 0) return;
  if (why == ErrorCode::Aborted) stats_.cancelled++;
  if (why == ErrorCode::Deadline) stats_.refusedDeadline++;
}

void Calls::inTheMaking(int64_t lanes, int64_t suspended) {
  const std::lock_guard lock(mutex_);
  stats_.lanes = lanes;
  stats_.suspended = suspended;
}

void Calls::roundDone() {
  const std::lock_guard lock(mutex_);
  stats_.rounds++;
}

void Calls::turnDone(int64_t rows, double seconds, double aside) {
  const std::lock_guard lock(mutex_);
  stats_.busySeconds += seconds;
  cost_.add(static_cast<double>(rows), std::max(0.0, seconds - aside));
  const double memory = std::exp(-seconds / kRecentSeconds);
  recentImages_ *= memory;
  recentSeconds_ = memory * recentSeconds_ + seconds;
}

void Calls::decoded(double seconds) {
  const std::lock_guard lock(mutex_);
  decodeSeconds_ = decodeSeconds_ == 0 ? seconds : 0.9 * decodeSeconds_ + 0.1 * seconds;
}

CallStats Calls::stats() const {
  const std::lock_guard lock(mutex_);
  CallStats stats = stats_;
  int64_t images = 0;
  for (const auto& [id, call] : calls_) images += call->images_;
  stats.waiting = std::max<int64_t>(0, images - stats.lanes);
  stats.roundSeconds = cost_.averageRound();
  stats.rowSeconds = cost_.averageRow();
  if (recentImages_ > 0) stats.imagesPerSecond = recentImages_ / recentSeconds_;
  return stats;
}

}  // namespace dit
