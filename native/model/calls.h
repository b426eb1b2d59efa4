#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "core/error.h"
#include "model/round_cost.h"

namespace dit {

// A call of the API, as far as scheduling is concerned. Its images may come in several sample jobs,
// the later ones as the earlier ones end; what is decided about waiting and deadlines is decided
// for all of it, at once, when it begins.
struct CallRequest {
  int64_t images = 1;
  int64_t steps = 1, rows = 1;  // of one image: rounds that it takes part in, rows in all of them
  int32_t priority = 0;         // higher goes first
  std::string caller;           // those who share lanes equally; empty: this call alone
  double deadline = std::numeric_limits<double>::infinity();  // seconds from now
  bool decoded = true;                                        // whether its images will be
};

// Busy or Deadline, before any work was done.
class Refusal : public Error {
 public:
  Refusal(ErrorCode code, const std::string& message, std::optional<double> wait)
      : Error(code, message), retryAfter(wait) {}
  // Seconds until the same call would probably be taken; none where waiting does not help.
  std::optional<double> retryAfter;
};

struct CallStats {
  int64_t maxLanes = 0;
  int64_t lanes = 0;      // in use
  int64_t waiting = 0;    // images, those of calls that have not been submitted yet among them
  int64_t suspended = 0;  // of those that wait: begun, and without a lane now
  int64_t images = 0;     // finished
  int64_t rounds = 0;
  int64_t refusedBusy = 0, refusedDeadline = 0, cancelled = 0;  // calls
  double busySeconds = 0;                                       // of the model's thread, sampling
  double roundSeconds = 0, rowSeconds = 0;                      // moving averages
  std::optional<double> imagesPerSecond;                        // of busy time, moving average
};

// One call under way. What is const may be read by anyone who holds it.
class Call {
 public:
  Call(uint64_t id, uint64_t caller, const CallRequest& request, double now)
      : id(id),
        caller(caller),
        callerName(request.caller),
        priority(request.priority),
        began(now),
        deadline(now + request.deadline),
        rowsPerStep_(static_cast<double>(request.rows) / static_cast<double>(request.steps)),
        decoded_(request.decoded),
        images_(request.images),
        stepsLeft_(request.images * request.steps) {}

  const uint64_t id;
  const uint64_t caller;
  const std::string callerName;
  const int32_t priority;
  const double began, deadline;  // in the time of steadySeconds()
  // Its place among those who wait, the lowest first. Of the model's thread alone.
  uint64_t turn = 0;

 private:
  friend class Calls;
  const double rowsPerStep_;  // 1 to 2, on average
  const bool decoded_;
  int64_t images_;     // not finished
  int64_t stepsLeft_;  // of all of them
};

double steadySeconds();

// All calls of one model: who is let in, what waits, what it costs. Any thread may ask, and is
// answered at once: nothing here waits for a round. `now` is the time of steadySeconds().
class Calls {
 public:
  void configure(int64_t maxLanes, std::optional<int64_t> maxQueue);

  // Lets a call in. Throws Refusal: Busy where maxQueue images or more wait that it would have to
  // wait for, those of a lower priority not among them; Deadline where measured times say that it
  // would end too late. Nothing is refused for its deadline before anything was measured.
  std::shared_ptr<Call> admit(const CallRequest& request, double now);
  // The same, whatever waits.
  std::shared_ptr<Call> enter(const CallRequest& request, double now);
  std::shared_ptr<Call> find(uint64_t id) const;  // null when it has ended
  // The images of the call that have not ended will not be asked for any more.
  void leave(uint64_t id);

  CallStats stats() const;

  // ---- for the model's thread

  // Images of the call have taken so many steps together.
  void stepped(Call& call, int64_t steps);
  // One of its images is finished.
  void finished(Call& call);
  // A part of it has failed, so nobody wants the others.
  void failed(const Call& call, ErrorCode why);
  // Whether not even an idle model could meet the deadline any more.
  bool tooLate(const Call& call, double now) const;
  void inTheMaking(int64_t lanes, int64_t suspended);
  // An image was decoded, in so many seconds.
  void decoded(double seconds);
  void roundDone();
  // A round of so many rows took so many seconds with what came with it. Of those `aside` are no
  // cost of a round: the decoding of finished images, and what happens once, like new weights.
  void turnDone(int64_t rows, double seconds, double aside);

 private:
  // What is left to be done.
  struct Work {
    double rows = 0, decodes = 0;
    Work& operator+=(const Work& other);
  };

  std::shared_ptr<Call> make(const CallRequest& request, double now);
  void checkQueue(const CallRequest& request);
  void checkDeadline(const Call& call, double now);
  static Work left(const Call& call);
  double alone(const Call& call) const;
  double expected(const Call& call) const;
  double secondsFor(const Work& work, double rowsAtOnce) const;

  mutable std::mutex mutex_;  // guards all of it, and the calls' private parts
  std::map<uint64_t, std::shared_ptr<Call>> calls_;
  uint64_t last_ = 0;
  std::optional<int64_t> maxQueue_;
  CallStats stats_;
  RoundCost cost_;
  double decodeSeconds_ = 0;                     // moving average
  double recentImages_ = 0, recentSeconds_ = 0;  // decayed sums
};

}  // namespace dit
