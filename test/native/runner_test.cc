// The model's thread: jobs in any order, cancelled and closed at any time.
#include "model/runner.h"

#include <cmath>
#include <mutex>
#include <thread>

#include "dit_model.h"
#include "harness.h"
#include "runner_inbox.h"

namespace dit::test {
namespace {

DIT_CASE("runner/jobs") {
  Inbox inbox;
  Runner runner(inbox.listener());
  const uint64_t early = runner.sample(request({1}));
  EXPECT(inbox.last(early).error == ErrorCode::Internal);  // not loaded
  const uint64_t load = runner.load(freshModel(test));
  EXPECT(inbox.last(load).kind == JobEvent::Kind::Done, inbox.last(load).message);
  const auto loading = inbox.all(load);
  EXPECT(loading.size() > 10 && loading[loading.size() - 2].done == loading[0].total);
  EXPECT(runner.info().weightBytes > 4 * 30000 && runner.info().activationBytes > 0);

  // Five images on two lanes.
  const uint64_t five = runner.sample(request({1, 2, 3, 4, 5}));
  const JobEvent all = inbox.last(five);
  EXPECT(all.kind == JobEvent::Kind::Done && all.shape == (Shape{5, 4, 8, 8}), all.message);
  const auto progress = inbox.all(five);
  EXPECT(progress[progress.size() - 2].done == 25 && progress[0].total == 25);
  const JobEvent third = inbox.last(runner.sample(request({3})));
  EXPECT(std::equal(third.floats.begin(), third.floats.end(), all.floats.begin() + 2 * 256));

  // Errors of one job are its own.
  SampleRequest bad = request({1, 2});
  bad.labels[1] = 99;
  EXPECT(inbox.last(runner.sample(bad)).error == ErrorCode::Option);
  bad = request({1}, "5000");
  EXPECT(inbox.last(runner.sample(bad)).error == ErrorCode::Option);
  bad = request({1, 2});
  bad.noise.resize(3);
  EXPECT(inbox.last(runner.sample(bad)).error == ErrorCode::Shape);
  EXPECT(inbox.last(runner.decode({.n = 1, .height = 8, .width = 8, .latents = {}})).error ==
         ErrorCode::Option);
  EXPECT(inbox.last(runner.load(freshModel(test))).error == ErrorCode::Internal);
  bad = request({1});
  bad.noise.assign(256, NAN);
  EXPECT(inbox.last(runner.sample(bad)).kind == JobEvent::Kind::Done);  // latents as they are
  bad.latentOnly = false;
  EXPECT(inbox.last(runner.sample(bad)).error == ErrorCode::NonFinite);  // but no black picture
  EXPECT(inbox.last(runner.sample(request({3}))).floats == third.floats);

  EXPECT(inbox.last(runner.close()).kind == JobEvent::Kind::Done);
  EXPECT(inbox.last(runner.close()).kind == JobEvent::Kind::Done);
  EXPECT(inbox.last(runner.sample(request({3}))).error == ErrorCode::Closed);
}

DIT_CASE("runner/previews") {
  Inbox inbox;
  Runner runner(inbox.listener());
  inbox.last(runner.load(freshModel(test)));
  SampleRequest sample = request({1, 2}, "10");
  sample.previewEvery = 4;
  sample.latentOnly = false;
  const uint64_t job = runner.sample(sample);
  const JobEvent done = inbox.last(job);
  EXPECT(done.height == 8 && done.width == 8 && done.channels == 4 && done.bytes.size() == 512);
  int previews = 0;
  for (const JobEvent& event : inbox.all(job)) {
    if (event.kind != JobEvent::Kind::Preview) continue;
    previews++;
    EXPECT(event.bytes.size() == 256 && event.done % 4 == 0 && event.total == 10);
  }
  EXPECT(previews == 4, previews);
}

DIT_CASE("runner/cancel") {
  Inbox inbox;
  Runner runner(inbox.listener());
  inbox.last(runner.load(freshModel(test)));
  const std::vector<float> want = inbox.last(runner.sample(request({7}))).floats;
  for (int trial = 0; trial < 20; trial++) {
    const uint64_t victim = runner.sample(request({1, 2, 3}, "999"));
    const uint64_t other = runner.sample(request({7}));
    inbox.await(victim, static_cast<size_t>(trial % 5));
    runner.cancel(victim);
    EXPECT(inbox.last(victim).error == ErrorCode::Aborted);
    EXPECT(inbox.all(victim).size() < 100, "cancelled within a few steps");
    EXPECT(inbox.last(other).floats == want);
    runner.cancel(victim);
    runner.cancel(other);
    runner.cancel(1000000);
  }
}

DIT_CASE("runner/close") {
  for (int trial = 0; trial < 10; trial++) {
    Inbox inbox;
    std::vector<uint64_t> jobs;
    {
      Runner runner(inbox.listener());
      const uint64_t load = runner.load(freshModel(test));
      if (trial % 2) inbox.last(load);
      for (uint64_t i = 0; i < 4; i++) jobs.push_back(runner.sample(request({i}, "500")));
      inbox.await(jobs[0], static_cast<size_t>(trial % 4));
      if (trial < 5) jobs.push_back(runner.close());
    }
    for (size_t i = 0; i < 4; i++) EXPECT(inbox.last(jobs[i]).error == ErrorCode::Closed);
    if (trial < 5) EXPECT(inbox.last(jobs[4]).kind == JobEvent::Kind::Done);
  }
}

DIT_CASE("runner/many-threads") {
  Inbox inbox;
  Runner runner(inbox.listener());
  inbox.last(runner.load(freshModel(test, 4)));
  const std::vector<float> want = inbox.last(runner.sample(request({7}))).floats;
  std::vector<std::thread> threads;
  std::mutex mutex;
  int equal = 0;
  for (int i = 0; i < 8; i++) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 5; k++) {
        const uint64_t noise = runner.sample(request({static_cast<uint64_t>(i)}, "50"));
        const bool same = inbox.last(runner.sample(request({7}))).floats == want;
        if (k % 2) runner.cancel(noise);
        inbox.last(noise);
        const std::lock_guard lock(mutex);
        equal += same;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT(equal == 40, equal);
}

// Models of one process take turns on its threads and do not disturb one another.
DIT_CASE("runner/many-models") {
  Inbox inboxes[3];
  std::vector<std::unique_ptr<Runner>> runners;
  for (Inbox& inbox : inboxes) {
    runners.push_back(std::make_unique<Runner>(inbox.listener()));
    inbox.last(runners.back()->load(freshModel(test)));
  }
  const std::vector<float> want = inboxes[0].last(runners[0]->sample(request({7}))).floats;
  uint64_t jobs[3];
  for (int i = 0; i < 3; i++) jobs[i] = runners[i]->sample(request({7, 8, 7}, "5"));
  for (int i = 0; i < 3; i++) {
    const JobEvent done = inboxes[i].last(jobs[i]);
    EXPECT(std::equal(want.begin(), want.end(), done.floats.begin()), "model ", i);
    EXPECT(std::equal(want.begin(), want.end(), done.floats.begin() + 2 * 256), "model ", i);
  }
}

}  // namespace
}  // namespace dit::test
