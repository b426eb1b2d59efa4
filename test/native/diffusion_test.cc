// The schedules of the reference, and samplers on data whose answer is known in closed form.
#include "model/diffusion.h"

#include <algorithm>
#include <cmath>

#include "fixture.h"
#include "harness.h"

namespace dit::test {
namespace {

DIT_CASE("diffusion/schedules") {
  const Fixture file("diffusion_schedule/schedules.safetensors");
  const std::vector<std::string> respacings = {"full", "250",      "50",     "10",     "7",
                                               "75",   "10,20,30", "ddim25", "ddim10", "ddim50"};
  const std::vector<double> betas = makeBetas({});
  size_t compared = 0;
  for (const std::string& respacing : respacings) {
    const Schedule s =
        makeSchedule(betas, spaceTimesteps(1000, respacing == "full" ? "1000" : respacing));
    const auto same = [&](const std::string& field, const std::vector<double>& got) {
      const Tensor& want = file.at(respacing + "/" + field);
      compared++;
      EXPECT(want.count() == static_cast<int64_t>(got.size()), respacing, "/", field);
      for (size_t i = 0; i < got.size(); i++) {
        const double w = want.as<double>()[i];
        EXPECT(std::abs(got[i] - w) <= 1e-12 * std::abs(w), respacing, "/", field, "[", i,
               "]: ", got[i], " instead of ", w);
      }
    };
    same("betas", s.betas);
    same("alphas_cumprod", s.alphasCumprod);
    same("alphas_cumprod_prev", s.alphasCumprodPrev);
    same("alphas_cumprod_next", s.alphasCumprodNext);
    same("sqrt_alphas_cumprod", s.sqrtAlphasCumprod);
    same("sqrt_one_minus_alphas_cumprod", s.sqrtOneMinusAlphasCumprod);
    same("log_one_minus_alphas_cumprod", s.logOneMinusAlphasCumprod);
    same("sqrt_recip_alphas_cumprod", s.sqrtRecipAlphasCumprod);
    same("sqrt_recipm1_alphas_cumprod", s.sqrtRecipm1AlphasCumprod);
    same("posterior_variance", s.posteriorVariance);
    same("posterior_log_variance_clipped", s.posteriorLogVarianceClipped);
    same("posterior_mean_coef1", s.posteriorMeanCoef1);
    same("posterior_mean_coef2", s.posteriorMeanCoef2);
    const Tensor& map = file.at(respacing + "/timestep_map");
    EXPECT(
        s.timestepMap == std::vector<int64_t>(map.as<int64_t>(), map.as<int64_t>() + map.count()),
        respacing);
    compared++;
  }
  EXPECT(compared == file.tensors().size(), compared, " of ", file.tensors().size());
}

DIT_CASE("diffusion/spacing") {
  EXPECT(spaceTimesteps(1000, "1") == (std::vector<int64_t>{0}));
  EXPECT(spaceTimesteps(1000, "7").back() == 999);
  for (const char* bad : {"", "0", "-1", "1001", "1.5", "10,,20", "10,", ",", "ddim", "ddim999",
                          "ddim0", "abc", "99999999999999999999", "400,400,400"}) {
    EXPECT_ERROR(Option, spaceTimesteps(1000, bad));
  }
  for (const double eta : {-0.1, 1.1, std::nan("")}) {
    EXPECT_ERROR(Option, makePlan({}, {.sampler = SamplerKind::Ddim, .eta = eta}));
  }
}

DIT_CASE("diffusion/cosine") {
  const std::vector<double> betas = makeBetas({.kind = BetaSchedule::Cosine});
  double abar = 1;
  for (size_t t = 0; t + 1 < betas.size(); t++) {  // the last beta is capped
    abar *= 1 - betas[t];
    const auto f = [](double u) { return std::pow(std::cos((u + 0.008) / 1.008 * M_PI / 2), 2); };
    const double want = f(static_cast<double>(t + 1) / 1000) / f(0);
    EXPECT(std::abs(abar - want) < 1e-9, t, ": ", abar, " instead of ", want);
  }
  EXPECT(betas.back() == 0.999);
}

// Data that is normal with this mean and a deviation: the best prediction of the noise is known,
// and the deterministic samplers follow the ODE x = alpha mean + sqrt(alpha^2 deviation^2 +
// sigma^2) z.
constexpr double kMean = 0.3;

double bestNoise(double x, double abar, double deviation) {
  const double alpha = std::sqrt(abar), variance = abar * deviation * deviation + 1 - abar;
  return (x - alpha * kMean) * std::sqrt(1 - abar) / variance;
}

// Runs a plan as SolverStep says, on one number, with the given noise.
double run(const Plan& plan, double x, const std::vector<double>& noise, double deviation) {
  std::vector<double> abars;
  double abar = 1;
  for (double beta : makeBetas({})) abars.push_back(abar *= 1 - beta);
  double history[kSolverHistory] = {};
  for (size_t i = 0; i < plan.size(); i++) {
    const SolverStep& s = plan[i].update;
    const double m = bestNoise(x, abars[static_cast<size_t>(plan[i].timestep)], deviation);
    const double x0 = s.x0FromX * x + s.x0FromModel * m;
    const double eps = s.epsFromX * x + s.epsFromX0 * x0 + s.epsFromModel * m;
    double next = s.xFromX * x + s.xFromX0 * x0 + s.xFromEps * eps + s.noise * noise[i];
    for (int h = 0; h < kSolverHistory; h++) next += s.xFromHistory[h] * history[h];
    history[s.historySlot] = x0;
    x = next;
  }
  return x;
}

// The ODE's solution at a timestep (-1: clean data) for the latent z standard deviations from the
// mean.
double solution(int64_t timestep, double z, double deviation) {
  double abar = 1;
  const std::vector<double> betas = makeBetas({});
  for (int64_t t = 0; t <= timestep; t++) abar *= 1 - betas[t];
  return std::sqrt(abar) * kMean + std::sqrt(abar * deviation * deviation + 1 - abar) * z;
}

// The largest error of a plan on its way down to (not including the evaluation at) a timestep of
// it, or at its end (-1).
double errorAt(int64_t timestep, SamplerKind sampler, const std::string& spacing,
               double deviation = 0.5) {
  Plan plan = makePlan({}, {.sampler = sampler, .spacing = spacing});
  const auto reached = std::find_if(plan.begin(), plan.end(), [&](const PlanStep& step) {
    return static_cast<int64_t>(step.timestep) == timestep;
  });
  DIT_CHECK(timestep < 0 || reached != plan.end(), ErrorCode::Internal, "not a timestep");
  plan.erase(reached, plan.end());
  double worst = 0;
  for (const double z : {-2.0, -1.0, 0.3, 1.5}) {
    const double start = solution(static_cast<int64_t>(plan[0].timestep), z, deviation);
    const double got = run(plan, start, std::vector<double>(plan.size(), 0), deviation);
    worst = std::max(worst, std::abs(got - solution(timestep, z, deviation)));
  }
  return worst;
}

DIT_CASE("diffusion/order") {
  // Halving the step divides the error by 2 (first order) and by 4 (second order).
  const auto order = [](SamplerKind sampler) {
    return errorAt(200, sampler, "ddim50") / errorAt(200, sampler, "ddim100");
  };
  const double ddim = order(SamplerKind::Ddim), dpm = order(SamplerKind::DpmSolver);
  EXPECT(ddim > 1.8 && ddim < 2.2, ddim);
  EXPECT(dpm > 3.5 && dpm < 4.5, dpm);
}

// The whole way to clean data, wide and narrow: it converges, and dpm++ is nearer than ddim.
DIT_CASE("diffusion/convergence") {
  for (const double deviation : {0.5, 0.1, 0.05}) {
    const auto error = [&](SamplerKind sampler, const char* spacing) {
      return errorAt(-1, sampler, spacing, deviation);
    };
    for (const SamplerKind sampler : {SamplerKind::Ddim, SamplerKind::DpmSolver}) {
      EXPECT(error(sampler, "80") < 0.6 * error(sampler, "20"), deviation);
      EXPECT(error(sampler, "320") < 0.6 * error(sampler, "80"), deviation);
    }
    for (const char* spacing : {"10", "25", "50"}) {
      EXPECT(error(SamplerKind::DpmSolver, spacing) < 0.85 * error(SamplerKind::Ddim, spacing),
             spacing, " at ", deviation);
    }
  }
}

// Ancestral samplers: the distribution of the results.
DIT_CASE("diffusion/distribution") {
  constexpr double kDeviation = 0.5;
  for (const PlanOptions& options :
       {PlanOptions{.sampler = SamplerKind::Ddpm, .spacing = "250"},
        PlanOptions{.sampler = SamplerKind::Ddim, .spacing = "250", .eta = 1}}) {
    const Plan plan = makePlan({}, options);
    const int64_t n = 4000;
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++) {
      const Values z = test.random(DType::F64, {static_cast<int64_t>(plan.size()) + 1});
      const double x = run(plan, z.v.back(), z.v, kDeviation);
      mean += x / n;
      square += x * x / n;
    }
    const double deviation = std::sqrt(square - mean * mean);
    EXPECT(std::abs(mean - kMean) < 0.03, mean);
    EXPECT(std::abs(deviation - kDeviation) < 0.03, deviation);
  }
}

DIT_CASE("diffusion/one-step") {
  for (const SamplerKind sampler : {SamplerKind::Ddim, SamplerKind::DpmSolver}) {
    const Plan plan = makePlan({}, {.sampler = sampler, .spacing = "1"});
    EXPECT(plan.size() == 1);
    EXPECT(std::isfinite(plan[0].update.xFromX0) && std::isfinite(plan[0].update.xFromEps));
  }
  EXPECT_ERROR(
      Option,
      makePlan({}, {.sampler = SamplerKind::Ddpm, .spacing = "1", .learnedVariance = true}));
}

// The posterior's mean is (x_t - beta / sqrt(1 - abar) eps) / sqrt(1 - beta) (Ho et al. 2020,
// equation 11), its variance between beta and (1 - abar of before) / (1 - abar) beta.
DIT_CASE("diffusion/loss-step") {
  for (const BetaSchedule kind : {BetaSchedule::Linear, BetaSchedule::Cosine}) {
    const std::vector<double> betas = makeBetas({.kind = kind});
    const Schedule s = makeSchedule(betas, spaceTimesteps(1000, "1000"));
    const auto near = [](float got, double want) {
      return std::abs(got - want) <= 1e-7 * std::abs(want);
    };
    double abar = 1, before = 1, lowest = 0;
    for (int64_t t = 0; t < 1000; t++) {
      before = abar;
      abar *= 1 - betas[t];
      const LossStep step = makeLossStep(s, t);
      EXPECT(near(step.meanFromEps, betas[t] / std::sqrt((1 - betas[t]) * (1 - abar))), t);
      EXPECT(near(step.logVarianceMax, std::log(betas[t])), t);
      if (t == 0) {
        lowest = step.logVarianceMin;
      } else {
        EXPECT(near(step.logVarianceMin, std::log(betas[t] * (1 - before) / (1 - abar))), t);
      }
      if (t == 1) EXPECT(step.logVarianceMin == lowest);
      EXPECT(step.decoder == (t == 0 ? 1 : 0), t);
    }
    EXPECT_ERROR(Option, makeLossStep(s, -1));
    EXPECT_ERROR(Option, makeLossStep(s, 1000));
  }
  EXPECT_ERROR(Option, makeLossStep(makeSchedule(makeBetas({}), {0}), 0));
}

}  // namespace
}  // namespace dit::test
