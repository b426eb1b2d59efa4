#include "model/sampling_jobs.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "model/model_jobs.h"

namespace dit {

bool SamplingJobs::Active::ready() const {
  return std::all_of(images.begin(), images.end(), [](const Image& image) { return image.done; });
}

void SamplingJobs::join(std::shared_ptr<Job> job) {
  auto active = std::make_unique<Active>();
  active->job = std::move(job);
  const SampleRequest& request = active->request();
  const DitConfig& config = model_.spec.dit;
  const size_t n = request.labels.size();
  const int64_t count = config.latentCount();
  DIT_CHECK(n > 0, ErrorCode::Option, "labels: expected at least one");
  checkCount("seeds", request.seeds.size(), static_cast<int64_t>(n));
  PlanOptions plan = request.plan;
  plan.learnedVariance = config.learnSigma;
  active->plan = std::make_shared<const Plan>(makePlan(model_.spec.schedule, plan));
  const int64_t images = static_cast<int64_t>(n);
  const int64_t steps = static_cast<int64_t>(active->plan->size());
  if (!request.noise.empty()) checkCount("noise", request.noise.size(), images * count);
  if (!request.stepNoise.empty()) {
    checkCount("stepNoise", request.stepNoise.size(), images * steps * count);
  }
  for (size_t i = 0; i < n; i++) {
    if (request.labels[i] < 0) checkVector(config, request.vectors, i);
    DIT_CHECK(request.labels[i] < config.labelRows(), ErrorCode::Option,
              "label: expected a class from 0 to ", config.labelRows() - 1, ", got ",
              request.labels[i]);
  }
  DIT_CHECK(request.guidance == 1 || config.nullClass, ErrorCode::Option,
            "guidance: this model has no null class, so it cannot be guided; use 1");
  active->images.resize(n);
  joinCall(*active);
  active_.push_back(std::move(active));
}

void SamplingJobs::joinCall(Active& active) {
  const SampleRequest& request = active.request();
  Calls& calls = queue_.calls();
  if (request.call != 0) {
    active.job->call = calls.find(request.call);
    DIT_CHECK(active.job->call, ErrorCode::Aborted, "the call has ended");
    return;
  }
  const int64_t steps = static_cast<int64_t>(active.plan->size());
  active.job->call = calls.enter({.images = static_cast<int64_t>(active.images.size()),
                                  .steps = steps,
                                  .rows = request.guidance == 1 ? steps : 2 * steps,
                                  .caller = {}},
                                 steadySeconds());
}

std::vector<SamplingJobs::Active*> SamplingJobs::all() const {
  std::vector<Active*> jobs;
  for (const auto& active : active_) jobs.push_back(active.get());
  return jobs;
}

void SamplingJobs::advance() {
  const double begin = steadySeconds();
  turn();
  queue_.calls().turnDone(model_.sampler->maxLanes() - model_.sampler->freeLanes(), 0,
                          steadySeconds() - begin);
}

void SamplingJobs::turn() {
  dropUnwanted();
  try {
    model_.refresh();
  } catch (const std::exception&) {
    failAll(std::current_exception());
    return;
  }
  fillLanes();
  if (active_.empty()) return;
  const std::vector<Active*> jobs = all();
  try {
    const double roundBegin = steadySeconds();
    // Stops early only when nobody waits for the round any more.
    const int64_t rows = model_.sampler->round([&] {
      queue_.checkOpen();
      const bool wanted = std::any_of(jobs.begin(), jobs.end(), [](const Active* active) {
        return !active->job->cancel.cancelled();
      });
      DIT_CHECK(wanted, ErrorCode::Aborted, "the job was cancelled");
    });
    queue_.calls().roundDone(static_cast<double>(rows), steadySeconds() - roundBegin);
  } catch (const std::exception&) {
    failAll(std::current_exception());
    return;
  }
  for (Active* active : jobs) guarded(*active, [&] { report(*active); });
}

void SamplingJobs::failAll(const std::exception_ptr& error) {
  for (Active* active : all()) guarded(*active, [&] { std::rethrow_exception(error); });
}

void SamplingJobs::dropUnwanted() {
  const double now = steadySeconds();
  for (Active* active : all()) {
    guarded(*active, [&] {
      queue_.checkpoint(*active->job);
      DIT_CHECK(!queue_.calls().tooLate(*active->job->call, now), ErrorCode::Deadline,
                "The deadline cannot be met any more");
    });
  }
}

// The next image comes from the job that has the fewest lanes, the oldest among equals.
void SamplingJobs::fillLanes() {
  while (model_.sampler->freeLanes() > 0) {
    Active* next = nullptr;
    int64_t fewest = 0;
    for (const auto& active : active_) {
      const auto& images = active->images;
      const bool waits = std::any_of(images.begin(), images.end(),
                                     [](const Image& image) { return !image.started; });
      const int64_t lanes = std::count_if(images.begin(), images.end(),
                                          [](const Image& image) { return image.lane >= 0; });
      if (waits && (!next || lanes < fewest)) {
        next = active.get();
        fewest = lanes;
      }
    }
    if (!next) return;
    // Failing to make room for it is this job's failure; its images then wait no more.
    guarded(*next, [&] {
      const auto image = std::find_if(next->images.begin(), next->images.end(),
                                      [](const Image& i) { return !i.started; });
      image->lane = model_.sampler->start(laneSpec(*next, image - next->images.begin()));
      image->started = true;
      if (next->startedAt == 0) next->startedAt = steadySeconds();
    });
  }
}

LaneSpec SamplingJobs::laneSpec(const Active& active, int64_t i) const {
  const SampleRequest& request = active.request();
  const int64_t count = model_.spec.dit.latentCount();
  const auto part = [i](const std::vector<float>& all, int64_t size) {
    return all.empty() ? std::vector<float>()
                       : std::vector<float>(all.begin() + i * size, all.begin() + (i + 1) * size);
  };
  LaneSpec spec;
  spec.plan = active.plan;
  spec.label = request.labels[i];
  if (spec.label < 0) spec.vector = request.vectors[i];
  spec.seed = request.seeds[i];
  spec.guidance = request.guidance;
  spec.guidanceChannels = request.guidanceChannels;
  spec.guidanceFrom = request.guidanceFrom;
  spec.guidanceTo = request.guidanceTo;
  spec.noise = part(request.noise, count);
  spec.stepNoise = part(request.stepNoise, static_cast<int64_t>(active.plan->size()) * count);
  return spec;
}

// Progress, previews and finished images of a job after a round.
void SamplingJobs::report(Active& active) {
  queue_.checkpoint(*active.job);
  const SampleRequest& request = active.request();
  const int64_t steps = static_cast<int64_t>(active.plan->size());
  int64_t done = 0;
  for (size_t i = 0; i < active.images.size(); i++) {
    Image& image = active.images[i];
    if (image.lane >= 0) {
      image.steps = model_.sampler->step(image.lane);
      if (image.steps == steps) {
        finishImage(active, static_cast<int64_t>(i));
      } else if (request.previewEvery > 0 && image.steps % request.previewEvery == 0) {
        preview(active, static_cast<int64_t>(i));
      }
    }
    done += image.steps;
  }
  if (done == active.steps) return;  // it still waits for a lane
  queue_.calls().stepped(*active.job->call, done - active.steps);
  active.steps = done;
  queue_.progress(*active.job, done, steps * static_cast<int64_t>(active.images.size()));
  if (!active.ready()) return;
  active.result.queueSeconds = active.startedAt - active.job->call->began;
  active.result.sampleSeconds = steadySeconds() - active.startedAt - active.result.decodeSeconds;
  queue_.finish(*active.job, std::move(active.result), model_.info());
}

void SamplingJobs::preview(const Active& active, int64_t i) {
  Sampler& sampler = *model_.sampler;
  const Image& image = active.images[i];
  Picture picture = model_.previewOf(sampler.prediction(image.lane), active.request().previewKind,
                                     [&] { queue_.checkpoint(*active.job); });
  JobEvent event;
  event.image = i;
  event.done = image.steps;
  event.total = static_cast<int64_t>(active.plan->size());
  event.height = picture.height;
  event.width = picture.width;
  event.channels = picture.channels;
  event.bytes = std::move(picture.bytes);
  queue_.preview(*active.job, std::move(event));
}

// Moves the image from its lane into the job's result.
void SamplingJobs::finishImage(Active& active, int64_t i) {
  Sampler& sampler = *model_.sampler;
  Image& image = active.images[i];
  const DitConfig& config = model_.spec.dit;
  const int64_t n = static_cast<int64_t>(active.images.size());
  const std::vector<float> latent = sampler.latent(image.lane);
  sampler.stop(image.lane);
  image.lane = -1;
  JobEvent& result = active.result;
  if (active.request().latentOnly) {
    result.shape = {n, config.channels, config.height, config.width};
    result.floats.resize(static_cast<size_t>(result.shape.count()));
    std::copy(latent.begin(), latent.end(), result.floats.begin() + i * config.latentCount());
  } else {
    DIT_CHECK(std::all_of(latent.begin(), latent.end(), [](float x) { return std::isfinite(x); }),
              ErrorCode::NonFinite, "image ", i,
              " is not a number: the weights or the noise hold NaN, or the guidance is too large; "
              "output: 'latent' gives it as it is");
    const double begin = steadySeconds();
    const Picture picture = sampler.picture(latent, [&] { queue_.checkpoint(*active.job); });
    const double took = steadySeconds() - begin;
    result.decodeSeconds += took;
    queue_.calls().decoded(took);
    result.height = picture.height;
    result.width = picture.width;
    result.channels = picture.channels;
    result.bytes.resize(static_cast<size_t>(n) * picture.bytes.size());
    std::copy(picture.bytes.begin(), picture.bytes.end(),
              result.bytes.begin() + i * static_cast<int64_t>(picture.bytes.size()));
  }
  image.done = true;
  queue_.calls().finished(*active.job->call);
}

template <typename Work>
void SamplingJobs::guarded(Active& active, const Work& work) {
  const bool succeeded = queue_.guarded(*active.job, work);
  if (succeeded && !active.ready()) return;
  for (const Image& image : active.images) {
    if (image.lane >= 0) model_.sampler->stop(image.lane);
  }
  active_.erase(std::find_if(active_.begin(), active_.end(),
                             [&](const auto& other) { return other.get() == &active; }));
}

}  // namespace dit
