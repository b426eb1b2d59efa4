#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "model/runner.h"

namespace dit {

// Events on their way from the model's thread to one that may be slow to take them, in their order.
// The model's thread never waits. While more is in here than the limits below, progress of a job
// takes the place of its progress that nobody has taken yet, and a preview that of the image's last
// one; a job's last event never has to give way.
class Outbox {
 public:
  static constexpr size_t kEvents = 1024;
  static constexpr size_t kPreviewBytes = 4 << 20;

  // Whether there is one event more to take.
  bool put(JobEvent&& event);
  std::optional<JobEvent> take();

 private:
  using Key = std::tuple<JobEvent::Kind, uint64_t, int64_t>;  // kind, job, image
  static Key keyOf(const JobEvent& event) { return {event.kind, event.job, event.image}; }

  std::mutex mutex_;  // guards what follows
  std::list<JobEvent> events_;
  std::map<Key, std::list<JobEvent>::iterator> latest_;  // of what may give way
  size_t previewBytes_ = 0;
};

}  // namespace dit
