#include "model/outbox.h"

#include <utility>

namespace dit {

namespace {

bool mayGiveWay(const JobEvent& event) {
  return event.kind == JobEvent::Kind::Progress || event.kind == JobEvent::Kind::Preview;
}

size_t bytesOf(const JobEvent& event) {
  return event.kind == JobEvent::Kind::Preview ? event.bytes.size() : 0;
}

}  // namespace

bool Outbox::put(JobEvent&& event) {
  const std::lock_guard lock(mutex_);
  const Key key = keyOf(event);
  const auto waiting = latest_.find(key);
  const bool full = event.kind == JobEvent::Kind::Preview
                        ? previewBytes_ + bytesOf(event) > kPreviewBytes
                        : events_.size() >= kEvents;
  previewBytes_ += bytesOf(event);
  if (full && waiting != latest_.end()) {
    previewBytes_ -= bytesOf(*waiting->second);
    *waiting->second = std::move(event);
    return false;
  }
  events_.push_back(std::move(event));
  if (mayGiveWay(events_.back())) latest_[key] = std::prev(events_.end());
  return true;
}

std::optional<JobEvent> Outbox::take() {
  const std::lock_guard lock(mutex_);
  if (events_.empty()) return std::nullopt;
  const auto latest = latest_.find(keyOf(events_.front()));
  if (latest != latest_.end() && latest->second == events_.begin()) latest_.erase(latest);
  std::optional<JobEvent> event = std::move(events_.front());
  previewBytes_ -= bytesOf(*event);
  events_.pop_front();
  return event;
}

}  // namespace dit
