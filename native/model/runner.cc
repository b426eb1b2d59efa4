#include "model/runner.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <variant>

#include "core/cancel.h"
#include "model/sampler.h"

namespace dit {

namespace {

struct CloseRequest {};

using Request = std::variant<ModelSpec, SampleRequest, DenoiseRequest, DecodeRequest, EncodeRequest,
                             SaveRequest, CloseRequest>;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Everything that is loaded, in the order in which it depends on one another.
struct LoadedModel {
  ModelSpec spec;
  Ops ops;
  std::unique_ptr<WeightSource> ditWeights, vaeWeights;
  std::optional<Dit> dit;
  std::optional<Vae> vae;
  std::optional<Sampler> sampler;

  explicit LoadedModel(ModelSpec given) : spec(std::move(given)), ops(openBackend(spec.backend)) {}
};

}  // namespace

class Runner::State {
 public:
  explicit State(Listener listener) : listener_(std::move(listener)), thread_([this] { run(); }) {}

  ~State() {
    if (!ended()) close();
    thread_.join();
  }

  uint64_t submit(Request request) {
    const std::lock_guard lock(mutex_);
    auto job = std::make_unique<Job>();
    job->id = ++lastJob_;
    job->request = std::move(request);
    const uint64_t id = job->id;
    if (ended_) {
      // The thread is gone: nobody else can answer.
      answerAfterEnd(*job);
      return id;
    }
    waiting_.push_back(std::move(job));
    wake_.notify_one();
    return id;
  }

  void cancel(uint64_t id) {
    const std::lock_guard lock(mutex_);
    for (const auto& job : waiting_) {
      if (job->id == id) job->cancel.cancel();
    }
    if (current_ && current_->id == id) current_->cancel.cancel();
    for (const auto& job : sampling_) {
      if (job->id == id) job->cancel.cancel();
    }
    wake_.notify_one();
  }

  uint64_t close() {
    closing_.store(true, std::memory_order_relaxed);
    return submit(CloseRequest{});
  }

  ModelInfo info() const {
    const std::lock_guard lock(mutex_);
    return info_;
  }

 private:
  // One image of a sample job.
  struct Image {
    int64_t lane = -1;  // -1: waiting or done
    int64_t steps = 0;
    bool started = false, done = false;
  };

  struct Job {
    uint64_t id = 0;
    Request request;
    CancelFlag cancel;
    // Sample jobs only.
    std::shared_ptr<const Plan> plan;
    std::vector<Image> images;
    int64_t steps = 0;  // done so far, of all images
    JobEvent result;
    double startedAt = 0;
  };

  // ---------------------------------------------------------------- the thread

