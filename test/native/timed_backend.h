#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "forwarding_backend.h"

namespace dit::test {

// Where the time of an autoencoder goes: one line for each operation and shape, over several runs
// of the same work the least time of each. Waits for the device after every operation.
class TimedBackend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void conv2d(const Conv2dArgs& args) override {
    const int64_t kernel = args.padLeft + args.padRight + 1;  // of the convolutions there are
    const double flops = 2.0 * static_cast<double>(args.y.count() * args.x.shape[3] * kernel) *
                         static_cast<double>(kernel);
    const std::string how = detail::concat(args.upsample ? "conv2d, upsampled" : "conv2d", " ",
                                           kernel, "x", kernel, args.residual ? " + residual" : "");
    time(how, args.x, args.y, flops, [&] { inner().conv2d(args); });
  }
  void groupNorm(const GroupNormArgs& args) override {
    time("groupNorm", args.x, args.y, 0, [&] { inner().groupNorm(args); });
  }
  void attention(const AttentionArgs& args) override {
    const double tokens = static_cast<double>(args.y.shape[1]);
    time("attention", args.qkv, args.y, 4 * tokens * static_cast<double>(args.y.count()),
         [&] { inner().attention(args); });
  }
  void toChannelsLast(const ToChannelsLastArgs& args) override {
    time("toChannelsLast", args.x, args.y, 0, [&] { inner().toChannelsLast(args); });
  }
  void toRgb8(const ToRgb8Args& args) override {
    time("toRgb8", args.x, args.y, 0, [&] { inner().toRgb8(args); });
  }

  // Call it after each run of the work.
  void endRun() {
    for (size_t i = 0; i < run_.size(); i++) {
      if (i == best_.size()) best_.push_back(run_[i]);
      best_[i].seconds = std::min(best_[i].seconds, run_[i].seconds);
    }
    run_.clear();
  }

  void print() const {
    std::map<std::string, Entry> sums;
    std::map<std::string, int> calls;
    double total = 0;
    for (const Entry& entry : best_) {
      Entry& sum = sums[entry.label];
      sum.seconds += entry.seconds;
      sum.flops += entry.flops;
      sum.bytes += entry.bytes;
      calls[entry.label]++;
      total += entry.seconds;
    }
    std::vector<std::pair<double, std::string>> order;
    for (const auto& [label, sum] : sums) order.emplace_back(-sum.seconds, label);
    std::sort(order.begin(), order.end());
    for (const auto& [_, label] : order) {
      const Entry& sum = sums[label];
      std::printf("%8.2f ms %5.1f %% %3d x %-64s %7.1f GFLOP/s %6.1f GB/s\n", sum.seconds * 1e3,
                  100 * sum.seconds / total, calls[label], label.c_str(),
                  sum.flops / sum.seconds * 1e-9, sum.bytes / sum.seconds * 1e-9);
    }
    std::printf("%8.2f ms in all\n", total * 1e3);
  }

 private:
  struct Entry {
    std::string label;
    double seconds = 0, flops = 0, bytes = 0;
  };

  template <typename Operation>
  void time(const std::string& what, const Tensor& x, const Tensor& y, double flops,
            const Operation& operation) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    operation();
    char byte;
    inner().download(&byte, Tensor(y.data, DType::U8, {1}));
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    run_.push_back({detail::concat(what, " ", x.shape, " -> ", y.shape), seconds, flops,
                    static_cast<double>(x.bytes() + y.bytes())});
  }

  std::vector<Entry> run_, best_;
};

}  // namespace dit::test
