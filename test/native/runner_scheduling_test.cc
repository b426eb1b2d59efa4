// Lanes that change hands while images are in the making, and calls that are refused or given up.
#include <algorithm>
#include <functional>
#include <utility>

#include "dit_model.h"
#include "harness.h"
#include "model/runner.h"
#include "runner_inbox.h"

namespace dit::test {
namespace {

// A model, and calls of one job each.
struct Served {
  Served(Test& test, int64_t lanes)
      : runner([this, told = inbox.listener()](JobEvent&& event) {
          if (onEvent) onEvent(event);
          told(std::move(event));
        }) {
    const JobEvent loaded = inbox.last(runner.load(freshModel(test, lanes)));
    if (loaded.kind != JobEvent::Kind::Done) fail(loaded.error, loaded.message);
  }

  uint64_t call(SampleRequest sample, CallRequest how = {}) {
    how.images = static_cast<int64_t>(sample.labels.size());
    how.steps = std::stoll(sample.plan.spacing);
    how.rows = 2 * how.steps;
    sample.call = runner.admit(how);
    return runner.sample(std::move(sample));
  }
  std::vector<float> result(uint64_t job) {
    const JobEvent done = inbox.last(job);
    if (done.kind != JobEvent::Kind::Done) fail(done.error, done.message);
    return done.floats;
  }
  // How many events of the job came after the last one of `other`.
  int64_t eventsAfter(uint64_t job, uint64_t other) {
    const std::vector<uint64_t> order = inbox.order();
    const auto end = std::find(order.rbegin(), order.rend(), other).base();
    return std::count(end, order.end(), job);
  }

