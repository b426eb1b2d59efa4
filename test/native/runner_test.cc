// The model's thread: jobs in any order, cancelled and closed at any time.
#include "model/runner.h"

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "dit_model.h"
#include "harness.h"

namespace dit::test {
namespace {

// Collects the events of a runner; `last` waits for the one that ends a job.
class Inbox {
 public:
  Runner::Listener listener() {
    return [this](JobEvent&& event) {
      const std::lock_guard lock(mutex_);
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

  std::vector<JobEvent> all(uint64_t job) {
    const std::lock_guard lock(mutex_);
    return events_[job];
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<uint64_t, std::vector<JobEvent>> events_;
};

ModelSpec freshModel(const Test& test, int64_t maxLanes = 2) {
  ModelSpec spec;
  spec.backend.device = test.options().device;
  spec.backend.threads = test.options().threads;
  spec.dit = fixtureConfig("micro24");
  spec.initSeed = 1;
  spec.maxLanes = maxLanes;
  return spec;
}

SampleRequest request(std::vector<uint64_t> seeds, const char* steps = "5") {
  SampleRequest sample;
  sample.plan = {.sampler = SamplerKind::Ddim, .spacing = steps};
  sample.labels.assign(seeds.size(), 1);
  sample.seeds = std::move(seeds);
  sample.guidance = 2;
  sample.guidanceChannels = 3;
  sample.latentOnly = true;
  return sample;
}

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

// ------------------------------------------------------------------ weights

// A file that goes away with its owner.
struct TemporaryFile {
  explicit TemporaryFile(const Test& test)
      : path(std::string(std::getenv("TMPDIR") ? std::getenv("TMPDIR") : "/tmp") +
             "/dit_native_test_" + std::to_string(std::hash<std::string>()(test.name())) + "_" +
             std::to_string(reinterpret_cast<uintptr_t>(this))) {}
  ~TemporaryFile() { std::remove(path.c_str()); }
  void write(const void* data, size_t bytes) const {
    std::ofstream(path, std::ios::binary)
        .write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  }
  std::string path;
};

DIT_CASE("weights/files") {
  const TemporaryFile file(test);
  std::vector<float> numbers;
  for (int i = 0; i < 24; i++) numbers.push_back(static_cast<float>(i) * 0.5f);
  file.write(numbers.data(), numbers.size() * 4);
  const TensorPart whole{file.path, 0, DType::F32, {4, 6}, {6, 1}};
  const TensorPart transposed{file.path, 0, DType::F32, {6, 4}, {1, 6}};
  const TensorPart column{file.path, 8, DType::F32, {4, 1}, {6, 1}};
  const TensorPart repeated{file.path, 4, DType::F32, {3, 2}, {0, 1}};
  const TensorPart halves{file.path, 2, DType::BF16, {2, 2}, {2, 4}};
  const TensorPart nothing{file.path, 96, DType::F32, {0, 3}, {3, 1}};
  const auto source = openWeightFiles({{"whole", {whole}},
                                       {"transposed", {transposed}},
                                       {"parts", {column, column}},
                                       {"repeated", {repeated}},
                                       {"halves", {halves}},
                                       {"nothing", {nothing}},
                                       {"scalar", {{file.path, 12, DType::F32, {}, {}}}}});
  const auto values = [&](const char* name) { return floats(source->read(name, false)); };
  EXPECT(values("whole") == numbers);
  EXPECT(values("transposed")[1] == 3 && values("transposed")[4] == 0.5f);
  EXPECT(values("parts") == (std::vector<float>{1, 4, 7, 10, 1, 4, 7, 10}));
  EXPECT(source->shape("parts") == (Shape{8, 1}));
  EXPECT(values("repeated") == (std::vector<float>{0.5f, 1, 0.5f, 1, 0.5f, 1}));
  // The upper halves of numbers 0, 2, 1 and 3: small ones are exact in bfloat16.
  EXPECT(values("halves") == (std::vector<float>{0, 1, 0.5f, 1.5f}));
  EXPECT(source->read("halves", true).dtype == DType::BF16);
  EXPECT(values("nothing").empty() && values("scalar") == (std::vector<float>{1.5f}));
  EXPECT_ERROR(Format, source->read("absent", false));
  EXPECT_ERROR(Format, source->read(ParamSpec{"whole", {6, 4}}, false));

  const auto open = [&](TensorPart part) { openWeightFiles({{"w", {std::move(part)}}}); };
  EXPECT_ERROR(File, open({file.path, 4, DType::F32, {4, 6}, {6, 1}}));
  EXPECT_ERROR(File, open({file.path, 0, DType::F32, {5, 6}, {6, 1}}));
  EXPECT_ERROR(File, open({file.path, ~uint64_t{0} - 3, DType::F32, {1}, {1}}));
  EXPECT_ERROR(File, open({file.path, 0, DType::F32, {2}, {int64_t{1} << 62}}));
  EXPECT_ERROR(File,
               open({file.path, 0, DType::F32, {int64_t{1} << 40, int64_t{1} << 40}, {0, 0}}));
  EXPECT_ERROR(Format, open({file.path, 0, DType::F32, {-1}, {1}}));
  EXPECT_ERROR(Format, open({file.path, 0, DType::F32, {1}, {-1}}));
  EXPECT_ERROR(Format, open({file.path, 0, DType::F32, {1, 1}, {1}}));
  EXPECT_ERROR(File, open({file.path + ".absent", 0, DType::F32, {1}, {1}}));
}

DIT_CASE("weights/save") {
  const TemporaryFile file(test);
  const DitConfig config = fixtureConfig("micro24");
  const std::vector<ParamSpec> params = ditParams(config);
  const auto source = initialWeights(params, 5);
  writeWeights(file.path, "header", *source,
               {{"blocks.0.attn.qkv.weight", 24, 48, DType::F32},
                {"x_embedder.proj.weight", 0, 24, DType::BF16}});
  const std::string bytes = readFile(file.path);
  EXPECT(bytes.size() == 6 + 24 * 24 * 4 + 24 * 16 * 2 && bytes.rfind("header", 0) == 0);
  const std::vector<float> qkv = floats(source->read("blocks.0.attn.qkv.weight", false));
  EXPECT(std::memcmp(bytes.data() + 6, qkv.data() + 24 * 24, 24 * 24 * 4) == 0);
  EXPECT_ERROR(File, writeWeights("/nonexistent/file", "", *source, {}));
  EXPECT_ERROR(Internal, writeWeights(file.path, "", *source,
                                      {{"x_embedder.proj.weight", 0, 25, DType::F32}}));
  EXPECT(readFile(file.path) == bytes);  // the failed write left the old file alone
}

// Xavier: uniform within its bound; normal 0.02; zeros where DiT starts as the identity.
DIT_CASE("weights/initial") {
  const auto source = initialWeights(ditParams(fixtureConfig("a96h4")), 5);
  const auto stats = [&](const char* name) {
    double mean = 0, square = 0, largest = 0;
    const std::vector<float> values = floats(source->read(name, false));
    for (float value : values) {
      mean += value / static_cast<double>(values.size());
      square += static_cast<double>(value) * value / static_cast<double>(values.size());
      largest = std::max<double>(largest, std::abs(value));
    }
    return std::vector<double>{mean, std::sqrt(square), largest};
  };
  const double bound = std::sqrt(6.0 / (96 + 288));
  const auto qkv = stats("blocks.1.attn.qkv.weight");
  EXPECT(std::abs(qkv[0]) < 0.003 && std::abs(qkv[1] - bound / std::sqrt(3.0)) < 0.002 &&
         qkv[2] <= bound && qkv[2] > 0.99 * bound);
  const auto table = stats("t_embedder.mlp.0.weight");
  EXPECT(std::abs(table[1] - 0.02) < 0.0005, table[1]);
  EXPECT(stats("final_layer.linear.weight")[2] == 0);
  EXPECT(stats("blocks.0.adaLN_modulation.1.weight")[2] == 0);
  EXPECT(floats(source->read("blocks.0.attn.qkv.weight", false)) !=
         floats(source->read("blocks.1.attn.qkv.weight", false)));
}

}  // namespace
}  // namespace dit::test
