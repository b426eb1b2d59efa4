// dit_native_test: the C++ tests and benchmarks.
//
//   dit_native_test [--list] [--full | --bench] [--device cpu] [--threads n] [--isa name]
//                   [--shard i/n] [--trace] [--samples n] [--json file] [filter ...]
//
// Runs the cases whose names contain one of the filters, or are one given as "=name" (all without a
// filter), and prints each failed check with its file and line, last `N passed, N failed`. --full
// runs the slow cases too, those of full-size networks; --bench runs the benchmarks instead. Cases
// of the CPU's own kernels run once for each instruction set that this processor has; --isa names
// one, for those, for all other cases and for benchmarks. --shard runs every n-th of the chosen
// cases, from number i on, counted from 0. --trace names each case before it runs and times it
// after. A benchmark takes so many samples, and appends a line of JSON to the file for each time
// that it prints.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/kernels.h"
#include "harness.h"

using dit::test::Case;
using dit::test::CaseKind;
using dit::test::Options;
using dit::test::Test;

namespace {

constexpr int kUsageError = 2;

struct Arguments {
  bool list = false, full = false, bench = false, trace = false;
  size_t shard = 0, shards = 1;
  Options options;
  std::string isa;
  std::vector<std::string_view> filters;
};

// All of the text as a number.
template <typename Number>
bool parseNumber(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

bool parseShard(std::string_view text, Arguments& arguments) {
  const size_t slash = text.find('/');
  return slash != std::string_view::npos && parseNumber(text.substr(0, slash), arguments.shard) &&
         parseNumber(text.substr(slash + 1), arguments.shards) &&
         arguments.shard < arguments.shards;
}

bool parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; i++) {
    const std::string_view name = argv[i];
    const std::string_view value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--list") {
      arguments.list = true;
    } else if (name == "--full") {
      arguments.full = true;
    } else if (name == "--bench") {
      arguments.bench = true;
    } else if (name == "--device" && !value.empty()) {
      arguments.options.device = argv[++i];
    } else if (name == "--isa" && !value.empty()) {
      arguments.isa = argv[++i];
    } else if (name == "--json" && !value.empty()) {
      arguments.options.json = argv[++i];
    } else if (name == "--trace") {
      arguments.trace = true;
    } else if (name == "--threads" && !value.empty()) {
      i++;
      if (!parseNumber(value, arguments.options.threads)) return false;
    } else if (name == "--samples" && !value.empty()) {
      i++;
      if (!parseNumber(value, arguments.options.samples)) return false;
      if (arguments.options.samples < 1) return false;
    } else if (name == "--shard" && !value.empty()) {
      i++;
      if (!parseShard(value, arguments)) return false;
    } else if (name.starts_with("--")) {
      return false;
    } else {
      arguments.filters.push_back(name);
    }
  }
  return true;
}

bool chosen(const std::string& name, const std::vector<std::string_view>& filters) {
  return filters.empty() || std::any_of(filters.begin(), filters.end(), [&](std::string_view f) {
           if (f.starts_with('=')) return name == f.substr(1);
           return name.find(f) != std::string::npos;
         });
}

// The runs that the arguments ask for: of each case one, of a kernel's one per instruction set.
struct Run {
  const Case* test;
  std::string name;
  std::string isa;  // "": the best
};

std::vector<Run> plan(const Arguments& arguments) {
  std::vector<Run> runs;
  for (const Case& c : dit::test::registry()) {
    if ((c.kind == CaseKind::Bench) != arguments.bench) continue;
    if (c.kind == CaseKind::Full && !arguments.full) continue;
    if (c.kind == CaseKind::Kernel && arguments.isa.empty() && arguments.options.device == "cpu") {
      for (const char* isa : dit::cpu::supportedIsas())
        runs.push_back({&c, c.name + "/" + isa, isa});
    } else {
      runs.push_back({&c, c.name, arguments.isa});
    }
  }
  std::erase_if(runs, [&](const Run& run) { return !chosen(run.name, arguments.filters); });
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.name < b.name; });
  std::vector<Run> mine;
  for (size_t i = arguments.shard; i < runs.size(); i += arguments.shards) mine.push_back(runs[i]);
  return mine;
}

bool execute(const Run& run, const Options& options, bool trace) {
  using Clock = std::chrono::steady_clock;
  setenv("DIT_CPU_ISA", run.isa.c_str(), 1);
  const Clock::time_point begin = Clock::now();
  if (trace) {
    std::printf("run  %s\n", run.name.c_str());
    std::fflush(stdout);
  }
  Test test(run.name, options);
  try {
    run.test->run(test);
  } catch (const std::exception& error) {
    test.fail(__FILE__, __LINE__, dit::detail::concat("threw: ", error.what()));
  }
  if (trace) {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    std::printf("%s %s %.3f s\n", test.failures() == 0 ? "ok  " : "FAIL", run.name.c_str(),
                seconds);
  }
  return test.failures() == 0;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  if (!parse(argc, argv, arguments)) {
    std::fprintf(stderr,
                 "usage: %s [--list] [--full | --bench] [--device cpu] [--threads n] "
                 "[--isa name] [--shard i/n] [--trace] [--samples n] [--json file] [filter ...]\n",
                 argv[0]);
    return kUsageError;
  }
  const std::vector<Run> runs = plan(arguments);
  if (runs.empty()) {
    std::fprintf(stderr, "no case was chosen\n");
    return kUsageError;
  }
  int passed = 0, failed = 0;
  for (const Run& run : runs) {
    if (arguments.list) {
      std::printf("%s\n", run.name.c_str());
    } else {
      (execute(run, arguments.options, arguments.trace) ? passed : failed)++;
      std::fflush(stdout);
    }
  }
  if (!arguments.list) std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
