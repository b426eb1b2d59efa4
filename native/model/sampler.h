#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/cancel.h"
#include "model/diffusion.h"
#include "model/dit.h"
#include "model/modulation.h"

namespace dit {

// What one image is made from.
struct LaneSpec {
  std::shared_ptr<const Plan> plan;
  int32_t label = 0;               // -1: `vector` instead
  std::vector<float> vector;       // [hidden]
  uint64_t seed = 0;
  float guidance = 1;              // 1: one evaluation a step
  int32_t guidanceChannels = 0;
  float guidanceFrom = 0, guidanceTo = 1;  // guided while from <= t / T <= to
  std::vector<float> noise;        // [C, H, W]: the start; Philox's where empty
  std::vector<float> stepNoise;    // [steps, C, H, W]: the noise of each step; Philox's where empty
};

// Continuous batching. A lane is one image in the making; a round is one evaluation of the model
// for all rows of all lanes: two rows for a guided lane, one otherwise. Lanes join and leave
// between rounds, each at its own timestep, with its own sampler and seed; what shares a round
// never changes a bit of a lane's result.
class Sampler {
 public:
  Sampler(Ops& ops, Dit& dit, int64_t maxLanes, int64_t trainingSteps);

  int64_t maxLanes() const { return static_cast<int64_t>(lanes_.size()); }
  int64_t freeLanes() const;
  bool idle() const { return freeLanes() == maxLanes(); }

  // Takes a free lane; returns its number.
  int64_t start(LaneSpec spec);
  // Gives the lane back, finished or not.
  void stop(int64_t lane);

  // One evaluation of the model and one solver step for every lane that is not finished.
  // `checkpoint` is called between blocks and may throw: then no lane has advanced.
  void round(const Checkpoint& checkpoint);

  int64_t step(int64_t lane) const { return lanes_[lane].step; }
  bool finished(int64_t lane) const;
  // The latent [C, H, W] F32 of a lane, on the device.
  Tensor latent(int64_t lane) const;

  // One evaluation of the model outside of any plan, for n <= maxRows / 2 latents: x [n, C, H, W]
  // on the host, out [n, outChannels, H, W] on the host; guided when `guidance` is not 1.
  struct Evaluation {
    const float* x = nullptr;
    std::vector<Dit::Condition> conditions;  // n
    float guidance = 1;
    int32_t guidanceChannels = 0;
    float* out = nullptr;
  };
  void denoise(const Evaluation& evaluation, const Checkpoint& checkpoint);

  size_t bytes() const;

 private:
  struct Lane {
    bool active = false;
    LaneSpec spec;
    int64_t step = 0;
    uint64_t conditionId = 0;
    // The row of the null condition exists at this step.
    bool guidedAt(int64_t step, int64_t trainingSteps) const;
  };

  Ops& ops_;
  Dit& dit_;
  int64_t trainingSteps_;
  std::vector<Lane> lanes_;
  ModulationCache modulation_;
  uint64_t nextConditionId_ = 1;

  DeviceBuffer memory_;
  Tensor x_, history_, noise_, model_, guided_, steps_, laneIndex_, entryIndex_;
  Tensor cond_, uncond_, scale_;
};

}  // namespace dit
