#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "model/jobs.h"
#include "model/loaded_model.h"

namespace dit {

// The sample jobs under way, which share the rounds of the model's sampler. All of it happens on
// the model's thread.
class SamplingJobs {
 public:
  SamplingJobs(JobQueue& queue, LoadedModel& model) : queue_(queue), model_(model) {}

  // Lets a job, whose request is a SampleRequest, join; throws when it asks for the impossible.
  void join(std::shared_ptr<Job> job);
  bool empty() const { return active_.empty(); }
  // Gives the lanes to those whose turn it is (lane_schedule.h), does one round and finishes the
  // images that are ready.
  void advance();

 private:
  // One image of a job.
  struct Image {
    int64_t lane = -1;  // -1: waits, or is done
    int64_t held = 0;   // rounds since it was given its lane
    int64_t steps = 0;  // done
    std::optional<SuspendedLane> suspended;
    bool done = false;

    bool fresh() const { return lane < 0 && !suspended && !done; }
  };

  struct Active {
    std::shared_ptr<Job> job;
    std::shared_ptr<const Plan> plan;
    std::vector<Image> images;
    int64_t steps = 0;  // done so far, of all images
    JobEvent result;
    double startedAt = 0;

    const SampleRequest& request() const { return std::get<SampleRequest>(job->request); }
    bool ready() const;
  };

  // An image of a job under way.
  struct Place {
    Active* active;
    size_t image;
  };

  std::vector<Active*> all() const;
  bool isActive(const Active* active) const;
  void failAll(const std::exception_ptr& error);
  void dropUnwanted();
  void handOutLanes();
  void giveLane(const Place& place);
  void takeLane(const Place& place);
  void leave(Active& active);
  void tellLanes();
  LaneSpec laneSpec(const Active& active, int64_t i) const;
  void report(Active& active);
  void preview(const Active& active, int64_t i);
  // Does `work` and returns how many seconds it took, which are no cost of a round.
  template <typename Work>
  double aside(const Work& work);
  void finishImage(Active& active, int64_t i);
  // Runs `work` for a job; the job leaves, and its lanes with it, when that fails or when all its
  // images are done.
  template <typename Work>
  void guarded(Active& active, const Work& work);

  JobQueue& queue_;
  LoadedModel& model_;
  std::deque<std::unique_ptr<Active>> active_;
  uint64_t lastTurn_ = 0;
  double aside_ = 0;  // seconds of this turn that are no cost of its round
};

}  // namespace dit
