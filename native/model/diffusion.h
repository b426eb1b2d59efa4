#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"

// Gaussian diffusion (Ho et al. 2020; Nichol & Dhariwal 2021; Song et al. 2021; Lu et al. 2022), in
// float64. Everything a sampler does at a step is decided here, before sampling starts: a plan is a
// list of timesteps with the coefficients of SolverStep (ops.h). The loop knows no sampler.

namespace dit {

enum class BetaSchedule : uint8_t { Linear, Cosine };

struct ScheduleConfig {
  BetaSchedule kind = BetaSchedule::Linear;
  int64_t steps = 1000;
  double betaStart = 1e-4, betaEnd = 0.02;  // linear only
};

// The tables of a (respaced) schedule, one value a step, t = 0 first. With a_t = 1 - beta_t and
// abar_t the product of a_0 .. a_t.
struct Schedule {
  std::vector<double> betas;
  std::vector<double> alphasCumprod, alphasCumprodPrev, alphasCumprodNext;
  std::vector<double> sqrtAlphasCumprod, sqrtOneMinusAlphasCumprod, logOneMinusAlphasCumprod;
  std::vector<double> sqrtRecipAlphasCumprod, sqrtRecipm1AlphasCumprod;
  std::vector<double> posteriorVariance, posteriorLogVarianceClipped;
  std::vector<double> posteriorMeanCoef1, posteriorMeanCoef2;
  std::vector<int64_t> timestepMap;  // the timestep that the model sees

  int64_t size() const { return static_cast<int64_t>(betas.size()); }
};

std::vector<double> makeBetas(const ScheduleConfig& config);

// Which of `steps` timesteps a spacing keeps, ascending:
//   "N"       N timesteps, the first and the last among them (a section list of one)
//   "a,b,c"   sections of equal length with a, b, c timesteps each
//   "ddimN"   the integer stride from 0 that gives exactly N
std::vector<int64_t> spaceTimesteps(int64_t steps, const std::string& spacing);

// The schedule that visits only `timesteps` of `betas`, with the same abar at each.
Schedule makeSchedule(const std::vector<double>& betas, const std::vector<int64_t>& timesteps);

// What the training loss of a row at timestep t needs (training.h). Throws Option for a schedule of
// one step, which has no posterior variance.
//   meanFromEps     posteriorMeanCoef1 * sqrtRecipm1AlphasCumprod: x0 = .. - sqrtRecipm1 eps
//   logVarianceMin  that of the posterior;  logVarianceMax  log beta_t
LossStep makeLossStep(const Schedule& schedule, int64_t t);

enum class SamplerKind : uint8_t { Ddpm, Ddim, DpmSolver };

struct PlanOptions {
  SamplerKind sampler = SamplerKind::DpmSolver;
  std::string spacing = "25";
  double eta = 0;                // DDIM's share of fresh noise, 0 .. 1
  bool clip = false;             // clamp x0 to [-1, 1]
  bool learnedVariance = false;  // the model has 2 C output channels
};

// One evaluation of the model and what follows from it. The fields of `update` that depend on the
// lane (rows, guidance, seed) are filled by the sampler.
struct PlanStep {
  float timestep;  // what the model sees
  SolverStep update;
};

using Plan = std::vector<PlanStep>;

Plan makePlan(const ScheduleConfig& schedule, const PlanOptions& options);

}  // namespace dit
