#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/diffusion.h"
#include "model/dit.h"
#include "model/modulation.h"
#include "model/vae.h"

namespace dit {

// What one image is made from.
struct LaneSpec {
  std::shared_ptr<const Plan> plan;
  int32_t label = 0;          // -1: `vector` instead
  std::vector<float> vector;  // [hidden]
  uint64_t seed = 0;
  float guidance = 1;  // 1: one evaluation a step
  int32_t guidanceChannels = 0;
  float guidanceFrom = 0, guidanceTo = 1;  // guided while from <= t / T <= to
  std::vector<float> noise;                // [C, H, W]: the start; Philox's where empty
  std::vector<float> stepNoise;  // [steps, C, H, W]: the noise of each step; Philox's where empty
};

// An image that was begun and has no lane: all that its later steps depend on.
struct SuspendedLane {
  LaneSpec spec;
  int64_t step = 0;
  uint64_t vectorId = 0;
  std::vector<float> x, history;  // [C, H, W], [kSolverHistory, C, H, W]
};

// An image [height, width, channels] of bytes.
struct Picture {
  int64_t height = 0, width = 0, channels = 0;
  std::vector<uint8_t> bytes;
};

// Continuous batching. A lane is one image in the making; a round is one evaluation of the model
// for all rows of all lanes: two rows for a guided lane, one otherwise. Lanes join and leave
// between rounds, each at its own timestep, with its own sampler and seed; what shares a round
// never changes a bit of a lane's result.
class Sampler {
 public:
  // `dit` has room for two rows a lane. `vae` may be null: then latents are pixels.
  Sampler(Ops& ops, Dit& dit, Vae* vae, int64_t maxLanes, int64_t trainingSteps);

  // To be called after Dit::reload.
  void weightsChanged() { modulation_.clear(); }

  int64_t maxLanes() const { return static_cast<int64_t>(lanes_.size()); }
  int64_t freeLanes() const;

  // Takes a free lane and starts it from noise; returns its number.
  int64_t start(LaneSpec spec);
  // Gives the lane back, finished or not.
  void stop(int64_t lane);

  // Gives the lane back; resumed in any free lane, the image goes on as if it had never left.
  SuspendedLane suspend(int64_t lane);
  int64_t resume(SuspendedLane suspended);

  // One evaluation of the model and one solver step for every lane that is not finished. A device
  // that records rounds (Backend::repeat) replays them from the third of a size on.
  // `checkpoint` is called between blocks, unless the round is replayed, and may throw: then no
  // lane has advanced. Returns how many rows there were.
  int64_t round(const Checkpoint& checkpoint);

  int64_t step(int64_t lane) const { return lanes_[lane].step; }
  bool finished(int64_t lane) const;

  // The latent [C, H, W] of a lane, on the host.
  std::vector<float> latent(int64_t lane);
  // What the model takes for the clean latent at the lane's last step: for previews.
  std::vector<float> prediction(int64_t lane);
  // The picture of a latent [C, H, W]: through the VAE, or as pixels where there is none.
  Picture picture(const std::vector<float>& latent, const Checkpoint& checkpoint);

  // One evaluation of the model outside of any plan, guided unless `guidance` is 1.
  struct Evaluation {
    int64_t n = 0;
    const float* x = nullptr;                // [n, C, H, W]
    std::vector<Dit::Condition> conditions;  // n
    float guidance = 1;
    int32_t guidanceChannels = 0;
    float* out = nullptr;  // [n, outChannels, H, W]
  };
  void denoise(const Evaluation& evaluation, const Checkpoint& checkpoint);

  // Device memory of lanes and modulation.
  size_t bytes() const { return memory_.bytes() + modulation_.bytes(); }

 private:
  struct Lane {
    bool active = false;
    LaneSpec spec;
    int64_t step = 0;
    uint64_t vectorId = 0;
  };
  // The rows of a round: which latent and which modulation each has.
  struct Rows {
    std::vector<int32_t> latent;
    std::vector<ModulationCache::Need> needs;
    int32_t add(int64_t ofLatent, const ModulationCache::Need& need);
  };

  // What is repeated, with each number of rows.
  enum class Work : uint8_t { Round, Denoise };

  int64_t freeLane() const;
  bool guided(const Lane& lane, int64_t step) const;
  ModulationCache::Need need(const Lane& lane, int64_t step) const;
  ModulationCache::Need nullNeed(float timestep) const;
  std::vector<ModulationCache::Need> upcoming() const;
  int64_t prepare(Rows rows, const std::vector<ModulationCache::Need>& soon,
                  const Checkpoint& checkpoint);
  uint64_t keyOf(Work work, int64_t R) const;
  void uploadSteps(std::vector<SolverStep> steps, int64_t R);
  void evaluate(int64_t R, const Tensor& x, const Checkpoint& checkpoint);
  void advance(int64_t R, const Tensor& noise);

  Ops& ops_;
  Dit& dit_;
  Vae* vae_;
  int64_t trainingSteps_;
  std::vector<Lane> lanes_;
  ModulationCache modulation_;
  uint64_t nextVectorId_ = 1;

  DeviceBuffer memory_;
  Tensor x_, history_, noise_;     // the lanes' state
  Tensor input_, model_, guided_;  // of one evaluation
  Tensor latentOfRow_, entryOfRow_, steps_, cond_, uncond_, scale_;
  Tensor pixels_, bytes_;  // of one picture, without a VAE
  void layOut(Arena& arena);
};

}  // namespace dit
