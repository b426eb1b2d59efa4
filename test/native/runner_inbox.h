#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "dit_model.h"
#include "harness.h"
#include "model/runner.h"

// A runner's events as its tests want them, and small requests.

namespace dit::test {

// Collects the events of a runner; `last` waits for the one that ends a job.
class Inbox {
 public:
  Runner::Listener listener() {
    return [this](JobEvent&& event) {
      const std::lock_guard lock(mutex_);
      order_.push_back(event.job);
      events_[event.job].push_back(std::move(event));
      arrived_.notify_all();
    };
  }

  JobEvent last(uint64_t job) {
    std::unique_lock lock(mutex_);
    const auto ended = [&] {
      return !events_[job].empty() && events_[job].back().kind >= JobEvent::Kind::Done;
    };
    if (!arrived_.wait_for(lock, std::chrono::seconds(60), ended)) {
      fail(ErrorCode::Internal, "job ", job, " has not ended after a minute");
    }
    return events_[job].back();
  }

  // Waits for the nth event of a job.
  void await(uint64_t job, size_t n) {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, std::chrono::seconds(60), [&] { return events_[job].size() >= n; });
  }

  // The job of every event, as they came.
  std::vector<uint64_t> order() {
    const std::lock_guard lock(mutex_);
    return order_;
  }

  std::vector<JobEvent> all(uint64_t job) {
    const std::lock_guard lock(mutex_);
    return events_[job];
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<uint64_t, std::vector<JobEvent>> events_;
  std::vector<uint64_t> order_;
};

inline ModelSpec freshModel(const Test& test, int64_t maxLanes = 2) {
  ModelSpec spec;
  spec.backend.device = test.options().device;
  spec.backend.threads = test.options().threads;
  spec.dit = fixtureConfig("micro24");
  spec.initSeed = 1;
  spec.maxLanes = maxLanes;
  return spec;
}

inline SampleRequest request(std::vector<uint64_t> seeds, const char* steps = "5") {
  SampleRequest sample;
  sample.plan = {.sampler = SamplerKind::Ddim, .spacing = steps};
  sample.labels.assign(seeds.size(), 1);
  sample.seeds = std::move(seeds);
  sample.guidance = 2;
  sample.guidanceChannels = 3;
  sample.latentOnly = true;
  return sample;
}

}  // namespace dit::test
