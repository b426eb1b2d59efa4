#include "model/runner.h"

#include <optional>
#include <thread>
#include <utility>

#include "model/jobs.h"
#include "model/loaded_model.h"
#include "model/model_jobs.h"
#include "model/sampling_jobs.h"

// The model's thread: it takes the job that has waited longest, then does a round of sampling, in
// turns, so that neither keeps the other waiting.

namespace dit {

class Runner::State {
 public:
  explicit State(Listener listener) : jobs_(std::move(listener)), thread_([this] { run(); }) {}

  ~State() {
    if (!jobs_.ended()) jobs_.close();
    thread_.join();
  }

  JobQueue& jobs() { return jobs_; }

 private:
  void run() {
    for (;;) {
      const bool idle = !sampling_ || sampling_->empty();
      std::shared_ptr<Job> job = jobs_.next(/*wait=*/idle);
      // To let images join takes no time, so all that have come do, before the next round.
      while (job && std::holds_alternative<SampleRequest>(job->request)) {
        begin(job);
        job = jobs_.next(/*wait=*/false);
      }
      if (job && std::holds_alternative<CloseRequest>(job->request)) {
        endEverything(*job);
        return;
      }
      if (job) begin(job);
      if (sampling_ && !sampling_->empty()) sampling_->advance();
    }
  }

  // Runs a job, or lets a sample job join.
  void begin(const std::shared_ptr<Job>& job) {
    const bool succeeded = jobs_.guarded(*job, [&] {
      jobs_.checkpoint(*job);
      std::visit([&](auto& request) { execute(job, request); }, job->request);
    });
    const bool rowsAreMissing =
        !succeeded && std::holds_alternative<AccumulateRequest>(job->request);
    if (rowsAreMissing && model_ && model_->trainer) model_->trainer->discard();
  }

  void execute(const std::shared_ptr<Job>& job, ModelSpec& spec) {
    DIT_CHECK(!model_, ErrorCode::Internal, "the model is loaded already");
    model_ = std::make_unique<LoadedModel>(std::move(spec), progressOf(*job), checkpointOf(*job));
    sampling_.emplace(jobs_, *model_);
    jobs_.calls().configure(model_->spec.maxLanes, model_->spec.maxQueue);
    finish(*job, {});
  }

  void execute(const std::shared_ptr<Job>& job, const SampleRequest&) {
    loaded();
    sampling_->join(job);
  }
  void execute(const std::shared_ptr<Job>& job, const DenoiseRequest& request) {
    finish(*job, runJob(loaded(), request, checkpointOf(*job)));
  }
  void execute(const std::shared_ptr<Job>& job, const DecodeRequest& request) {
    finish(*job, runJob(loaded(), request, checkpointOf(*job)));
  }
  void execute(const std::shared_ptr<Job>& job, const EncodeRequest& request) {
    finish(*job, runJob(loaded(), request, checkpointOf(*job)));
  }
  void execute(const std::shared_ptr<Job>& job, const SaveRequest& request) {
    finish(*job, runJob(loaded(), request));
  }
  void execute(const std::shared_ptr<Job>& job, const TrainerRequest& request) {
    finish(*job, runJob(loaded(), request, progressOf(*job)));
  }
  void execute(const std::shared_ptr<Job>& job, const ReleaseRequest& request) {
    finish(*job, runJob(loaded(), request));
  }
  void execute(const std::shared_ptr<Job>& job, const AccumulateRequest& request) {
    finish(*job, runJob(loaded(), request, checkpointOf(*job)));
  }
  void execute(const std::shared_ptr<Job>& job, const ApplyRequest& request) {
    finish(*job, runJob(loaded(), request));
  }
  void execute(const std::shared_ptr<Job>&, const CloseRequest&) {}  // not reached: run() ends

  LoadedModel& loaded() {
    DIT_CHECK(model_, ErrorCode::Internal, "the model is not loaded");
    return *model_;
  }

  Checkpoint checkpointOf(const Job& job) {
    return [this, &job] { jobs_.checkpoint(job); };
  }

  LoadProgress progressOf(const Job& job) {
    return [this, &job](int64_t done, int64_t total) {
      jobs_.checkpoint(job);
      jobs_.progress(job, done, total);
    };
  }

  void finish(const Job& job, JobEvent event) {
    jobs_.finish(job, std::move(event), model_->info());
  }

  void endEverything(const Job& closing) {
    const auto unfinished = jobs_.end(closing);
    sampling_.reset();
    model_.reset();
    for (const auto& job : unfinished) jobs_.answerClosed(*job);
    jobs_.finish(closing, {}, {});
  }

  JobQueue jobs_;
  std::unique_ptr<LoadedModel> model_;  // the thread's own, as what follows
  std::optional<SamplingJobs> sampling_;
  std::thread thread_;  // last: it starts when everything else is there
};

Runner::Runner(Listener listener) : state_(std::make_unique<State>(std::move(listener))) {}
Runner::~Runner() = default;

uint64_t Runner::load(ModelSpec spec) { return state_->jobs().submit(std::move(spec)); }
uint64_t Runner::admit(const CallRequest& request) {
  return state_->jobs().calls().admit(request, steadySeconds())->id;
}
void Runner::leave(uint64_t call) { state_->jobs().calls().leave(call); }
uint64_t Runner::sample(SampleRequest request) { return state_->jobs().submit(std::move(request)); }
uint64_t Runner::denoise(DenoiseRequest request) {
  return state_->jobs().submit(std::move(request));
}
uint64_t Runner::decode(DecodeRequest request) { return state_->jobs().submit(std::move(request)); }
uint64_t Runner::encode(EncodeRequest request) { return state_->jobs().submit(std::move(request)); }
uint64_t Runner::save(SaveRequest request) { return state_->jobs().submit(std::move(request)); }
uint64_t Runner::train(TrainerRequest request) { return state_->jobs().submit(std::move(request)); }
uint64_t Runner::release(ReleaseRequest request) { return state_->jobs().submit(request); }
uint64_t Runner::accumulate(AccumulateRequest request) {
  return state_->jobs().submit(std::move(request));
}
uint64_t Runner::apply(ApplyRequest request) { return state_->jobs().submit(std::move(request)); }
void Runner::cancel(uint64_t job) { state_->jobs().cancel(job); }
uint64_t Runner::close() { return state_->jobs().close(); }
ModelInfo Runner::info() const { return state_->jobs().info(); }
CallStats Runner::stats() const { return state_->jobs().calls().stats(); }

}  // namespace dit
