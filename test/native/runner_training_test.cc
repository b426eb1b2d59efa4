// Training on the model's thread: steps, sampling meanwhile, checkpoints.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <thread>

#include "runner_inbox.h"
#include "temporary_file.h"

namespace dit::test {
namespace {

constexpr int64_t kRows = 8, kCount = 4 * 8 * 8;  // numbers of a latent of micro24

TrainerRequest trainerRequest() {
  TrainerRequest request;
  request.options.seed = 11;
  request.options.microBatch = 3;
  request.options.globalBatch = kRows;
  return request;
}

// Rows [first, first + n) of a step; the same whenever they are asked for.
AccumulateRequest rows(int64_t first = 0, int64_t n = kRows) {
  AccumulateRequest request;
  request.n = n;
  for (int64_t row = first; row < first + n; row++) {
    for (int64_t i = 0; i < kCount; i++) {
      request.x.push_back(std::sin(0.1f * static_cast<float>((row + 1) * i)));
    }
    request.labels.push_back(static_cast<int32_t>(row % 5));
  }
  request.firstRow = first;
  request.globalBatch = kRows;
  return request;
}

// The parameters of a model, one after another, as F32.
std::vector<SavedTensor> allTensors() {
  std::vector<SavedTensor> tensors;
  for (const ParamSpec& param : ditParams(fixtureConfig("micro24"))) {
    tensors.push_back({param.name, 0, param.shape[0], DType::F32});
  }
  return tensors;
}

// Where they are then.
std::vector<TensorSource> sources(const std::string& file) {
  std::vector<TensorSource> tensors;
  uint64_t offset = 0;
  for (const ParamSpec& param : ditParams(fixtureConfig("micro24"))) {
    TensorPart part{file, offset, DType::F32, {}, {}};
    int64_t stride = param.shape.count();
    for (int i = 0; i < param.shape.rank(); i++) {
      stride /= param.shape[i];
      part.shape.push_back(param.shape[i]);
      part.strides.push_back(stride);
    }
    tensors.push_back({param.name, {part}});
    offset += static_cast<uint64_t>(param.shape.count()) * sizeof(float);
  }
  return tensors;
}

const ApplyRequest kApply{{.lr = 1e-2f, .emaDecay = 0.5f}};

using Part = SaveRequest::Part;
constexpr Part kState[] = {Part::Model, Part::Ema, Part::FirstMoment, Part::SecondMoment};

// A loaded model and its events, one job at a time.
struct Training {
  Training(Test& test, ModelSpec spec) : test(test), runner(inbox.listener()) {
    done(runner.load(std::move(spec)));
  }
  explicit Training(Test& test) : Training(test, freshModel(test)) {}

  JobEvent done(uint64_t job) {
    JobEvent event = inbox.last(job);
    if (event.kind != JobEvent::Kind::Done) fail(event.error, event.message);
    return event;
  }

  StepResult step(const AccumulateRequest& request) {
    done(runner.accumulate(request));
    return done(runner.apply(kApply)).step.value();
  }

  std::vector<float> sample() { return done(runner.sample(request({7}))).floats; }

  std::string saved(Part part) {
    const TemporaryFile file(test);
    done(runner.save({.path = file.path, .header = "", .part = part, .tensors = allTensors()}));
    return readFile(file.path);
  }

