#include "model/diffusion.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dit {

namespace {

constexpr float kNoClip = std::numeric_limits<float>::infinity();

int64_t parseCount(const std::string& text, const std::string& spacing) {
  DIT_CHECK(
      !text.empty() && text.size() <= 9 &&
          std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }),
      ErrorCode::Option,
      "spacing: expected a number of steps, a list such as \"10,20,30\" or \"ddim50\", got \"",
      spacing, "\"");
  return std::stoll(text);
}

std::vector<int64_t> ddimTimesteps(int64_t steps, const std::string& spacing) {
  const int64_t wanted = parseCount(spacing.substr(4), spacing);
  for (int64_t stride = 1; stride < steps; stride++) {
    if ((steps + stride - 1) / stride != wanted) continue;
    std::vector<int64_t> timesteps;
    for (int64_t t = 0; t < steps; t += stride) timesteps.push_back(t);
    return timesteps;
  }
  fail(ErrorCode::Option, "spacing: no integer stride visits exactly ", wanted, " of ", steps,
       " timesteps; leave out \"ddim\" for any number of steps");
}

// Round half to even, as the reference implementation's language does.
int64_t roundHalfEven(double value) { return static_cast<int64_t>(std::nearbyint(value)); }

}  // namespace

std::vector<double> makeBetas(const ScheduleConfig& config) {
  DIT_CHECK(config.steps >= 1 && config.steps <= 1000000, ErrorCode::Option,
            "schedule: expected 1 to 1000000 training steps, got ", config.steps);
  const int64_t n = config.steps;
  std::vector<double> betas(n);
  if (config.kind == BetaSchedule::Linear) {
    DIT_CHECK(config.betaStart > 0 && config.betaEnd < 1 && config.betaStart <= config.betaEnd,
              ErrorCode::Option, "schedule: expected 0 < betaStart <= betaEnd < 1, got ",
              config.betaStart, " and ", config.betaEnd);
    const double step =
        n > 1 ? (config.betaEnd - config.betaStart) / static_cast<double>(n - 1) : 0;
    for (int64_t i = 0; i < n; i++) betas[i] = config.betaStart + static_cast<double>(i) * step;
    betas[n - 1] = n > 1 ? config.betaEnd : config.betaStart;
  } else {
    // abar(t) = cos^2((t + 0.008) / 1.008 * pi / 2), Nichol & Dhariwal 2021, equation 17.
    const auto alphaBar = [](double t) {
      const double c = std::cos((t + 0.008) / 1.008 * M_PI / 2);
      return c * c;
    };
    for (int64_t i = 0; i < n; i++) {
      const double from = static_cast<double>(i) / static_cast<double>(n);
      const double to = static_cast<double>(i + 1) / static_cast<double>(n);
      betas[i] = std::min(1 - alphaBar(to) / alphaBar(from), 0.999);
    }
  }
  // Outside of this the coefficients of the samplers, quotients by both, would be infinite.
  double alphaBar = 1;
  for (double beta : betas) alphaBar *= 1 - beta;
  DIT_CHECK(1 - betas[0] < 1 && alphaBar >= std::numeric_limits<float>::min(), ErrorCode::Option,
            "schedule: expected a share of the image that falls from just below 1 to just above 0, "
            "got ",
            1 - betas[0], " and, after ", n, " steps, ", alphaBar,
            "; change betaStart, betaEnd or steps");
  return betas;
}

std::vector<int64_t> spaceTimesteps(int64_t steps, const std::string& spacing) {
  if (spacing.rfind("ddim", 0) == 0) return ddimTimesteps(steps, spacing);

  std::vector<int64_t> sections;
  for (size_t begin = 0; begin <= spacing.size();) {
    const size_t comma = std::min(spacing.find(',', begin), spacing.size());
    sections.push_back(parseCount(spacing.substr(begin, comma - begin), spacing));
    begin = comma + 1;
  }
  const int64_t count = static_cast<int64_t>(sections.size());
  DIT_CHECK(count <= steps, ErrorCode::Option, "spacing: ", count, " sections of ", steps,
            " timesteps");
  std::vector<int64_t> timesteps;
  int64_t start = 0;
  for (int64_t s = 0; s < count; s++) {
    const int64_t size = steps / count + (s < steps % count ? 1 : 0);
    const int64_t wanted = sections[s];
    DIT_CHECK(wanted >= 1 && wanted <= size, ErrorCode::Option, "spacing: expected 1 to ", size,
              " steps for a section of ", size, " timesteps, got ", wanted);
    const double stride =
        wanted > 1 ? static_cast<double>(size - 1) / static_cast<double>(wanted - 1) : 1;
    double position = 0;
    for (int64_t i = 0; i < wanted; i++) {
      timesteps.push_back(start + roundHalfEven(position));
      position += stride;
    }
    start += size;
  }
  std::sort(timesteps.begin(), timesteps.end());
  timesteps.erase(std::unique(timesteps.begin(), timesteps.end()), timesteps.end());
  return timesteps;
}

