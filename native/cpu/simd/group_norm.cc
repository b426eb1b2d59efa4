// groupNorm: y = (x - mean) / sqrt(variance + eps) * gamma + beta, then SiLU, x [N, H, W, C].
//
// Two passes over x. The first takes mean and sum of squared differences of every channel, by
// chunks that fit the first-level cache, and merges chunks in order (Chan, Golub & LeVeque 1983)
// within one of up to 64 parts of the image. The parts depend on the image's size only, so the
// result does not depend on the threads that share them.
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/simd/simd_math.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

constexpr int64_t kChunkFloats = 6144;  // 24 KiB
constexpr int64_t kParts = 64;

// Pixels of an image by chunks, chunks by parts.
struct Split {
  int64_t pixels, chunk, part, parts;

  Split(int64_t pixels, int64_t c) : pixels(pixels) {
    chunk = std::max<int64_t>(1, kChunkFloats / c);
    const int64_t chunks = (pixels + chunk - 1) / chunk;
    part = (chunks + kParts - 1) / kParts * chunk;
    parts = (pixels + part - 1) / part;
  }
};

// mean[C] and squares[C] of the pixels [begin, end), kWide registers of channels at a time so that
// several additions are in flight.
template <int kWide, typename T, typename Lanes>
DIT_INLINE void channelStatistics(const Split& split, int64_t begin, int64_t end, int64_t c,
                                  const T* x, Lanes lanes, float* mean, float* squares) {
  Vec partMean[kWide] = {}, partSquares[kWide] = {};
  for (int64_t first = begin; first < end; first += split.chunk) {
    const int64_t n = std::min(split.chunk, end - first);
    const float inverse = 1.0f / static_cast<float>(n);
    const T* chunk = x + first * c;
    Vec sum[kWide] = {}, chunkSquares[kWide] = {};
    for (int64_t i = 0; i < n; i++) {
      for (int w = 0; w < kWide; w++) sum[w] += load(chunk + i * c + w * kLanes, lanes);
    }
    for (int w = 0; w < kWide; w++) sum[w] *= inverse;
    for (int64_t i = 0; i < n; i++) {
      for (int w = 0; w < kWide; w++) {
        const Vec centred = load(chunk + i * c + w * kLanes, lanes) - sum[w];
        chunkSquares[w] += centred * centred;
      }
    }
    const float before = static_cast<float>(first - begin);
    const float share = static_cast<float>(n) / (before + static_cast<float>(n));
    for (int w = 0; w < kWide; w++) {
      const Vec delta = sum[w] - partMean[w];
      partMean[w] += delta * share;
      partSquares[w] += chunkSquares[w] + delta * delta * (before * share);
    }
  }
  for (int w = 0; w < kWide; w++) {
    store(mean + w * kLanes, partMean[w], lanes);
    store(squares + w * kLanes, partSquares[w], lanes);
  }
}

template <typename T>
void partStatistics(const Split& split, int64_t part, int64_t c, const T* x, float* mean,
                    float* squares) {
  constexpr int kWide = 8;
  const int64_t begin = part * split.part;
  const int64_t end = std::min(begin + split.part, split.pixels);
  int64_t j = 0;
  for (; j + kWide * kLanes <= c; j += kWide * kLanes) {
    channelStatistics<kWide>(split, begin, end, c, x + j, Full{}, mean + j, squares + j);
  }
  forLanes(c - j, [&](int64_t i, auto lanes) {
    channelStatistics<1>(split, begin, end, c, x + j + i, lanes, mean + j + i, squares + j + i);
  });
}

// The statistics of a group from those of its channels in all parts, in double; leaves the mean
// and gamma / sqrt(variance + eps) of its channels.
void mergeGroup(const GroupNormArgs& args, const Split& split, int64_t group, int64_t c,
                const float* mean, const float* squares, float* centre, float* factor) {
  const int64_t width = c / args.groups, first = group * width;
  auto pixelsOf = [&](int64_t part) {
    return static_cast<double>(std::min(split.part, split.pixels - part * split.part));
  };
  const double n = static_cast<double>(split.pixels * width);
  double total = 0, deviation = 0;
  for (int64_t part = 0; part < split.parts; part++) {
    double sum = 0;
    for (int64_t j = first; j < first + width; j++) sum += mean[part * c + j];
    total += sum * pixelsOf(part);
  }
  const double groupMean = total / n;
  for (int64_t part = 0; part < split.parts; part++) {
    double within = 0, between = 0;
    for (int64_t j = first; j < first + width; j++) {
      const double delta = mean[part * c + j] - groupMean;
      within += squares[part * c + j];
      between += delta * delta;
    }
    deviation += within + between * pixelsOf(part);
  }
  const double norm = 1 / std::sqrt(deviation / n + static_cast<double>(args.eps));
  for (int64_t j = first; j < first + width; j++) {
    centre[j] = static_cast<float>(groupMean);
    factor[j] = static_cast<float>(norm * args.gamma.as<float>()[j]);
  }
}

template <bool kSilu, typename T>
void normalise(int64_t pixels, int64_t c, const T* x, const float* centre, const float* factor,
               const float* beta, T* y) {
  for (int64_t i = 0; i < pixels; i++) {
    forLanes(c, [&](int64_t j, auto lanes) {
      const Vec value =
          (load(x + i * c + j, lanes) - load(centre + j, lanes)) * load(factor + j, lanes) +
          load(beta + j, lanes);
      store(y + i * c + j, kSilu ? silu<kIsBf16<T>>(value) : value, lanes);
    });
  }
}

template <typename T>
void run(const GroupNormArgs& args) {
  const int64_t n = args.x.shape[0], pixels = args.x.shape[1] * args.x.shape[2];
  const int64_t c = args.x.shape[3];
  const Split split(pixels, c);
  const T* x = args.x.as<T>();
  T* y = args.y.as<T>();
  float* mean = static_cast<float*>(
      scratch(static_cast<size_t>(2 * n * (split.parts + 1) * c) * sizeof(float)));
  float* squares = mean + n * split.parts * c;
  float* centre = squares + n * split.parts * c;
  float* factor = centre + n * c;

  parallelFor(n * split.parts, [&](int64_t i) {
    partStatistics(split, i % split.parts, c, x + i / split.parts * pixels * c, mean + i * c,
                   squares + i * c);
  });
  parallelFor(n * args.groups, [&](int64_t i) {
    const int64_t image = i / args.groups, from = image * split.parts * c;
    mergeGroup(args, split, i % args.groups, c, mean + from, squares + from, centre + image * c,
               factor + image * c);
  });
  parallelFor(n * split.parts, [&](int64_t i) {
    const int64_t image = i / split.parts, begin = i % split.parts * split.part;
    const int64_t count = std::min(split.part, pixels - begin), at = (image * pixels + begin) * c;
    const float* beta = args.beta.as<float>();
    if (args.silu) {
      normalise<true>(count, c, x + at, centre + image * c, factor + image * c, beta, y + at);
    } else {
      normalise<false>(count, c, x + at, centre + image * c, factor + image * c, beta, y + at);
    }
  });
}

}  // namespace

void groupNorm(const GroupNormArgs& args) {
  withElements(args.x.dtype, [&]<typename T>(T*) { run<T>(args); });
}

}  // namespace dit::cpu::DIT_ISA
