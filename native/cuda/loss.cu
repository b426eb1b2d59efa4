// loss: the hybrid objective of every row and its gradient, one pass over the model's output.
//
// A block has a piece of kPiece elements of one row and leaves the sums of its squared errors and
// of its part of the bound; a second kernel adds the pieces of a row in order. Pieces depend on the
// row's size only. Squared error and divergence are taken in float, their sums in double. At t = 0,
// one row in a thousand, the likelihood is taken in double: the tails magnify what the log variance
// is rounded by.
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace dit::cuda {

namespace {

constexpr int kPiece = 4 * kThreads;
constexpr double kLn2 = 0.693147180559945309;

// ---------------------------------------------------------------- t > 0: a divergence

// exp(x), exp(x) - 1 and exp(x) - 1 - x, the last two without cancellation.
struct Exponential {
  float whole, less1, lessLine;
};

__device__ __forceinline__ Exponential exponential(float x) {
  const float e = expf(x), x2 = x * x;
  if (x2 >= 0.0625f || x2 != x2) return {e, e - 1.0f, (e - 1.0f) - x};
  // x^2 (1/2! + x/3! + ..) within 1/4: relative error 1.2e-8.
  const float low = x * (1.0f / 6) + 0.5f;
  const float high = x * (1.0f / 120) + 1.0f / 24;
  const float higher = x * (1.0f / 5040) + 1.0f / 720;
  const float series = ((higher * x2 + high) * x2 + low) * x2;
  return {e, series + x, series};
}

// A term of the bound in nats and its derivative by v.
template <typename Number>
struct Term {
  Number nats, slope;
};

// KL(N(mean of q, exp(min)) || N(mean of p, exp(log variance))). With D = log variance - min and
// w = meanFromEps^2 / exp(min) it is
//   1/2 (D + exp(-D) - 1 + w (noise - eps)^2 exp(-D)),
// which near D = 0 is small: there D and its exponential must not cancel.
__device__ __forceinline__ Term<float> divergence(float difference, float v, float range, float w) {
  const Exponential e = exponential((v + 1.0f) * 0.5f * -range);
  const float distance = difference * difference * w * e.whole;
  return {(e.lessLine + distance) * 0.5f, (e.less1 + distance) * (-0.25f * range)};
}

// ---------------------------------------------------------------- t = 0: a likelihood

// log(1 + exp(x)) and its derivative.
struct Softplus {
  double value, slope;
};

__device__ __forceinline__ Softplus softplus(double x) {
  const double e = exp(-fabs(x));
  return {(x > 0 ? x : 0) + log1p(e), (x > 0 ? 1 : e) / (1 + e)};
}

// An end of a bin, z deviations from the mean: 2 u, and how it moves when the log variance moves by
// 1, which moves z by -z / 2.
constexpr double kTwoRoot = 1.59576912160573071, kCubic = 0.044715;

__device__ __forceinline__ double endAt(double z) { return kTwoRoot * z * (1 + kCubic * z * z); }
__device__ __forceinline__ double endMoves(double z) {
  return -0.5 * kTwoRoot * z * (1 + 3 * kCubic * z * z);
}

// log P of the bin [x - 1/255, x + 1/255] under the discretised Gaussian (Ho et al. 2020, equation
// 13), where its mean lies `distance` below x, and its derivative by the log variance.
//
// The normal cdf is taken as (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), u = sqrt(2/pi) (z + 0.044715
// z^3). With a = 2 u at the bin's upper end and b at the lower one,
//   log P = log(1 - exp(-(a - b))) - log(1 + exp(-a)) - log(1 + exp(b)).
// The three terms have one sign, and a - b is a polynomial in the bin's half width: nothing
// cancels, where the difference of two cdfs leaves nothing beyond 4 deviations. The first and the
// last bin take the whole tail, as the end that is missing lies at infinity.
__device__ __forceinline__ Term<double> logLikelihood(double x, double distance,
                                                      double logVariance) {
  constexpr double kLogFloor = -27.6310211159285483;  // ln 1e-12
  const double inverse = exp(-logVariance / 2), middle = distance * inverse;
  const double half = inverse / 255, upper = middle + half, lower = middle - half;
  const bool isFirst = x<-0.999, isLast = x> 0.999;
  Term<double> sum = {0, 0};
  if (!isFirst) {
    const Softplus below = softplus(endAt(lower));
    sum.nats -= below.value;
    sum.slope -= below.slope * endMoves(lower);
  }
  if (!isLast) {
    const Softplus above = softplus(-endAt(upper));
    sum.nats -= above.value;
    sum.slope += above.slope * endMoves(upper);
  }
  if (!isFirst && !isLast) {
    const double m2 = 3 * middle * middle, width = 2 * kTwoRoot * half;
    const double between = width * (1 + kCubic * (m2 + half * half));
    const double moved = -0.5 * width * (1 + 3 * kCubic * (m2 + half * half));
    sum.nats += log(-expm1(-between));
    sum.slope += moved / expm1(between);
  }
  // P is at least 1e-12, as in the reference. NaN stays.
  if (sum.nats < kLogFloor) return {kLogFloor, 0};
  return sum;
}

// -log P of x0. The mean of p lies meanFromEps (noise - eps) above x0, which is the mean of q at
// t = 0.
__device__ __forceinline__ Term<double> decoderLikelihood(const LossStep& step, float eps,
                                                          float noise, float v, float x0) {
  const double range = static_cast<double>(step.logVarianceMax) - step.logVarianceMin;
  const double below = static_cast<double>(eps) - noise;
  const double f = (static_cast<double>(v) + 1) / 2;
  const Term<double> p =
      logLikelihood(x0, step.meanFromEps * below, step.logVarianceMin + f * range);
  return {-p.nats, -0.5 * range * p.slope};
}

// ---------------------------------------------------------------- kernels

struct Loss {
  const float *model, *noise, *x0;
  const LossStep* steps;
  float* dModel;
  double2* sums;  // [R, pieces]: squared errors, nats
  int64_t n, modelRow;
  int pieces;
  bool bound;
  double factor;  // scale / n
};

__global__ void __launch_bounds__(kThreads) lossKernel(Loss at) {
  awaitPrevious();
  double* shared = reinterpret_cast<double*>(sharedMemory());
  const int64_t row = blockIdx.x / at.pieces;
  const LossStep step = at.steps[row];
  const float range = step.logVarianceMax - step.logVarianceMin;
  const float w = static_cast<float>(static_cast<double>(step.meanFromEps) * step.meanFromEps *
                                     exp(-static_cast<double>(step.logVarianceMin)));
  const float *model = at.model + row * at.modelRow, *noise = at.noise + row * at.n;
  const float* x0 = at.x0 + row * at.n;
  float* dModel = at.dModel + row * at.modelRow;
  const float factor = static_cast<float>(at.factor);
  double squares = 0, nats = 0;
  for (int k = 0; k < kPiece / kThreads; k++) {
    const int64_t i = int64_t{blockIdx.x % at.pieces} * kPiece + k * kThreads + threadIdx.x;
    if (i >= at.n) break;
    const float eps = model[i], difference = noise[i] - eps;
    squares += difference * difference;
    dModel[i] = difference * (-2 * factor);
    if (at.modelRow == at.n) continue;
    const float v = model[at.n + i];
    float dV = 0;
    if (at.bound && step.decoder) {
      const Term<double> term = decoderLikelihood(step, eps, noise[i], v, x0[i]);
      nats += term.nats;
      dV = static_cast<float>(at.factor / kLn2 * term.slope);
    } else if (at.bound) {
      const Term<float> term = divergence(difference, v, range, w);
      nats += term.nats;
      dV = static_cast<float>(at.factor / kLn2) * term.slope;
    }
    dModel[at.n + i] = dV;
  }
  squares = blockSum(squares, shared);
  nats = blockSum(nats, shared);
  if (threadIdx.x == 0) at.sums[blockIdx.x] = {squares, nats};
}

__global__ void __launch_bounds__(kThreads)
    termsKernel(int64_t rows, int64_t n, int pieces, const double2* sums, float* terms) {
  awaitPrevious();
  forEach(rows, [&](int64_t row) {
    double squares = 0, nats = 0;
    for (int piece = 0; piece < pieces; piece++) {
      squares += sums[row * pieces + piece].x;
      nats += sums[row * pieces + piece].y;
    }
    terms[2 * row] = static_cast<float>(squares / static_cast<double>(n));
    terms[2 * row + 1] = static_cast<float>(nats / (static_cast<double>(n) * kLn2));
  });
}

}  // namespace

void loss(Context& context, const LossArgs& args) {
  const int64_t rows = args.noise.shape[0], n = args.noise.count() / rows;
  const int64_t pieces = divideUp(n, kPiece);
  const Loss at{
      args.model.as<float>(),
      args.noise.as<float>(),
      args.x0.as<float>(),
      args.steps.as<LossStep>(),
      args.dModel.as<float>(),
      static_cast<double2*>(context.scratch(static_cast<size_t>(rows * pieces) * sizeof(double2))),
      n,
      args.model.count() / rows,
      static_cast<int>(pieces),
      args.bound,
      args.scale / static_cast<double>(n)};
  launch(context, lossKernel, static_cast<unsigned>(rows * pieces), kThreads,
         kThreads / 32 * sizeof(double), at);
  launch(context, termsKernel, gridFor(context, rows, kThreads), kThreads, 0, rows, n, at.pieces,
         at.sums, args.terms.as<float>());
}

}  // namespace dit::cuda
