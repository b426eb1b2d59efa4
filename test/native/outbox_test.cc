// Events between the model's thread and one that is slow.
#include "model/outbox.h"

#include <thread>

#include "harness.h"

namespace dit::test {
namespace {

JobEvent event(JobEvent::Kind kind, uint64_t job, int64_t done, int64_t image = 0,
               size_t bytes = 0) {
  JobEvent made;
  made.kind = kind;
  made.job = job;
  made.done = done;
  made.image = image;
  made.bytes.resize(bytes);
  return made;
}

std::vector<JobEvent> takeAll(Outbox& outbox) {
  std::vector<JobEvent> all;
  while (std::optional<JobEvent> next = outbox.take()) all.push_back(std::move(*next));
  return all;
}

DIT_CASE("outbox/order") {
  Outbox outbox;
  EXPECT(!outbox.take());
  for (int64_t i = 0; i < 100; i++) {
    EXPECT(outbox.put(event(i % 3 ? JobEvent::Kind::Progress : JobEvent::Kind::Preview, 1, i)));
  }
  const std::vector<JobEvent> all = takeAll(outbox);
  EXPECT(all.size() == 100);
  for (int64_t i = 0; i < 100; i++) EXPECT(all[i].done == i);
}

DIT_CASE("outbox/progress-gives-way") {
  Outbox outbox;
  size_t events = 0;
  for (int64_t i = 1; i <= 100000; i++) {
    events += outbox.put(event(JobEvent::Kind::Progress, 1, i));
    if (i == 50000) events += outbox.put(event(JobEvent::Kind::Done, 2, 0));
    if (i == 60000) events += outbox.put(event(JobEvent::Kind::Progress, 3, i));
  }
  events += outbox.put(event(JobEvent::Kind::Failed, 1, 0));
  const std::vector<JobEvent> all = takeAll(outbox);
  EXPECT(all.size() == events && events == Outbox::kEvents + 3, events);
  EXPECT(all[Outbox::kEvents - 2].done == Outbox::kEvents - 1);
  EXPECT(all[Outbox::kEvents - 1].done == 100000, "the latest, in the place of an older one");
  EXPECT(all[Outbox::kEvents].job == 2 && all[Outbox::kEvents].kind == JobEvent::Kind::Done);
  EXPECT(all[Outbox::kEvents + 1].job == 3, "progress that none waits for comes in");
  EXPECT(all.back().kind == JobEvent::Kind::Failed);
}

DIT_CASE("outbox/previews-give-way") {
  Outbox outbox;
  constexpr size_t kBytes = 1 << 20;
  for (int64_t step = 1; step <= 50; step++) {
    for (int64_t image = 0; image < 8; image++) {
      outbox.put(event(JobEvent::Kind::Preview, 1, step, image, kBytes));
    }
    outbox.put(event(JobEvent::Kind::Progress, 1, step));
  }
  const std::vector<JobEvent> all = takeAll(outbox);
  size_t bytes = 0, progress = 0, last = 0;
  for (const JobEvent& next : all) {
    bytes += next.bytes.size();
    progress += next.kind == JobEvent::Kind::Progress;
    last += next.kind == JobEvent::Kind::Preview && next.done == 50;
  }
  EXPECT(bytes == 8 * kBytes, bytes, " bytes: one preview of each image");
  EXPECT(last == 8 && progress == 50, last, ", ", progress);
  // There is room again.
  EXPECT(outbox.put(event(JobEvent::Kind::Preview, 1, 1, 0, kBytes)));
  EXPECT(outbox.put(event(JobEvent::Kind::Preview, 1, 2, 0, kBytes)));
  EXPECT(takeAll(outbox).size() == 2);
}

DIT_CASE("outbox/threads") {
  Outbox outbox;
  constexpr int64_t kSteps = 200000;
  std::thread teller([&] {
    for (int64_t i = 1; i <= kSteps; i++) {
      outbox.put(event(i % 5 ? JobEvent::Kind::Progress : JobEvent::Kind::Preview, 1, i, 0, 1000));
    }
    outbox.put(event(JobEvent::Kind::Done, 1, 0));
  });
  int64_t previous[2] = {0, 0};
  bool ordered = true, ended = false;
  while (!ended) {
    const std::optional<JobEvent> next = outbox.take();
    if (!next) continue;
    ended = next->kind == JobEvent::Kind::Done;
    int64_t& of = previous[next->kind == JobEvent::Kind::Preview];
    if (!ended) ordered = ordered && next->done > of, of = next->done;
  }
  teller.join();
  EXPECT(ordered, "each kind is in order");
  EXPECT(previous[0] == kSteps - 1 && previous[1] == kSteps, "the latest of each kind comes");
  EXPECT(!outbox.take());
}

}  // namespace
}  // namespace dit::test
