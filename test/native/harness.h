#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "ops/backend.h"
#include "ops/ops.h"

// The harness of the C++ tests. A case registers itself and gets a `Test`:
//
//   DIT_CASE("silu/f32") {
//     const Values x = test.random(DType::F32, {3, 17});
//     DeviceTensor out = test.output(DType::F32, {3, 17});
//     test.ops().silu({.x = test.upload(x), .y = out});
//     EXPECT_MATCHES(out.download(), [&]<typename T>(T) { return oracle::silu(x.as<T>()); });
//   }
//
// Cases know nothing about the device: `dit_native_test --device cuda:0` runs the same ones there.

namespace dit::test {

// The numbers of a tensor on the host: whatever its type, each is held exactly.
struct Values {
  DType dtype = DType::F32;
  Shape shape;
  std::vector<double> v;

  // Rounds to dtype what is given.
  static Values of(DType dtype, Shape shape, std::vector<double> v);

  int64_t count() const { return static_cast<int64_t>(v.size()); }
  template <typename T>
  std::vector<T> as() const {
    return std::vector<T>(v.begin(), v.end());
  }
};

// The value that a variable of the type keeps of `value`.
double rounded(DType dtype, double value);
// What an operand in TF32 keeps of a float: 10 bits of the fraction, rounded to nearest, ties away
// from 0.
double roundedToTf32(double value);

// Device memory of one tensor, between two guards. Output tensors start as NaN (every bit set).
class DeviceTensor {
 public:
  DeviceTensor(Backend& backend, DType dtype, Shape shape);
  DeviceTensor(DeviceTensor&&) noexcept = default;

  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }

  void upload(const Values& values);
  // What it holds now. Throws Internal when a guard was written to.
  Values download() const;
  // Its bytes, to compare two results bit for bit.
  std::vector<char> bytes() const;

 private:
  Backend* backend_;
  DeviceBuffer memory_;
  Tensor tensor_;
};

struct Options {
  std::string device = "cpu";
  int threads = 0;
  int samples = 15;  // of a benchmark
  std::string json;  // a file: `bench` appends a line to it
};

// One running case: its device, its random numbers, its checks.
class Test {
 public:
  Test(std::string name, const Options& options);
  ~Test();

  const std::string& name() const { return name_; }
  const Options& options() const { return options_; }
  int failures() const { return failures_; }

  // The operations of the device under test, opened on first use.
  Ops& ops();
  Backend& backend() { return ops().backend(); }

  // Normal numbers times scale plus shift. Seeded by the case's name: the same in every run.
  Values random(DType dtype, Shape shape, double scale = 1, double shift = 0);
  // Integers in [0, n), of type I32.
  Values randomIndex(Shape shape, int64_t n);

  // A copy on the device that lives as long as the case.
  Tensor upload(const Values& values);
  Tensor upload(const std::vector<int32_t>& values);
  DeviceTensor output(DType dtype, Shape shape);

  void fail(const char* file, int line, const std::string& message);

  // The median time of `run` in seconds, after a warm-up, and one line of output: with it
  // the rates for `flops` operations and `bytes` of memory traffic, where not 0. With --json a line
  // of JSON, too; its label is what bench/peers joins it by.
  double bench(const std::string& label, double flops, double bytes,
               const std::function<void()>& run);

 private:
  // Until the device has done everything it was asked for.
  void wait();

  std::string name_;
  Options options_;
  int failures_ = 0;
  std::mt19937_64 random_;
  std::unique_ptr<Ops> ops_;
  std::vector<DeviceTensor> inputs_;
  DeviceBuffer fence_;  // a byte to wait by
};

enum class CaseKind {
  Plain,
  Kernel,  // of native/cpu/simd: on the CPU it runs once for each instruction set there is
  Full,    // of a full-size network, slow: runs with --full only
  Bench
};

struct Case {
  std::string name;
  CaseKind kind;
  std::function<void(Test& test)> run;
};

std::vector<Case>& registry();

// Registers a case; for families of cases, from an initialiser: see DIT_CASES.
void addCase(CaseKind kind, std::string name, std::function<void(Test& test)> run);

struct Registrar {
  explicit Registrar(const std::function<void()>& add) { add(); }
};

// ||got - want|| / ||want||, in float64; infinite where got is not finite, absolute where want is
// 0.
double relativeL2(const std::vector<double>& got, const std::vector<double>& want);

// The tolerance rule: relative L2 error at most twice that of the naive run in the same precision.
// `naive` is rounded to the type of `got` here. Where the naive run has no error, neither may
// `got`; where it has, an error of one rounding is allowed in any case.
std::string compare(const Values& got, const std::vector<double>& want,
                    const std::vector<double>& naive);

// Runs the oracle in double and in float and compares.
template <typename Oracle>
std::string compareWithOracle(const Values& got, Oracle&& oracle) {
  const std::vector<float> naive = oracle(float{});
  return compare(got, oracle(double{}), std::vector<double>(naive.begin(), naive.end()));
}

// The message of an error of this code thrown by `run`; otherwise fails the case and returns "".
std::string expectError(Test& test, const char* file, int line, ErrorCode code,
                        const std::function<void()>& run);

}  // namespace dit::test

#define DIT_CONCAT2(a, b) a##b
#define DIT_CONCAT(a, b) DIT_CONCAT2(a, b)

#define DIT_CASE_AS(kind, name)                                                             \
  static void DIT_CONCAT(ditCase, __LINE__)(::dit::test::Test & test);                      \
  static const ::dit::test::Registrar DIT_CONCAT(ditRegistrar, __LINE__)([] {               \
    ::dit::test::addCase(::dit::test::CaseKind::kind, name, DIT_CONCAT(ditCase, __LINE__)); \
  });                                                                                       \
  static void DIT_CONCAT(ditCase, __LINE__)([[maybe_unused]] ::dit::test::Test & test)

#define DIT_CASE(name) DIT_CASE_AS(Plain, name)
#define DIT_KERNEL_CASE(name) DIT_CASE_AS(Kernel, name)
#define DIT_FULL_CASE(name) DIT_CASE_AS(Full, name)
#define DIT_BENCH(name) DIT_CASE_AS(Bench, name)

// A block that calls addCase in loops.
#define DIT_CASES(unique)                                                    \
  static void unique();                                                      \
  static const ::dit::test::Registrar DIT_CONCAT(unique, Registrar)(unique); \
  static void unique()

// The parts after the condition are the message.
#define EXPECT(condition, ...)                                                       \
  do {                                                                               \
    if (!(condition))                                                                \
      test.fail(__FILE__, __LINE__,                                                  \
                ::dit::detail::concat(#condition __VA_OPT__(, ": ", ) __VA_ARGS__)); \
  } while (false)

// got: Values; oracle: []<typename T>(T) -> std::vector<T>, run with T = double and float.
#define EXPECT_MATCHES(got, ...)                                                       \
  do {                                                                                 \
    const std::string ditProblem = ::dit::test::compareWithOracle((got), __VA_ARGS__); \
    if (!ditProblem.empty()) test.fail(__FILE__, __LINE__, #got ": " + ditProblem);    \
  } while (false)

// Runs the statement, which has to throw dit::Error with this code; gives its message.
#define EXPECT_ERROR(code, ...) \
  ::dit::test::expectError(test, __FILE__, __LINE__, ::dit::ErrorCode::code, [&] { __VA_ARGS__; })
