#include "model/sampling_jobs.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "model/lane_schedule.h"
#include "model/model_jobs.h"

namespace dit {

bool SamplingJobs::Active::ready() const {
  return std::all_of(images.begin(), images.end(), [](const Image& image) { return image.done; });
}

void SamplingJobs::join(std::shared_ptr<Job> job) {
  auto active = std::make_unique<Active>();
  active->job = std::move(job);
  const SampleRequest& request = active->request();
  if (request.call != 0) {
    active->job->call = queue_.calls().find(request.call);
    DIT_CHECK(active->job->call, ErrorCode::Aborted, "the call has ended");
  }
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
  if (!active->job->call) {
    active->job->call = queue_.calls().enter({.images = images,
                                              .steps = steps,
                                              .rows = request.guidance == 1 ? steps : 2 * steps,
                                              .caller = {},
                                              .decoded = !request.latentOnly},
                                             steadySeconds());
  }
  if (active->job->call->turn == 0) active->job->call->turn = ++lastTurn_;
  active->images.resize(n);
  active_.push_back(std::move(active));
}

std::vector<SamplingJobs::Active*> SamplingJobs::all() const {
  std::vector<Active*> jobs;
  for (const auto& active : active_) jobs.push_back(active.get());
  return jobs;
}

template <typename Work>
double SamplingJobs::aside(const Work& work) {
  const double begin = steadySeconds();
  work();
  const double took = steadySeconds() - begin;
  aside_ += took;
  return took;
}

void SamplingJobs::advance() {
  const double begin = steadySeconds();
  aside_ = 0;
  dropUnwanted();
  try {
    aside([&] { model_.refresh(); });
  } catch (const std::exception&) {
    failAll(std::current_exception());
    return;
  }
  handOutLanes();
  if (active_.empty()) return;
  const std::vector<Active*> jobs = all();
  int64_t rows = 0;
  try {
    // Stops early only when nobody waits for the round any more.
    rows = model_.sampler->round([&] {
      queue_.checkOpen();
      const bool wanted = std::any_of(jobs.begin(), jobs.end(), [](const Active* active) {
        return !active->job->cancel.cancelled();
      });
      DIT_CHECK(wanted, ErrorCode::Aborted, "the job was cancelled");
    });
  } catch (const std::exception&) {
    failAll(std::current_exception());
    return;
  }
  if (rows == 0) return;  // those who were given the lanes have failed
  queue_.calls().roundDone();
  for (Active* active : jobs) guarded(*active, [&] { report(*active); });
  queue_.calls().turnDone(rows, steadySeconds() - begin, aside_);
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

// Every image that may get a lane: of those that have not begun, no more of a job than there are
// lanes, the first ones.
void SamplingJobs::handOutLanes() {
  const int64_t lanes = model_.sampler->maxLanes();
  std::vector<Contender> contenders;
  std::vector<Place> places;
  for (const auto& active : active_) {
    const Call& call = *active->job->call;
    int64_t fresh = 0;
    for (size_t i = 0; i < active->images.size() && fresh < lanes; i++) {
      const Image& image = active->images[i];
      if (image.done) continue;
      fresh += image.fresh();
      contenders.push_back({.caller = call.caller,
                            .call = call.id,
                            .priority = call.priority,
                            .turn = call.turn,
                            .left = static_cast<int64_t>(active->plan->size()) - image.steps,
                            .holds = image.lane >= 0,
                            .held = image.held});
      places.push_back({active.get(), i});
    }
  }
  std::vector<bool> chosen(contenders.size());
  for (const size_t i : assignLanes(contenders, lanes)) chosen[i] = true;
  for (size_t i = 0; i < places.size(); i++) {
    if (contenders[i].holds && !chosen[i]) takeLane(places[i]);
  }
  for (size_t i = 0; i < places.size(); i++) {
    if (!contenders[i].holds && chosen[i]) giveLane(places[i]);
  }
  tellLanes();
}

void SamplingJobs::takeLane(const Place& place) {
  if (!isActive(place.active)) return;
  guarded(*place.active, [&] {
    Image& image = place.active->images[place.image];
    image.suspended = model_.sampler->suspend(image.lane);
    image.lane = -1;
    model_.suspended++;
    // After its turn the call waits for the next one behind all others; set aside before that, it
    // keeps its place.
    if (image.held >= kLaneQuantum) place.active->job->call->turn = ++lastTurn_;
  });
}

void SamplingJobs::giveLane(const Place& place) {
  if (!isActive(place.active)) return;
  // Failing to make room for it is this job's failure; its images then wait no more.
  guarded(*place.active, [&] {
    Active& active = *place.active;
    Image& image = active.images[place.image];
    if (image.suspended) {
      image.lane = model_.sampler->resume(std::move(*image.suspended));
      image.suspended.reset();
      model_.suspended--;
    } else {
      image.lane = model_.sampler->start(laneSpec(active, static_cast<int64_t>(place.image)));
      if (active.startedAt == 0) active.startedAt = steadySeconds();
    }
    image.held = 0;
  });
}

bool SamplingJobs::isActive(const Active* active) const {
  return std::any_of(active_.begin(), active_.end(),
                     [&](const auto& other) { return other.get() == active; });
}

// For those who ask what is in the making now.
void SamplingJobs::tellLanes() {
  queue_.calls().inTheMaking(model_.sampler->maxLanes() - model_.sampler->freeLanes(),
                             model_.suspended);
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
      image.held++;
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
  const PreviewKind kind = active.request().previewKind;
  const Checkpoint checkpoint = [&] { queue_.checkpoint(*active.job); };
  aside([&] { model_.preparePreview(kind, checkpoint); });
  Picture picture = model_.previewOf(sampler.prediction(image.lane), kind, checkpoint);
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
  tellLanes();
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
    Picture picture;
    const double took =
        aside([&] { picture = sampler.picture(latent, [&] { queue_.checkpoint(*active.job); }); });
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
  const bool succeeded = queue_.guarded(*active.job, [&] {
    try {
      work();
    } catch (...) {
      leave(active);  // before anybody is told that it has
      throw;
    }
  });
  if (succeeded && !active.ready()) return;
  active_.erase(std::find_if(active_.begin(), active_.end(),
                             [&](const auto& other) { return other.get() == &active; }));
}

// Gives the lanes of a job back.
void SamplingJobs::leave(Active& active) {
  for (Image& image : active.images) {
    if (image.lane >= 0) model_.sampler->stop(image.lane);
    if (image.suspended) model_.suspended--;
    image = {.done = true};
  }
  tellLanes();
}

}  // namespace dit