  Test& test;
  Inbox inbox;
  Runner runner;
};

DIT_CASE("runner/training") {
  Training model(test);
  Runner& runner = model.runner;
  const auto error = [&](uint64_t job) { return model.inbox.last(job).error; };
  // Without a trainer.
  EXPECT(error(runner.accumulate(rows())) == ErrorCode::Option);
  EXPECT(error(runner.apply({})) == ErrorCode::Option);
  for (const Part part : kState) {
    EXPECT(error(runner.save({.path = "/nowhere", .header = "", .part = part, .tensors = {}})) ==
           ErrorCode::Option);
  }
  EXPECT(runner.info().trainerBytes == 0);

  const std::string fresh = model.saved(Part::Weights);
  const uint64_t job = runner.train(trainerRequest());
  const TrainerInfo info = model.done(job).trainer.value();
  EXPECT(info.microBatch == 3 && info.step == 0 && info.activationBytes > 0);
  EXPECT(runner.info().trainerBytes == info.parameterBytes + info.activationBytes);
  const auto progress = model.inbox.all(job);
  EXPECT(progress.size() > 10, "progress is told");
  EXPECT(model.saved(Part::Model) == fresh && model.saved(Part::Ema) == fresh);

  // The loss falls on rows, timesteps and noise that stay the same.
  AccumulateRequest fixed = rows();
  for (int64_t i = 0; i < kRows; i++) fixed.timesteps.push_back(static_cast<int32_t>(100 * i + 50));
  for (int64_t i = 0; i < kRows * kCount; i++) {
    fixed.noise.push_back(std::sqrt(2.0f) * std::cos(0.7f * static_cast<float>(i * i % 1009)));
  }
  fixed.drop.assign(kRows, 0);
  const StepResult first = model.step(fixed);
  StepResult last;
  for (int64_t i = 2; i <= 30; i++) {
    last = model.step(fixed);
    EXPECT(last.outcome == StepOutcome::Applied && last.step == i && last.rows == kRows);
  }
  EXPECT(last.loss < 0.6 * first.loss, first.loss, " -> ", last.loss);
  EXPECT(std::abs(last.loss - (last.mse + last.vb)) < 1e-6 * last.loss);

  // NaN: the step is skipped, nothing changes, and training goes on.
  std::vector<std::string> before;
  for (const Part part : kState) before.push_back(model.saved(part));
  AccumulateRequest poisoned = fixed;
  poisoned.x[5] = NAN;
  const StepResult skipped = model.step(poisoned);
  EXPECT(skipped.outcome == StepOutcome::NonFinite && skipped.step == 30 && skipped.rows == kRows);
  for (size_t i = 0; i < 4; i++) EXPECT(model.saved(kState[i]) == before[i], "part ", i);
  EXPECT(model.step(fixed).outcome == StepOutcome::Applied);
  model.done(runner.accumulate(fixed));
  const StepResult spike = *model.done(runner.apply({{.skipAbove = 1e-9f}})).step;
  EXPECT(spike.outcome == StepOutcome::Spike && spike.step == 31);
}

// What fails or is cancelled takes the rows of the step with it.
DIT_CASE("runner/training-failures") {
  Training model(test);
  Runner& runner = model.runner;
  const std::string loaded = model.saved(Part::Weights);
  model.done(runner.train(trainerRequest()));
  const auto noRows = [&] {
    const JobEvent event = model.inbox.last(runner.apply({}));
    return event.kind == JobEvent::Kind::Failed && event.error == ErrorCode::Option;
  };
  const auto refused = [&](ErrorCode code, const auto& change) {
    AccumulateRequest request = rows();
    change(request);
    model.done(runner.accumulate(rows()));
    const JobEvent event = model.inbox.last(runner.accumulate(std::move(request)));
    EXPECT(event.kind == JobEvent::Kind::Failed && event.error == code, event.message);
    EXPECT(noRows(), event.message);
  };
  using Request = AccumulateRequest;
  refused(ErrorCode::Shape, [](Request& r) { r.n = 0; });
  refused(ErrorCode::Shape, [](Request& r) { r.n = int64_t{1} << 53; });
  refused(ErrorCode::Shape, [](Request& r) { r.x.pop_back(); });
  refused(ErrorCode::Shape, [](Request& r) { r.labels.push_back(0); });
  refused(ErrorCode::Shape, [](Request& r) { r.deviation.resize(3); });
  refused(ErrorCode::Shape, [](Request& r) { r.timesteps.resize(3); });
  refused(ErrorCode::Shape, [](Request& r) { r.noise.resize(3); });
  refused(ErrorCode::Shape, [](Request& r) { r.drop.resize(3); });
  refused(ErrorCode::Option, [](Request& r) { r.labels[1] = 6; });
  refused(ErrorCode::Option, [](Request& r) { r.timesteps.assign(kRows, 1000); });
  refused(ErrorCode::Option, [](Request& r) { r.firstRow = 1; });

  // Cancelled while it waits, and while it runs.
  for (const int wait : {0, 5}) {
    model.done(runner.accumulate(rows()));
    AccumulateRequest large = rows(0, 4000);
    large.globalBatch = 4000;
    const uint64_t job = runner.accumulate(std::move(large));
    std::this_thread::sleep_for(std::chrono::milliseconds(wait));
    runner.cancel(job);
    EXPECT(model.inbox.last(job).error == ErrorCode::Aborted);
    EXPECT(noRows());
  }
  EXPECT(model.step(rows()).step == 1);

  // A trainer that cannot be made: sampling is back at the weights that were loaded.
  const std::vector<float> untrained = Training(test).sample();
  EXPECT(model.sample() != untrained);
  TrainerRequest tooLarge = trainerRequest();
  tooLarge.options.memoryLimit = 1;
  EXPECT(model.inbox.last(runner.train(tooLarge)).error == ErrorCode::Oom);
  EXPECT(model.inbox.last(runner.accumulate(rows())).error == ErrorCode::Option);
  EXPECT(model.saved(Part::Weights) == loaded);
  EXPECT(model.sample() == untrained);
  // But one whose checkpoint cannot be opened leaves the one that there is.
  model.done(runner.train(trainerRequest()));
  TrainerRequest missing = trainerRequest();
  missing.state.emplace();
  (*missing.state)[2] = sources("/nowhere");
  EXPECT(model.inbox.last(runner.train(missing)).error == ErrorCode::File);
  EXPECT(model.step(rows()).step == 1);
}

DIT_CASE("runner/training-ema") {
  Training model(test);
  Runner& runner = model.runner;
  const std::vector<float> before = model.sample();
  const DenoiseRequest evaluation{.n = 1,
                                  .x = std::vector<float>(kCount, 0.5f),
                                  .timesteps = {500},
                                  .labels = {1},
                                  .vectors = {}};
  const auto denoised = [&](Training& of) { return of.done(of.runner.denoise(evaluation)).floats; };
  const std::vector<float> denoisedBefore = denoised(model);
  model.done(runner.train(trainerRequest()));
  EXPECT(model.sample() == before);
  for (int i = 0; i < 5; i++) model.step(rows());

  // Saved is the EMA, and a model loaded from it samples what the model in training does.
  const std::string ema = model.saved(Part::Ema);
  EXPECT(model.saved(Part::Weights) == ema && model.saved(Part::Model) != ema);
  const TemporaryFile file(test);
  file.write(ema.data(), ema.size());
  ModelSpec spec = freshModel(test);
  spec.ditTensors = sources(file.path);
  Training copy(test, std::move(spec));
  // Denoise first: it too has to see that the weights are stale.
  const std::vector<float> denoisedNow = denoised(model);
  EXPECT(denoisedNow != denoisedBefore && denoisedNow == denoised(copy));
  const std::vector<float> now = model.sample();
  EXPECT(now != before && now == copy.sample());
  model.step(rows());
  const std::vector<float> later = model.sample();
  EXPECT(later != now);

  // An image in the making, and one that joins it, end with the weights that the first began with.
  const std::vector<float> slow = model.done(runner.sample(request({8}, "50"))).floats;
  const uint64_t inTheMaking = runner.sample(request({8}, "50"));
  const uint64_t jobs[] = {runner.accumulate(rows()), runner.apply(kApply)};
  const uint64_t joining = runner.sample(request({7}));
  EXPECT(model.done(inTheMaking).floats == slow && model.done(joining).floats == later);
  for (const uint64_t job : jobs) model.done(job);
  const std::vector<uint64_t> order = model.inbox.order();
  EXPECT(std::find(order.begin(), order.end(), jobs[1]) <
             std::find(order.rbegin(), order.rend(), inTheMaking).base(),
         "it was still in the making");
  EXPECT(model.sample() != later);

  // So does one that had no lane for a while.
  const std::vector<float> alone = model.done(runner.sample(request({8, 9}, "50"))).floats;
  const uint64_t aside = runner.sample(request({8, 9}, "50"));
  model.inbox.await(aside, 2);
  SampleRequest urgent = request({1, 2}, "50");
  urgent.call = runner.admit({.images = 2, .steps = 50, .rows = 100, .priority = 1, .caller = {}});
  const uint64_t first = runner.sample(urgent);
  model.step(rows());
  model.done(first);
  EXPECT(model.done(aside).floats == alone);
}

// The averaged weights outlive the trainer, until there is another; an image in the making ends
// with those that it began with.
DIT_CASE("runner/training-release") {
  Training model(test);
  Runner& runner = model.runner;
  const std::vector<float> before = model.sample();
  model.done(runner.release({}));  // there is none
  const size_t weightBytes = runner.info().weightBytes;
  model.done(runner.train(trainerRequest()));
  for (int i = 0; i < 3; i++) model.step(rows());
  const std::vector<float> slow = model.done(runner.sample(request({8}, "50"))).floats;
  const uint64_t inTheMaking = runner.sample(request({8}, "50"));
  const uint64_t jobs[] = {runner.accumulate(rows()), runner.apply(kApply), runner.release({})};
  EXPECT(model.done(inTheMaking).floats == slow);
  for (const uint64_t job : jobs) model.done(job);
  EXPECT(runner.info().trainerBytes == 0 && runner.info().weightBytes > weightBytes);
  for (const uint64_t job : {runner.accumulate(rows()), runner.apply(kApply)}) {
    EXPECT(model.inbox.last(job).error == ErrorCode::Option);
  }

  const std::string ema = model.saved(Part::Weights);
  const TemporaryFile file(test);
  file.write(ema.data(), ema.size());
  ModelSpec spec = freshModel(test);
  spec.ditTensors = sources(file.path);
  Training copy(test, std::move(spec));
  const std::vector<float> after = model.sample();
  EXPECT(after != before && after == copy.sample());

  model.done(runner.train(trainerRequest()));
  EXPECT(runner.info().weightBytes == weightBytes && model.sample() == before);
}

// Jobs of training and rounds of sampling take turns.
DIT_CASE("runner/training-turns") {
  Inbox inbox;
  // The thread does not begin before all jobs are there.
  std::promise<void> asked;
  Runner runner([gate = asked.get_future().share(), listener = inbox.listener()](JobEvent&& event) {
    gate.wait();
    listener(std::move(event));
  });
  runner.load(freshModel(test));
  runner.train(trainerRequest());
  for (int i = 0; i < 5; i++) runner.accumulate(rows());
  const uint64_t sample = runner.sample(request({7}, "20"));
  uint64_t last = 0;
  for (int i = 0; i < 40; i++) last = runner.accumulate(rows());
  asked.set_value();
  EXPECT(inbox.last(last).kind == JobEvent::Kind::Done && !inbox.all(sample).empty());
  const std::vector<uint64_t> order = inbox.order();
  const auto begin = std::find(order.begin(), order.end(), sample);
  const auto end = std::find(order.rbegin(), order.rend(), sample).base();
  // 20 rounds, with a job between each two.
  const auto between = std::count_if(begin, end, [&](uint64_t job) { return job != sample; });
  EXPECT(between == 19, between);
}

// N + M steps are N steps, a checkpoint, and M steps of another process's model: bit for bit.
DIT_CASE("runner/training-resume") {
  const TemporaryFile files[4] = {TemporaryFile(test), TemporaryFile(test), TemporaryFile(test),
                                  TemporaryFile(test)};
  TrainerRequest resume = trainerRequest();
  std::vector<std::string> want;
  {
    Training model(test);
    model.done(model.runner.train(trainerRequest()));
    for (int i = 0; i < 4; i++) model.step(rows());
    resume.step = 4;
    resume.state.emplace();
    for (size_t i = 0; i < 4; i++) {
      const std::string part = model.saved(kState[i]);
      files[i].write(part.data(), part.size());
      (*resume.state)[i] = sources(files[i].path);
    }
    for (int i = 0; i < 3; i++) model.step(rows());
    for (const Part part : kState) want.push_back(model.saved(part));
  }
  ModelSpec other = freshModel(test);
  other.initSeed = 99;
  Training model(test, std::move(other));
  EXPECT(model.done(model.runner.train(resume)).trainer->step == 4);
  for (int i = 0; i < 3; i++) {
    // In two jobs, whose micro-batches are the same.
    model.done(model.runner.accumulate(rows(0, 3)));
    EXPECT(model.step(rows(3, 5)).step == 5 + i);
  }
  for (size_t i = 0; i < 4; i++) EXPECT(model.saved(kState[i]) == want[i], "part ", i);
}

DIT_CASE("runner/training-close") {
  for (const int wait : {0, 1, 20}) {
    Inbox inbox;
    std::vector<uint64_t> jobs;
    {
      Runner runner(inbox.listener());
      inbox.last(runner.load(freshModel(test)));
      inbox.last(runner.train(trainerRequest()));
      for (int i = 0; i < 3; i++) {
        AccumulateRequest large = rows(0, 4000);
        large.globalBatch = 4000;
        jobs.push_back(runner.accumulate(std::move(large)));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(wait));
    }
    for (const uint64_t job : jobs) EXPECT(inbox.last(job).error == ErrorCode::Closed);
  }
}

}  // namespace
}  // namespace dit::test