  void run() {
    for (;;) {
      std::unique_ptr<Job> job;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return !waiting_.empty() || !sampling_.empty(); });
        if (!waiting_.empty()) {
          job = std::move(waiting_.front());
          waiting_.pop_front();
          current_ = job.get();
        }
      }
      if (job && begin(std::move(job))) return;
      if (!sampling_.empty()) advanceSampling();
    }
  }

  // Runs a job, or lets a sample job join. True when it was the last one.
  bool begin(std::unique_ptr<Job> job) {
    if (std::holds_alternative<CloseRequest>(job->request)) {
      endEverything(std::move(job));
      return true;
    }
    Job& running = *job;
    const bool joins = std::holds_alternative<SampleRequest>(job->request);
    const bool succeeded = guarded(running, [&] {
      checkpoint(running);
      DIT_CHECK(model_ || std::holds_alternative<ModelSpec>(running.request), ErrorCode::Internal,
                "the model is not loaded");
      std::visit([&](auto& request) { execute(running, request); }, running.request);
    });
    const std::lock_guard lock(mutex_);
    current_ = nullptr;
    if (joins && succeeded) sampling_.push_back(std::move(job));
    return false;
  }

  // Runs `work`; when it throws, the job has failed and says so.
  template <typename Work>
  bool guarded(Job& job, const Work& work) {
    try {
      work();
      return true;
    } catch (const Error& error) {
      fail(job, error.code(), error.what());
    } catch (const std::bad_alloc&) {
      fail(job, ErrorCode::Oom, "out of memory on the host");
    } catch (const std::exception& error) {
      fail(job, ErrorCode::Internal, error.what());
    }
    return false;
  }

  void checkpoint(const Job& job) const {
    DIT_CHECK(!closing_.load(std::memory_order_relaxed), ErrorCode::Closed, "the model was closed");
    DIT_CHECK(!job.cancel.cancelled(), ErrorCode::Aborted, "the job was cancelled");
  }

  void fail(const Job& job, ErrorCode code, const std::string& message) {
    JobEvent event;
    event.kind = JobEvent::Kind::Failed;
    event.job = job.id;
    event.error = code;
    event.message = message;
    listener_(std::move(event));
  }

  void finish(const Job& job, JobEvent event) {
    event.kind = JobEvent::Kind::Done;
    event.job = job.id;
    updateInfo();
    listener_(std::move(event));
  }

  void progress(const Job& job, int64_t done, int64_t total) {
    JobEvent event;
    event.job = job.id;
    event.done = done;
    event.total = total;
    listener_(std::move(event));
  }

  void updateInfo() {
    ModelInfo info;
    if (model_) {
      LoadedModel& model = *model_;
      info.device = model.ops.backend().name();
      info.precision = model.spec.precision;
      info.weightBytes = model.dit->weightBytes();
      info.vaeBytes = model.vae ? model.vae->bytes() : 0;
      info.activationBytes = model.dit->activationBytes() + model.sampler->bytes();
    }
    const std::lock_guard lock(mutex_);
    info_ = info;
  }

  void endEverything(std::unique_ptr<Job> closeJob) {
    std::deque<std::unique_ptr<Job>> unfinished;
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      current_ = nullptr;
      unfinished.swap(waiting_);
      for (auto& job : sampling_) unfinished.push_back(std::move(job));
      sampling_.clear();
    }
    model_.reset();
    for (const auto& job : unfinished) answerAfterEnd(*job);
    finish(*closeJob, {});
  }

  bool ended() const {
    const std::lock_guard lock(mutex_);
    return ended_;
  }

  void answerAfterEnd(const Job& job) {
    if (std::holds_alternative<CloseRequest>(job.request)) {
      JobEvent done;
      done.kind = JobEvent::Kind::Done;
      done.job = job.id;
      listener_(std::move(done));
    } else {
      fail(job, ErrorCode::Closed, "the model was closed");
    }
  }

  // ---------------------------------------------------------------- jobs that run alone

  void execute(Job&, CloseRequest&) {}  // not reached: begin() ends everything instead

  void execute(Job& job, ModelSpec& spec) {
    DIT_CHECK(!model_, ErrorCode::Internal, "the model is loaded already");
    DIT_CHECK(spec.maxLanes >= 1 && spec.maxLanes <= 4096, ErrorCode::Option,
              "maxBatch: expected 1 to 4096, got ", spec.maxLanes);
    auto model = std::make_unique<LoadedModel>(std::move(spec));
    const ModelSpec& s = model->spec;
    DIT_CHECK(model->ops.backend().supports(s.precision), ErrorCode::Device,
              "precision: ", model->ops.backend().name(), " has no ", precisionName(s.precision),
              " here");
    model->ditWeights = s.ditTensors.empty() ? initialWeights(ditParams(s.dit), s.initSeed)
                                             : openWeightFiles(s.ditTensors);
    if (s.vae) model->vaeWeights = openWeightFiles(s.vaeTensors);
    const auto report = [&](int64_t done, int64_t total) {
      checkpoint(job);
      progress(job, done, total);
    };
    model->dit.emplace(model->ops, s.dit, *model->ditWeights, s.precision, 2 * s.maxLanes, report);
    if (s.vae) {
      model->vae.emplace(model->ops, *s.vae, *model->vaeWeights, s.precision,
                         [&](int64_t, int64_t) { checkpoint(job); });
    }
    model->sampler.emplace(model->ops, *model->dit, model->vae ? &*model->vae : nullptr, s.maxLanes,
                           s.schedule.steps);
    model_ = std::move(model);
    finish(job, {});
  }

  void execute(Job& job, DenoiseRequest& request) {
    const DitConfig& config = model_->spec.dit;
    const size_t n = static_cast<size_t>(request.n);
    checkCount("x", request.x.size(), request.n * config.latentCount());
    checkCount("t", request.timesteps.size(), request.n);
    checkCount("y", request.labels.size(), request.n);
    Sampler::Evaluation evaluation;
    evaluation.n = request.n;
    evaluation.x = request.x.data();
    evaluation.guidance = request.guidance;
    evaluation.guidanceChannels = request.guidanceChannels;
    for (size_t i = 0; i < n; i++) {
      const bool vector = request.labels[i] < 0;
      if (vector) checkVector(request.vectors, i);
      evaluation.conditions.push_back(
          {request.timesteps[i], request.labels[i], vector ? request.vectors[i].data() : nullptr});
    }
    JobEvent result;
    result.shape = {request.n, config.outChannels(), config.height, config.width};
    result.floats.resize(static_cast<size_t>(result.shape.count()));
    evaluation.out = result.floats.data();
    model_->sampler->denoise(evaluation, [&] { checkpoint(job); });
    finish(job, std::move(result));
  }

  void execute(Job& job, DecodeRequest& request) {
    Vae& vae = needVae("decode");
    checkCount("latents", request.latents.size(),
               request.n * vae.config().latentChannels * request.height * request.width);
    JobEvent result;
    result.height = request.height * vae.downscale();
    result.width = request.width * vae.downscale();
    result.channels = vae.config().outChannels;
    result.bytes.resize(
        static_cast<size_t>(request.n * result.height * result.width * result.channels));
    vae.decode({.n = request.n,
                .height = request.height,
                .width = request.width,
                .latents = request.latents.data(),
                .rgb8 = result.bytes.data()},
               [&] { checkpoint(job); });
    finish(job, std::move(result));
  }

  void execute(Job& job, EncodeRequest& request) {
    Vae& vae = needVae("encode");
    checkCount("images", request.images.size(),
               request.n * vae.config().inChannels * request.height * request.width);
    if (request.seeds) checkCount("seeds", request.seeds->size(), request.n);
    JobEvent result;
    result.shape = {request.n, vae.config().latentChannels, request.height / vae.downscale(),
                    request.width / vae.downscale()};
    result.floats.resize(static_cast<size_t>(result.shape.count()));
    vae.encode({.n = request.n,
                .height = request.height,
                .width = request.width,
                .images = request.images.data(),
                .seeds = request.seeds ? request.seeds->data() : nullptr,
                .latents = result.floats.data()},
               [&] { checkpoint(job); });
    finish(job, std::move(result));
  }

  void execute(Job& job, SaveRequest& request) {
    if (request.vae) needVae("save");
    writeWeights(request.path, request.header,
                 request.vae ? *model_->vaeWeights : *model_->ditWeights, request.tensors);
    finish(job, {});
  }

  Vae& needVae(const char* what) {
    DIT_CHECK(model_->vae, ErrorCode::Option, what,
              ": this model has no VAE; give one with the option `vae` when it is loaded");
    return *model_->vae;
  }

  static void checkCount(const char* name, size_t got, int64_t expected) {
    DIT_CHECK(static_cast<int64_t>(got) == expected, ErrorCode::Shape, name, ": expected ",
              expected, " numbers, got ", got);
  }

  void checkVector(const std::vector<std::vector<float>>& vectors, size_t i) const {
    const size_t hidden = static_cast<size_t>(model_->spec.dit.hidden);
    DIT_CHECK(i < vectors.size() && vectors[i].size() == hidden, ErrorCode::Shape, "label ", i,
              ": expected a vector of ", hidden, " numbers");
  }

  // ---------------------------------------------------------------- sampling

  void execute(Job& job, SampleRequest& request) {
    const size_t n = request.labels.size();
    const int64_t count = model_->spec.dit.latentCount();
    DIT_CHECK(n > 0, ErrorCode::Option, "labels: expected at least one");
    checkCount("seeds", request.seeds.size(), static_cast<int64_t>(n));
    PlanOptions plan = request.plan;
    plan.learnedVariance = model_->spec.dit.learnSigma;
    job.plan = std::make_shared<const Plan>(makePlan(model_->spec.schedule, plan));
    const int64_t images = static_cast<int64_t>(n), steps = static_cast<int64_t>(job.plan->size());
    if (!request.noise.empty()) checkCount("noise", request.noise.size(), images * count);
    if (!request.stepNoise.empty()) {
      checkCount("stepNoise", request.stepNoise.size(), images * steps * count);
    }
    for (size_t i = 0; i < n; i++) {
      if (request.labels[i] < 0) checkVector(request.vectors, i);
      DIT_CHECK(request.labels[i] < model_->spec.dit.labelRows(), ErrorCode::Option,
                "label: expected a class from 0 to ", model_->spec.dit.labelRows() - 1, ", got ",
                request.labels[i]);
    }
    DIT_CHECK(request.guidance == 1 || model_->spec.dit.nullClass, ErrorCode::Option,
              "guidance: this model has no null class, so it cannot be guided; use 1");
    job.images.resize(n);
  }

  // Gives free lanes to waiting images, does one round and finishes the images that are ready.
  void advanceSampling() {
    dropCancelled();
    fillLanes();
    if (sampling_.empty()) return;
    std::vector<Job*> jobs;
    for (const auto& job : sampling_) jobs.push_back(job.get());
    try {
      // Stops early only when nobody waits for the round any more.
      model_->sampler->round([&] {
        const bool wanted = std::any_of(jobs.begin(), jobs.end(),
                                        [](const Job* job) { return !job->cancel.cancelled(); });
        DIT_CHECK(!closing_.load(std::memory_order_relaxed), ErrorCode::Closed,
                  "the model was closed");
        DIT_CHECK(wanted, ErrorCode::Aborted, "the job was cancelled");
      });
    } catch (const std::exception&) {
      const std::exception_ptr error = std::current_exception();
      for (Job* job : jobs) endSampling(*job, [&] { std::rethrow_exception(error); });
      return;
    }
    for (Job* job : jobs) endSampling(*job, [&] { report(*job); });
  }

  void dropCancelled() {
    std::vector<Job*> jobs;
    for (const auto& job : sampling_) jobs.push_back(job.get());
    for (Job* job : jobs) endSampling(*job, [&] { checkpoint(*job); });
  }

  // The next image comes from the job that has the fewest lanes, the oldest among equals.
  void fillLanes() {
    while (model_->sampler->freeLanes() > 0) {
      Job* next = nullptr;
      int64_t fewest = 0;
      for (const auto& job : sampling_) {
        const auto& images = job->images;
        const bool waits = std::any_of(images.begin(), images.end(),
                                       [](const Image& image) { return !image.started; });
        const int64_t lanes = std::count_if(images.begin(), images.end(),
                                            [](const Image& image) { return image.lane >= 0; });
        if (waits && (!next || lanes < fewest)) {
          next = job.get();
          fewest = lanes;
        }
      }
      if (!next) return;
      // Failing to make room for it is this job's failure; its images then wait no more.
      endSampling(*next, [&] {
        const auto image = std::find_if(next->images.begin(), next->images.end(),
                                        [](const Image& i) { return !i.started; });
        image->lane = model_->sampler->start(laneSpec(*next, image - next->images.begin()));
        image->started = true;
        if (next->startedAt == 0) next->startedAt = seconds();
      });
    }
  }

  LaneSpec laneSpec(const Job& job, int64_t i) const {
    const SampleRequest& request = std::get<SampleRequest>(job.request);
    const int64_t count = model_->spec.dit.latentCount();
    const auto part = [i](const std::vector<float>& all, int64_t size) {
      return all.empty() ? std::vector<float>()
                         : std::vector<float>(all.begin() + i * size, all.begin() + (i + 1) * size);
    };
    LaneSpec spec;
    spec.plan = job.plan;
    spec.label = request.labels[i];
    if (spec.label < 0) spec.vector = request.vectors[i];
    spec.seed = request.seeds[i];
    spec.guidance = request.guidance;
    spec.guidanceChannels = request.guidanceChannels;
    spec.guidanceFrom = request.guidanceFrom;
    spec.guidanceTo = request.guidanceTo;
    spec.noise = part(request.noise, count);
    spec.stepNoise = part(request.stepNoise, static_cast<int64_t>(job.plan->size()) * count);
    return spec;
  }

  // Progress, previews and finished images of a job after a round.
  void report(Job& job) {
    checkpoint(job);
    const SampleRequest& request = std::get<SampleRequest>(job.request);
    Sampler& sampler = *model_->sampler;
    const int64_t steps = static_cast<int64_t>(job.plan->size());
    int64_t done = 0;
    for (size_t i = 0; i < job.images.size(); i++) {
      Image& image = job.images[i];
      if (image.lane >= 0) {
        image.steps = sampler.step(image.lane);
        if (image.steps == steps) {
          finishImage(job, static_cast<int64_t>(i));
        } else if (request.previewEvery > 0 && image.steps % request.previewEvery == 0) {
          preview(job, static_cast<int64_t>(i));
        }
      }
      done += image.steps;
    }
    if (done == job.steps) return;  // it still waits for a lane
    job.steps = done;
    progress(job, done, steps * static_cast<int64_t>(job.images.size()));
    const bool ready = std::all_of(job.images.begin(), job.images.end(),
                                   [](const Image& image) { return image.done; });
    if (!ready) return;
    job.result.sampleSeconds = seconds() - job.startedAt - job.result.decodeSeconds;
    finish(job, std::move(job.result));
  }

  void preview(Job& job, int64_t i) {
    Sampler& sampler = *model_->sampler;
    const Image& image = job.images[i];
    Picture picture = sampler.picture(sampler.prediction(image.lane), [&] { checkpoint(job); });
    JobEvent event;
    event.kind = JobEvent::Kind::Preview;
    event.job = job.id;
    event.image = i;
    event.done = image.steps;
    event.total = static_cast<int64_t>(job.plan->size());
    event.height = picture.height;
    event.width = picture.width;
    event.channels = picture.channels;
    event.bytes = std::move(picture.bytes);
    listener_(std::move(event));
  }

  // Moves the image from its lane into the job's result.
  void finishImage(Job& job, int64_t i) {
    Sampler& sampler = *model_->sampler;
    Image& image = job.images[i];
    const DitConfig& config = model_->spec.dit;
    const int64_t n = static_cast<int64_t>(job.images.size());
    const std::vector<float> latent = sampler.latent(image.lane);
    sampler.stop(image.lane);
    image.lane = -1;
    JobEvent& result = job.result;
    if (std::get<SampleRequest>(job.request).latentOnly) {
      result.shape = {n, config.channels, config.height, config.width};
      result.floats.resize(static_cast<size_t>(result.shape.count()));
      std::copy(latent.begin(), latent.end(), result.floats.begin() + i * config.latentCount());
    } else {
      DIT_CHECK(
          std::all_of(latent.begin(), latent.end(), [](float x) { return std::isfinite(x); }),
          ErrorCode::NonFinite, "image ", i,
          " is not a number: the weights or the noise hold NaN, or the guidance is too large; "
          "output: 'latent' gives it as it is");
      const double begin = seconds();
      const Picture picture = sampler.picture(latent, [&] { checkpoint(job); });
      result.decodeSeconds += seconds() - begin;
      result.height = picture.height;
      result.width = picture.width;
      result.channels = picture.channels;
      result.bytes.resize(static_cast<size_t>(n) * picture.bytes.size());
      std::copy(picture.bytes.begin(), picture.bytes.end(),
                result.bytes.begin() + i * static_cast<int64_t>(picture.bytes.size()));
    }
    image.done = true;
  }

  // Runs `work` for a sample job; the job leaves, and its lanes with it, when that fails or when
  // all its images are done.
  template <typename Work>
  void endSampling(Job& job, const Work& work) {
    const bool succeeded = guarded(job, work);
    const bool ready = std::all_of(job.images.begin(), job.images.end(),
                                   [](const Image& image) { return image.done; });
    if (succeeded && !ready) return;
    for (const Image& image : job.images) {
      if (image.lane >= 0) model_->sampler->stop(image.lane);
    }
    const std::lock_guard lock(mutex_);
    sampling_.erase(std::find_if(sampling_.begin(), sampling_.end(),
                                 [&](const auto& other) { return other.get() == &job; }));
  }

  Listener listener_;
  mutable std::mutex mutex_;  // guards what follows, up to the model
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Job>> waiting_;
  std::deque<std::unique_ptr<Job>> sampling_;  // changed by the thread only
  Job* current_ = nullptr;
  uint64_t lastJob_ = 0;
  bool ended_ = false;
  ModelInfo info_;
  std::atomic<bool> closing_ = false;

  std::unique_ptr<LoadedModel> model_;  // the thread's own
  std::thread thread_;                  // last: it starts when everything else is there
};

Runner::Runner(Listener listener) : state_(std::make_unique<State>(std::move(listener))) {}
Runner::~Runner() = default;

uint64_t Runner::load(ModelSpec spec) { return state_->submit(std::move(spec)); }
uint64_t Runner::sample(SampleRequest request) { return state_->submit(std::move(request)); }
uint64_t Runner::denoise(DenoiseRequest request) { return state_->submit(std::move(request)); }
uint64_t Runner::decode(DecodeRequest request) { return state_->submit(std::move(request)); }
uint64_t Runner::encode(EncodeRequest request) { return state_->submit(std::move(request)); }
uint64_t Runner::save(SaveRequest request) { return state_->submit(std::move(request)); }
void Runner::cancel(uint64_t job) { state_->cancel(job); }
uint64_t Runner::close() { return state_->close(); }
ModelInfo Runner::info() const { return state_->info(); }

}  // namespace dit
