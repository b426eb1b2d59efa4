// loss: the hybrid objective of one row in pieces of fixed size, whose sums are added in order.
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/simd/simd_math.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

constexpr int64_t kPiece = 1024;  // elements of a piece of work
constexpr double kLn2 = 0.693147180559945309;

// What one piece reads and writes, n numbers each; v, x0 and dV where there is a bound.
struct Piece {
  int64_t n;
  const float *eps, *v, *noise, *x0;
  float *dEps, *dV;
};

// The sum of (noise - eps)^2; dEps = -2 factor (noise - eps).
float squaredError(const Piece& at, float factor) {
  Vec sum = {};
  forLanes(at.n, [&](int64_t i, auto lanes) {
    const Vec d = load(at.noise + i, lanes) - load(at.eps + i, lanes);
    sum += d * d;
    store(at.dEps + i, d * (-2 * factor), lanes);
  });
  return sumLanes(sum);
}

// exp(x), exp(x) - 1 and exp(x) - 1 - x, the last two without cancellation.
struct Exponential {
  Vec whole, less1, lessLine;
};

DIT_INLINE Exponential exponential(Vec x) {
  // x^2 (1/2! + x/3! + ..) within 1/4: relative error 1.2e-8.
  const Vec x2 = x * x;
  const Vec low = x * (1.0f / 6) + splat(0.5f);
  const Vec high = x * (1.0f / 120) + splat(1.0f / 24);
  const Vec higher = x * (1.0f / 5040) + splat(1.0f / 720);
  const Vec series = ((higher * x2 + high) * x2 + low) * x2;
  const Vec e = exp(x);
  const Ints small = x2 < splat(0.0625f);
  return {e, small ? series + x : e - 1.0f, small ? series : (e - 1.0f) - x};
}

// KL(N(mean of q, exp(min)) || N(mean of p, exp(log variance))), the sum in nats. With D = log
// variance - min and w = meanFromEps^2 / exp(min) it is, element by element,
//   1/2 (D + exp(-D) - 1 + w (noise - eps)^2 exp(-D)),
// which near D = 0 is small: there D and its exponential must not cancel. dV = factor d KL / d v.
float divergence(const LossStep& step, const Piece& at, float factor) {
  const float range = step.logVarianceMax - step.logVarianceMin;
  const float w = static_cast<float>(static_cast<double>(step.meanFromEps) * step.meanFromEps *
                                     ::exp(-static_cast<double>(step.logVarianceMin)));
  Vec sum = {};
  forLanes(at.n, [&](int64_t i, auto lanes) {
    const Vec d = load(at.noise + i, lanes) - load(at.eps + i, lanes);
    const Vec f = (load(at.v + i, lanes) + 1.0f) * 0.5f;
    const Exponential e = exponential(f * -range);
    const Vec distance = d * d * w * e.whole;
    sum += keep((e.lessLine + distance) * 0.5f, lanes);
    store(at.dV + i, (e.less1 + distance) * (-0.25f * range * factor), lanes);
  });
  return sumLanes(sum);
}

// log(1 + exp(x)) and its derivative.
struct Softplus {
  double value, slope;
};

Softplus softplus(double x) {
  const double e = ::exp(-::fabs(x));
  return {(x > 0 ? x : 0) + ::log1p(e), (x > 0 ? 1 : e) / (1 + e)};
}

// log P of the bin [x - 1/255, x + 1/255] under the discretised Gaussian (Ho et al. 2020, equation
// 13), where its mean lies `distance` below x, and its derivative with respect to the log
// variance.
struct LogLikelihood {
  double nats, slope;
};