Schedule makeSchedule(const std::vector<double>& betas, const std::vector<int64_t>& timesteps) {
  Schedule s;
  s.timestepMap = timesteps;
  const size_t n = timesteps.size();

  double product = 1, previous = 1;
  size_t next = 0;
  for (size_t t = 0; t < betas.size() && next < n; t++) {
    product *= 1 - betas[t];
    if (timesteps[next] != static_cast<int64_t>(t)) continue;
    s.betas.push_back(1 - product / previous);
    previous = product;
    next++;
  }
  DIT_CHECK(next == n && n > 0, ErrorCode::Option, "schedule: timesteps must ascend within [0, ",
            betas.size(), ")");

  double cumulative = 1;
  for (double beta : s.betas) {
    s.alphasCumprodPrev.push_back(cumulative);
    cumulative *= 1 - beta;
    s.alphasCumprod.push_back(cumulative);
  }
  s.alphasCumprodNext.assign(s.alphasCumprod.begin() + 1, s.alphasCumprod.end());
  s.alphasCumprodNext.push_back(0);

  for (size_t i = 0; i < n; i++) {
    const double beta = s.betas[i], abar = s.alphasCumprod[i], prev = s.alphasCumprodPrev[i];
    s.sqrtAlphasCumprod.push_back(std::sqrt(abar));
    s.sqrtOneMinusAlphasCumprod.push_back(std::sqrt(1 - abar));
    s.logOneMinusAlphasCumprod.push_back(std::log(1 - abar));
    s.sqrtRecipAlphasCumprod.push_back(std::sqrt(1 / abar));
    s.sqrtRecipm1AlphasCumprod.push_back(std::sqrt(1 / abar - 1));
    s.posteriorVariance.push_back(beta * (1 - prev) / (1 - abar));
    s.posteriorMeanCoef1.push_back(beta * std::sqrt(prev) / (1 - abar));
    s.posteriorMeanCoef2.push_back((1 - prev) * std::sqrt(1 - beta) / (1 - abar));
  }
  // The first posterior variance is 0, whose logarithm is replaced by the second one's; a schedule
  // of one step has none.
  if (n > 1) {
    for (size_t i = 0; i < n; i++) {
      s.posteriorLogVarianceClipped.push_back(
          std::log(s.posteriorVariance[std::max<size_t>(i, 1)]));
    }
  }
  return s;
}

LossStep makeLossStep(const Schedule& s, int64_t t) {
  DIT_CHECK(s.size() > 1, ErrorCode::Option, "schedule: training needs at least 2 steps, got ",
            s.size());
  DIT_CHECK(t >= 0 && t < s.size(), ErrorCode::Option, "t: expected 0 to ", s.size() - 1, ", got ",
            t);
  LossStep step{};
  step.meanFromEps = static_cast<float>(s.posteriorMeanCoef1[t] * s.sqrtRecipm1AlphasCumprod[t]);
  step.logVarianceMin = static_cast<float>(s.posteriorLogVarianceClipped[t]);
  step.logVarianceMax = static_cast<float>(std::log(s.betas[t]));
  step.decoder = t == 0;
  return step;
}

