#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "harness.h"

// Ops refuses what does not fit before any backend sees it: a Checker gives an operation arguments
// that are right, then some that are wrong, and reads the message.

namespace dit::test {

// A tensor that no kernel may touch.
inline Tensor fake(DType dtype, Shape shape) {
  static char nothing[1];
  return {nothing, dtype, shape};
}

inline Tensor f32(Shape shape) { return fake(DType::F32, shape); }
inline Tensor bf16(Shape shape) { return fake(DType::BF16, shape); }
inline Tensor i32(Shape shape) { return fake(DType::I32, shape); }

// Rows further apart than they are long.
inline Tensor strided(Tensor tensor) {
  tensor.rowStride += 8;
  return tensor;
}

// Does nothing: what passes the checks ends here.
class NoBackend : public Backend {
 public:
  int calls = 0;

  std::string name() const override { return "none"; }
  bool supports(Precision) const override { return true; }
  void* allocate(size_t) override { fail(ErrorCode::Internal, "no memory here"); }
  void free(void*) override {}
  size_t freeBytes() const override { return 0; }
  void upload(const Tensor&, const void*) override {}
  void download(void*, const Tensor&) override {}
  void zero(const Tensor&) override {}
  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs&) override {
    calls++;
    return nullptr;
  }
  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs&) override {
    calls++;
    return nullptr;
  }
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs&) override {
    calls++;
    return nullptr;
  }
#define DIT_COUNT(name, Args) \
  void name(const Args&) override { calls++; }
  DIT_OPERATIONS(DIT_COUNT)
#undef DIT_COUNT
};

class NoWeight : public PreparedWeight {
 public:
  size_t bytes() const override { return 0; }
};

// Calls one operation with arguments of type Args: right, and changed into wrong ones.
template <typename Args>
class Checker {
 public:
  using Operation = void (Ops::*)(const Args& args);

  Checker(Test& test, const char* name, Operation operation, Args right)
      : test_(test), name_(name), operation_(operation), right_(std::move(right)) {
    passes([](Args&) {});
  }

  void passes(const std::function<void(Args&)>& change) {
    Args args = right_;
    change(args);
    try {
      (ops_.*operation_)(args);
    } catch (const Error& error) {
      test_.fail(__FILE__, __LINE__, detail::concat("refused: ", error.what()));
    }
    calls_++;
    if (backend_->calls != calls_) {
      test_.fail(__FILE__, __LINE__, detail::concat(name_, " did not reach the backend"));
      calls_ = backend_->calls;
    }
  }

  // The message has to name the operation and contain every one of `words`.
  void refuses(const std::vector<std::string>& words, const std::function<void(Args&)>& change) {
    Args args = right_;
    change(args);
    const std::string message =
        expectError(test_, __FILE__, __LINE__, ErrorCode::Shape, [&] { (ops_.*operation_)(args); });
    std::vector<std::string> all = words;
    all.push_back(std::string(name_) + ": ");
    for (const std::string& word : all) {
      if (message.find(word) == std::string::npos) {
        test_.fail(__FILE__, __LINE__,
                   detail::concat("no \"", word, "\" in the message \"", message, "\""));
      }
    }
    if (backend_->calls != calls_) {
      test_.fail(__FILE__, __LINE__, detail::concat(name_, " reached the backend: ", message));
      calls_ = backend_->calls;
    }
  }

 private:
  Test& test_;
  const char* name_;
  Operation operation_;
  Args right_;
  NoBackend* backend_ = new NoBackend;
  Ops ops_{std::unique_ptr<Backend>(backend_)};
  int calls_ = 0;
};

inline RowVector vector(Shape table, int64_t rows) { return {f32(table), i32({rows})}; }

}  // namespace dit::test
