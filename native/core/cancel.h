#pragma once

#include <atomic>

namespace dit {

// Asked to stop? Set by any thread, read by the thread that works: between rounds, between blocks
// and during the decode.
class CancelFlag {
 public:
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace dit