namespace {

// What all samplers share: x0 from the predicted noise, and the noise that belongs to the clamped
// x0 again.
SolverStep predictionStep(const Schedule& s, int64_t i, bool clip) {
  SolverStep step{};
  step.uncondRow = -1;
  step.guidance = 1;
  step.x0FromX = static_cast<float>(s.sqrtRecipAlphasCumprod[i]);
  step.x0FromModel = static_cast<float>(-s.sqrtRecipm1AlphasCumprod[i]);
  step.clip = clip ? 1.0f : kNoClip;
  if (clip) {
    step.epsFromX = static_cast<float>(s.sqrtRecipAlphasCumprod[i] / s.sqrtRecipm1AlphasCumprod[i]);
    step.epsFromX0 = static_cast<float>(-1 / s.sqrtRecipm1AlphasCumprod[i]);
  } else {
    step.epsFromModel = 1;
  }
  return step;
}

// Ancestral sampling: the posterior's mean, with the learned or the fixed (large) variance.
// Ho et al. 2020, equations 6 and 7.
SolverStep ddpmStep(const Schedule& s, int64_t i, const PlanOptions& options) {
  SolverStep step = predictionStep(s, i, options.clip);
  step.xFromX0 = static_cast<float>(s.posteriorMeanCoef1[i]);
  step.xFromX = static_cast<float>(s.posteriorMeanCoef2[i]);
  if (i == 0) return step;
  if (options.learnedVariance) {
    step.noise = 1;
    step.learnedVariance = 1;
    step.logVarianceMin = static_cast<float>(s.posteriorLogVarianceClipped[i]);
    step.logVarianceMax = static_cast<float>(std::log(s.betas[i]));
  } else {
    step.noise = static_cast<float>(std::sqrt(s.betas[i]));
  }
  return step;
}

// Song et al. 2021, equations 12 and 16.
SolverStep ddimStep(const Schedule& s, int64_t i, const PlanOptions& options) {
  SolverStep step = predictionStep(s, i, options.clip);
  const double abar = s.alphasCumprod[i], prev = s.alphasCumprodPrev[i];
  const double sigma =
      options.eta * std::sqrt((1 - prev) / (1 - abar)) * std::sqrt(1 - abar / prev);
  step.xFromX0 = static_cast<float>(std::sqrt(prev));
  step.xFromEps = static_cast<float>(std::sqrt(std::max(1 - prev - sigma * sigma, 0.0)));
  step.noise = i == 0 ? 0.0f : static_cast<float>(sigma);
  return step;
}

// Multistep DPM-Solver++ of second order on data predictions: Lu et al. 2022, algorithm 2, with
// lambda = log(alpha / sigma) and h the step in lambda. The first step has no history and the last
// one goes to sigma = 0 (h infinite), where both orders' limit is x0: those two are of first order.
SolverStep dpmStep(const Schedule& s, int64_t i, const PlanOptions& options) {
  SolverStep step = predictionStep(s, i, options.clip);
  const int64_t last = s.size() - 1;
  const auto lambda = [&](int64_t k) {
    return std::log(s.sqrtAlphasCumprod[k] / s.sqrtOneMinusAlphasCumprod[k]);
  };
  step.historySlot = static_cast<int32_t>((last - i) % kSolverHistory);
  if (i == 0) {
    step.xFromX0 = 1;
    return step;
  }
  const double h = lambda(i - 1) - lambda(i);
  const double fromData = -s.sqrtAlphasCumprod[i - 1] * std::expm1(-h);
  step.xFromX =
      static_cast<float>(s.sqrtOneMinusAlphasCumprod[i - 1] / s.sqrtOneMinusAlphasCumprod[i]);
  if (i == last) {
    step.xFromX0 = static_cast<float>(fromData);
    return step;
  }
  const double ratio = (lambda(i) - lambda(i + 1)) / h;
  const int earlier = static_cast<int>((last - i + kSolverHistory - 1) % kSolverHistory);
  step.xFromX0 = static_cast<float>(fromData * (1 + 1 / (2 * ratio)));
  step.xFromHistory[earlier] = static_cast<float>(-fromData / (2 * ratio));
  return step;
}

// DPM-Solver++ takes "N" as N evenly spaced timesteps from the first to a quarter of a step above
// 0: its last step goes on to sigma = 0 by itself, in first order, and should be small, but an
// evaluation at t = 0 would be wasted on an almost clean latent. (Optimised ten-step schedules end
// there too: Sabour et al. 2024, "Align Your Steps".) A Fashion-MNIST model's error of 25
// steps: 2.5 % so, 3.4 % ending a whole step above 0, 5.7 % ending at 0; DDIM's 6.4 %.
std::vector<int64_t> solverTimesteps(int64_t steps, const PlanOptions& options) {
  const bool plain = options.spacing.find_first_not_of("0123456789") == std::string::npos;
  if (options.sampler != SamplerKind::DpmSolver || !plain) {
    return spaceTimesteps(steps, options.spacing);
  }
  const int64_t count = parseCount(options.spacing, options.spacing);
  DIT_CHECK(count >= 1 && count <= steps, ErrorCode::Option, "steps: expected 1 to ", steps,
            ", got ", count);
  const double last = static_cast<double>(steps - 1);
  const double end = count > 1 ? last / (4.0 * static_cast<double>(count)) : last;
  std::vector<int64_t> timesteps;
  for (int64_t k = 0; k < count; k++) {
    const double share = count > 1 ? static_cast<double>(k) / static_cast<double>(count - 1) : 0;
    timesteps.push_back(roundHalfEven(end + (last - end) * share));
  }
  return timesteps;
}

}  // namespace

Plan makePlan(const ScheduleConfig& schedule, const PlanOptions& options) {
  DIT_CHECK(options.eta >= 0 && options.eta <= 1, ErrorCode::Option,
            "eta: expected a number in [0, 1], got ", options.eta);
  const Schedule s = makeSchedule(makeBetas(schedule), solverTimesteps(schedule.steps, options));
  DIT_CHECK(s.size() > 1 || options.sampler != SamplerKind::Ddpm || !options.learnedVariance,
            ErrorCode::Option, "steps: ddpm with a learned variance needs at least 2 steps, got 1");

  Plan plan;
  for (int64_t i = s.size() - 1; i >= 0; i--) {
    SolverStep update{};
    switch (options.sampler) {
      case SamplerKind::Ddpm:
        update = ddpmStep(s, i, options);
        break;
      case SamplerKind::Ddim:
        update = ddimStep(s, i, options);
        break;
      case SamplerKind::DpmSolver:
        update = dpmStep(s, i, options);
        break;
    }
    update.noiseIndex = static_cast<uint32_t>(plan.size());
    plan.push_back({static_cast<float>(s.timestepMap[i]), update});
  }
  return plan;
}

}  // namespace dit