  Inbox inbox;
  std::function<void(const JobEvent&)> onEvent;  // on the model's thread
  Runner runner;
};

CallRequest priority(int32_t value) { return {.priority = value, .caller = {}}; }
CallRequest from(const char* caller) { return {.caller = caller}; }

// One lane: a more important image takes it at the next round, and the other goes on afterwards
// with the same bits, however often.
DIT_CASE("runner/priority") {
  for (const SamplerKind sampler : {SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::DpmSolver}) {
    Served model(test, 1);
    SampleRequest slow = request({1}, "90");
    slow.plan.sampler = sampler;
    slow.plan.learnedVariance = true;
    const std::vector<float> want = model.result(model.call(slow));
    const std::vector<float> quick = model.result(model.call(request({7})));
    // Asked for on the model's thread, while the round that took the last step is not over.
    int steps = 0;
    std::vector<uint64_t> usual, high;
    uint64_t low = 0;
    model.onEvent = [&](const JobEvent& event) {
      if (low == 0) low = event.job;  // nobody else's
      if (event.job != low || ++steps % 5 != 0 || steps > 30) return;
      usual.push_back(model.call(request({7})));
      high.push_back(model.call(request({7, 7}), priority(2)));
    };
    const uint64_t aside = model.call(slow, priority(-1));
    EXPECT(model.result(aside) == want && low == aside, "suspended and resumed");
    EXPECT(usual.size() == 6 && high.size() == 6);
    for (const uint64_t job : usual) EXPECT(model.result(job) == quick);
    for (size_t i = 0; i < high.size(); i++) {
      const std::vector<float> both = model.result(high[i]);
      EXPECT(std::equal(quick.begin(), quick.end(), both.begin()));
      EXPECT(model.eventsAfter(usual[i], high[i]) > 0, "the more important one first");
      EXPECT(model.eventsAfter(low, usual[i]) > 50, "before it goes on");
    }
    const CallStats stats = model.runner.stats();
    EXPECT(stats.lanes == 0 && stats.waiting == 0 && stats.suspended == 0 && stats.images == 21);
  }
}

// Between equals: two callers get the same number of rounds, whatever they ask for.
DIT_CASE("runner/callers") {
  Served model(test, 2);
  std::vector<uint64_t> greedy;
  for (uint64_t i = 0; i < 6; i++) greedy.push_back(model.call(request({i, i}, "40"), from("a")));
  model.inbox.await(greedy[0], 4);
  const uint64_t modest = model.call(request({50}, "40"), from("b"));
  const std::vector<float> got = model.result(modest);
  // Between its first step and its last each round has one step of theirs, and each of their jobs
  // may tell once more that it is done.
  const std::vector<uint64_t> order = model.inbox.order();
  const auto begin = std::find(order.begin(), order.end(), modest);
  const auto end = std::find(order.rbegin(), order.rend(), modest).base();
  const int64_t theirs = std::count_if(begin, end, [&](uint64_t job) { return job != modest; });
  EXPECT(theirs <= 40 + 6, "half of the lanes were the other caller's: ", theirs);
  for (const uint64_t job : greedy) model.result(job);
  EXPECT(got == model.result(model.call(request({50}, "40"))));
}

// Long ones take turns, so a short one that comes later ends first.
DIT_CASE("runner/turns") {
  Served model(test, 2);
  const std::vector<float> want = model.result(model.call(request({1}, "150")));
  // Asked for on the model's thread, in the third round.
  uint64_t first = 0, quick = 0;
  int steps = 0;
  model.onEvent = [&](const JobEvent& event) {
    if (first == 0) first = event.job;
    if (event.job == first && ++steps == 3) quick = model.call(request({4}, "10"));
  };
  const uint64_t slow[] = {model.call(request({1}, "150")), model.call(request({2}, "150")),
                           model.call(request({3}, "150"))};
  EXPECT(model.result(slow[0]) == want && first == slow[0]);
  for (const uint64_t job : slow) model.result(job);
  for (const uint64_t job : slow) EXPECT(model.eventsAfter(job, quick) > 60);
}

// What waits, has a lane or is suspended can be cancelled; nothing stays behind.
DIT_CASE("runner/cancel-suspended") {
  Served model(test, 2);
  const std::vector<float> want = model.result(model.call(request({7})));
  int trial = 0, seen = 0;
  uint64_t low = 0, high = 0;
  int64_t suspended = 0;
  model.onEvent = [&](const JobEvent& event) {
    if (low == 0) low = event.job;
    if (event.job == low && high == 0) high = model.call(request({7, 8}, "60"));
    if (event.job != high || ++seen != 3) return;
    suspended = model.runner.stats().suspended;
    model.runner.cancel(trial % 2 ? low : high);
    model.runner.cancel(trial % 2 ? high : low);
  };
  for (; trial < 10; trial++) {
    low = high = 0;
    seen = 0;
    const uint64_t aside = model.call(request({1, 2, 3}, "900"), priority(-1));
    EXPECT(model.inbox.last(aside).error == ErrorCode::Aborted && aside == low);
    EXPECT(model.inbox.last(high).error == ErrorCode::Aborted && suspended == 2);
    const CallStats stats = model.runner.stats();
    EXPECT(stats.lanes == 0 && stats.suspended == 0 && stats.waiting == 0);
    EXPECT(model.result(model.call(request({7}))) == want);
  }
}

DIT_CASE("runner/deadline") {
  Served model(test, 1);
  CallRequest soon;
  soon.deadline = 1e-9;
  // Nothing is measured yet: it is let in, and given up before its first round.
  EXPECT(model.inbox.last(model.call(request({1}), soon)).error == ErrorCode::Deadline);
  model.result(model.call(request({1}, "20")));
  try {
    model.runner.admit({.images = 1, .steps = 100, .rows = 200, .caller = {}, .deadline = 1e-6});
    EXPECT(false, "refused at once");
  } catch (const Refusal& refusal) {
    EXPECT(refusal.code() == ErrorCode::Deadline && !refusal.retryAfter);
  }
  CallRequest late;
  late.deadline = 3600;
  model.result(model.call(request({1}), late));
  EXPECT(model.runner.stats().refusedDeadline == 2 && model.runner.stats().waiting == 0);

  // A job of a call that has ended.
  SampleRequest orphan = request({1});
  orphan.call = 12345;
  EXPECT(model.inbox.last(model.runner.sample(orphan)).error == ErrorCode::Aborted);
}

}  // namespace
}  // namespace dit::test