// The normal cdf is taken as (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), u = sqrt(2/pi) (z + 0.044715
// z^3). With a = 2 u at the bin's upper end and b at the lower one,
//   log P = log(1 - exp(-(a - b))) - log(1 + exp(-a)) - log(1 + exp(b)).
// The three terms have one sign, and a - b is a polynomial in the bin's half width: nothing
// cancels, where the difference of two cdfs leaves nothing beyond 4 deviations. The first and the
// last bin take the whole tail, as the end that is missing lies at infinity.
LogLikelihood logLikelihood(double x, double distance, double logVariance) {
  constexpr double kTwoRoot = 1.59576912160573071, kCubic = 0.044715;
  constexpr double kLogFloor = -27.6310211159285483;  // ln 1e-12
  const double inverse = ::exp(-logVariance / 2), middle = distance * inverse;
  const double half = inverse / 255, upper = middle + half, lower = middle - half;
  // Each end moves by -z/2 when the log variance moves by 1.
  const auto at = [](double z) { return kTwoRoot * z * (1 + kCubic * z * z); };
  const auto move = [](double z) { return -0.5 * kTwoRoot * z * (1 + 3 * kCubic * z * z); };
  LogLikelihood sum = {0, 0};
  if (!(x < -0.999)) {
    const Softplus below = softplus(at(lower));
    sum.nats -= below.value;
    sum.slope -= below.slope * move(lower);
  }
  if (!(x > 0.999)) {
    const Softplus above = softplus(-at(upper));
    sum.nats -= above.value;
    sum.slope += above.slope * move(upper);
  }
  if (!(x < -0.999) && !(x > 0.999)) {
    const double m2 = 3 * middle * middle, width = 2 * kTwoRoot * half;
    const double between = width * (1 + kCubic * (m2 + half * half));
    const double moved = -0.5 * width * (1 + 3 * kCubic * (m2 + half * half));
    sum.nats += ::log(-::expm1(-between));
    sum.slope += moved / ::expm1(between);
  }
  // P is at least 1e-12, as in the reference. NaN stays.
  if (sum.nats < kLogFloor) return {kLogFloor, 0};
  return sum;
}

// -log P of x0, the sum in nats; dV = factor d(-log P) / d v. The mean of p lies meanFromEps (noise
// - eps) above x0, which is the mean of q at t = 0. Double, and a number at a time: one row in a
// thousand comes here, and the tails magnify what the log variance is rounded by.
double decoderLikelihood(const LossStep& step, const Piece& at, double factor) {
  const double range = static_cast<double>(step.logVarianceMax) - step.logVarianceMin;
  double sum = 0;
  for (int64_t i = 0; i < at.n; i++) {
    const double below = static_cast<double>(at.eps[i]) - at.noise[i];
    const double f = (static_cast<double>(at.v[i]) + 1) / 2;
    const LogLikelihood p =
        logLikelihood(at.x0[i], step.meanFromEps * below, step.logVarianceMin + f * range);
    sum -= p.nats;
    at.dV[i] = static_cast<float>(-0.5 * range * factor * p.slope);
  }
  return sum;
}

}  // namespace

void loss(const LossArgs& args) {
  const int64_t rows = args.noise.shape[0], n = args.noise.count() / rows;
  const int64_t modelRow = args.model.count() / rows;
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  const double factor = args.scale / static_cast<double>(n);
  double* sums = static_cast<double*>(
      scratch(static_cast<size_t>(2 * rows * pieces) * sizeof(double)));  // of the pieces
  parallelFor(rows * pieces, [&](int64_t work) {
    const int64_t row = work / pieces, begin = work % pieces * kPiece;
    const LossStep& step = args.steps.as<LossStep>()[row];
    const float* model = args.model.as<float>() + row * modelRow + begin;
    float* dModel = args.dModel.as<float>() + row * modelRow + begin;
    Piece at = {};
    at.n = n < begin + kPiece ? n - begin : kPiece;
    at.eps = model;
    at.noise = args.noise.as<float>() + row * n + begin;
    at.dEps = dModel;
    double* sum = sums + 2 * work;
    sum[0] = squaredError(at, static_cast<float>(factor));
    sum[1] = 0;
    if (modelRow == n) return;
    at.v = model + n;
    at.x0 = args.x0.as<float>() + row * n + begin;
    at.dV = dModel + n;
    if (!args.bound) {
      for (int64_t i = 0; i < at.n; i++) at.dV[i] = 0;
    } else if (step.decoder) {
      sum[1] = decoderLikelihood(step, at, factor / kLn2);
    } else {
      sum[1] = divergence(step, at, static_cast<float>(factor / kLn2));
    }
  });
  for (int64_t row = 0; row < rows; row++) {
    double squares = 0, nats = 0;
    for (int64_t piece = 0; piece < pieces; piece++) {
      squares += sums[2 * (row * pieces + piece)];
      nats += sums[2 * (row * pieces + piece) + 1];
    }
    float* terms = args.terms.as<float>() + 2 * row;
    terms[0] = static_cast<float>(squares / static_cast<double>(n));
    terms[1] = static_cast<float>(nats / (static_cast<double>(n) * kLn2));
  }
}

}  // namespace dit::cpu::DIT_ISA
