#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

#include "ops/ops.h"

// The oracle: each operation of ops.h again, as naively as its formula is written there, on any
// number type. In double it is the truth that results are compared with; in float it is the naive
// run that sets the tolerance; in complex<double> it gives derivatives (complex step). Nothing
// here is fast, and sums run from the first index to the last.

namespace dit::test::oracle {

template <typename T>
using Vector = std::vector<T>;

inline float realPart(float x) { return x; }
inline double realPart(double x) { return x; }
inline double realPart(std::complex<double> x) { return x.real(); }

template <typename T>
T number(double x) {
  return static_cast<T>(x);
}

template <typename T>
T clamped(T x, double low, double high) {
  if (realPart(x) < low) return number<T>(low);
  if (realPart(x) > high) return number<T>(high);
  return x;
}

template <typename T>
T silu(T x) {
  return x / (number<T>(1) + std::exp(-x));
}

template <typename T>
T gelu(T x) {
  const T inner = number<T>(std::sqrt(2 / M_PI)) * (x + number<T>(0.044715) * x * x * x);
  return x * number<T>(0.5) * (number<T>(1) + std::tanh(inner));
}

// Rows of a table, [R, N].
template <typename T>
Vector<T> pick(const Vector<T>& table, int64_t n, const std::vector<int32_t>& index) {
  Vector<T> rows;
  for (int32_t i : index) rows.insert(rows.end(), &table[i * n], &table[i * n] + n);
  return rows;
}

// The sum over k of a[k] b[k], one after the other.
struct InOrder {
  template <typename T>
  T operator()(const T* a, const T* b, int64_t k) const {
    T sum{};
    for (int64_t i = 0; i < k; i++) sum += a[i] * b[i];
    return sum;
  }
};

// x [R, M, K], w [N, K], bias [N]; gate [R, N] or empty, residual [R, M, N] or empty.
template <typename T, typename Products = InOrder>
Vector<T> linear(int64_t r, int64_t m, int64_t n, int64_t k, const Vector<T>& x, const Vector<T>& w,
                 const Vector<T>& bias, Epilogue epilogue, const Vector<T>& gate = {},
                 const Vector<T>& residual = {}, const Products& products = {}) {
  Vector<T> y(r * m * n);
  for (int64_t row = 0; row < r * m; row++) {
    for (int64_t j = 0; j < n; j++) {
      T sum = products(&x[row * k], &w[j * k], k) + bias[j];
      if (epilogue == Epilogue::BiasGelu) sum = gelu(sum);
      if (epilogue == Epilogue::BiasResidual) {
        if (!gate.empty()) sum *= gate[row / m * n + j];
        sum += residual[row * n + j];
      }
      y[row * n + j] = sum;
    }
  }
  return y;
}

// x [R, T, C], shift and scale [R, C].
template <typename T>
Vector<T> layerNormModulate(int64_t rows, int64_t tokens, int64_t c, const Vector<T>& x,
                            const Vector<T>& shift, const Vector<T>& scale, double eps = 1e-6) {
  Vector<T> y(x.size());
  for (int64_t token = 0; token < rows * tokens; token++) {
    const T* in = &x[token * c];
    T mean{}, variance{};
    for (int64_t i = 0; i < c; i++) mean += in[i];
    mean /= number<T>(c);
    for (int64_t i = 0; i < c; i++) variance += (in[i] - mean) * (in[i] - mean);
    variance /= number<T>(c);
    const T norm = number<T>(1) / std::sqrt(variance + number<T>(eps));
    for (int64_t i = 0; i < c; i++) {
      const int64_t j = token / tokens * c + i;
      y[token * c + i] = (in[i] - mean) * norm * (number<T>(1) + scale[j]) + shift[j];
    }
  }
  return y;
}

// qkv [R, T, 3C] -> [R, T, C].
template <typename T>
Vector<T> attention(int64_t rows, int64_t tokens, int64_t c, int64_t heads, const Vector<T>& qkv) {
  const int64_t d = c / heads;
  const T scale = number<T>(1) / std::sqrt(number<T>(d));
  Vector<T> y(rows * tokens * c), p(tokens);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t h = 0; h < heads; h++) {
      const T* q = &qkv[r * tokens * 3 * c + h * d];
      const T *k = q + c, *v = k + c;
      for (int64_t i = 0; i < tokens; i++) {
        double largest = -INFINITY;
        for (int64_t j = 0; j < tokens; j++) {
          T dot{};
          for (int64_t a = 0; a < d; a++) dot += q[i * 3 * c + a] * k[j * 3 * c + a];
          p[j] = dot * scale;
          largest = std::max<double>(largest, realPart(p[j]));
        }
        T sum{};
        for (T& value : p) {
          value = std::exp(value - number<T>(largest));
          sum += value;
        }
        for (int64_t a = 0; a < d; a++) {
          T dot{};
          for (int64_t j = 0; j < tokens; j++) dot += p[j] / sum * v[j * 3 * c + a];
          y[(r * tokens + i) * c + h * d + a] = dot;
        }
      }
    }
  }
  return y;
}

// t [E] -> [E, 256].
template <typename T>
Vector<T> timestepEmbedding(const Vector<T>& t) {
  constexpr int64_t kHalf = 128;
  Vector<T> y(t.size() * 2 * kHalf);
  for (size_t e = 0; e < t.size(); e++) {
    for (int64_t i = 0; i < kHalf; i++) {
      const T f = std::exp(number<T>(-std::log(10000.0)) * number<T>(i) / number<T>(kHalf));
      y[e * 2 * kHalf + i] = std::cos(t[e] * f);
      y[e * 2 * kHalf + kHalf + i] = std::sin(t[e] * f);
    }
  }
  return y;
}

// t [E, C], table [rows, C], vectors [E, C].
template <typename T>
Vector<T> conditionEmbedding(int64_t c, const Vector<T>& t, const Vector<T>& table,
                             const std::vector<int32_t>& label, const Vector<T>& vectors) {
  Vector<T> y(t.size());
  for (size_t e = 0; e < label.size(); e++) {
    for (int64_t i = 0; i < c; i++) {
      y[e * c + i] = t[e * c + i] + (label[e] < 0 ? vectors[e * c + i] : table[label[e] * c + i]);
    }
  }
  return y;
}

// x [L, C, H, W] -> [R, T, C p p].
template <typename T>
Vector<T> patchify(int64_t c, int64_t h, int64_t w, int64_t p, const Vector<T>& x,
                   const std::vector<int32_t>& lane) {
  Vector<T> y;
  for (int32_t l : lane) {
    for (int64_t i = 0; i < h / p; i++) {
      for (int64_t j = 0; j < w / p; j++) {
        for (int64_t channel = 0; channel < c; channel++) {
          for (int64_t a = 0; a < p; a++) {
            for (int64_t b = 0; b < p; b++) {
              y.push_back(x[((l * c + channel) * h + i * p + a) * w + j * p + b]);
            }
          }
        }
      }
    }
  }
  return y;
}

// x [R, T, p p C] -> [R, C, H, W].
template <typename T>
Vector<T> unpatchify(int64_t rows, int64_t c, int64_t h, int64_t w, int64_t p, const Vector<T>& x) {
  Vector<T> y;
  const int64_t tokens = (h / p) * (w / p);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t channel = 0; channel < c; channel++) {
      for (int64_t i = 0; i < h; i++) {
        for (int64_t j = 0; j < w; j++) {
          const int64_t token = r * tokens + i / p * (w / p) + j / p;
          y.push_back(x[(token * p * p + i % p * p + j % p) * c + channel]);
        }
      }
    }
  }
  return y;
}

// model [R, Co, H W] -> [L, Co, H W].
template <typename T>
Vector<T> guide(int64_t co, int64_t hw, const Vector<T>& model, const std::vector<int32_t>& cond,
                const std::vector<int32_t>& uncond, const Vector<T>& scale, int64_t channels) {
  Vector<T> y;
  for (size_t l = 0; l < cond.size(); l++) {
    for (int64_t i = 0; i < co * hw; i++) {
      const T m = model[cond[l] * co * hw + i];
      if (uncond[l] < 0 || i / hw >= channels) {
        y.push_back(m);
      } else {
        const T u = model[uncond[l] * co * hw + i];
        y.push_back(u + scale[l] * (m - u));
      }
    }
  }
  return y;
}

// One step, in place: model [R, Co, H W], x [L, C, H W], history [L, kSolverHistory, C, H W],
// z [C, H W] standard normal.
template <typename T>
void solverUpdate(const SolverStep& s, int64_t co, int64_t c, int64_t hw, const Vector<T>& model,
                  const Vector<T>& z, Vector<T>& x, Vector<T>& history) {
  const std::vector<int32_t> cond{s.condRow}, uncond{s.uncondRow};
  const Vector<T> m =
      guide<T>(co, hw, model, cond, uncond, {number<T>(s.guidance)}, s.guidanceChannels);
  const int64_t n = c * hw;
  for (int64_t i = 0; i < n; i++) {
    auto past = [&](int slot) -> T& { return history[(s.lane * kSolverHistory + slot) * n + i]; };
    T& xi = x[s.lane * n + i];
    const T x0 =
        clamped(number<T>(s.x0FromX) * xi + number<T>(s.x0FromModel) * m[i], -s.clip, s.clip);
    const T eps =
        number<T>(s.epsFromX) * xi + number<T>(s.epsFromX0) * x0 + number<T>(s.epsFromModel) * m[i];
    T next = number<T>(s.xFromX) * xi + number<T>(s.xFromX0) * x0 + number<T>(s.xFromEps) * eps;
    for (int slot = 0; slot < kSolverHistory; slot++) {
      if (s.xFromHistory[slot] != 0) next += number<T>(s.xFromHistory[slot]) * past(slot);
    }
    if (s.noise != 0) {
      T sigma = number<T>(s.noise);
      if (s.learnedVariance) {
        const T f = (m[n + i] + number<T>(1)) / number<T>(2);
        sigma *= std::exp(
            (f * number<T>(s.logVarianceMax) + (number<T>(1) - f) * number<T>(s.logVarianceMin)) /
            number<T>(2));
      }
      next += sigma * z[i];
    }
    past(s.historySlot) = x0;
    xi = next;
  }
}

struct ConvShape {
  int64_t n, h, w, ci, co, kh, kw;
  int64_t stride = 1, padTop = 0, padLeft = 0, padBottom = 0, padRight = 0;
  bool upsample = false;

  int64_t inHeight() const { return upsample ? 2 * h : h; }
  int64_t inWidth() const { return upsample ? 2 * w : w; }
  int64_t outHeight() const { return (inHeight() + padTop + padBottom - kh) / stride + 1; }
  int64_t outWidth() const { return (inWidth() + padLeft + padRight - kw) / stride + 1; }
};

// x [N, H, W, Ci], w [Co, Ci, kh, kw], bias [Co], residual [N, Ho, Wo, Co] or empty.
template <typename T>
Vector<T> conv2d(const ConvShape& s, const Vector<T>& x, const Vector<T>& w, const Vector<T>& bias,
                 const Vector<T>& residual = {}) {
  Vector<T> y;
  const int64_t zoom = s.upsample ? 2 : 1;
  for (int64_t n = 0; n < s.n; n++) {
    for (int64_t i = 0; i < s.outHeight(); i++) {
      for (int64_t j = 0; j < s.outWidth(); j++) {
        for (int64_t co = 0; co < s.co; co++) {
          T sum{};
          for (int64_t a = 0; a < s.kh; a++) {
            for (int64_t b = 0; b < s.kw; b++) {
              const int64_t row = i * s.stride + a - s.padTop,
                            column = j * s.stride + b - s.padLeft;
              if (row < 0 || row >= s.inHeight() || column < 0 || column >= s.inWidth()) continue;
              const T* in = &x[((n * s.h + row / zoom) * s.w + column / zoom) * s.ci];
              for (int64_t ci = 0; ci < s.ci; ci++) {
                sum += in[ci] * w[((co * s.ci + ci) * s.kh + a) * s.kw + b];
              }
            }
          }
          sum += bias[co];
          if (!residual.empty()) sum += residual[y.size()];
          y.push_back(sum);
        }
      }
    }
  }
  return y;
}

// x [N, H W, C], gamma and beta [C].
template <typename T>
Vector<T> groupNorm(int64_t n, int64_t hw, int64_t c, int64_t groups, const Vector<T>& x,
                    const Vector<T>& gamma, const Vector<T>& beta, bool withSilu,
                    double eps = 1e-6) {
  Vector<T> y(x.size());
  const int64_t width = c / groups;
  for (int64_t image = 0; image < n; image++) {
    for (int64_t g = 0; g < groups; g++) {
      auto each = [&](auto&& use) {
        for (int64_t i = 0; i < hw; i++) {
          for (int64_t j = g * width; j < (g + 1) * width; j++) use((image * hw + i) * c + j, j);
        }
      };
      T mean{}, variance{};
      each([&](int64_t i, int64_t) { mean += x[i]; });
      mean /= number<T>(hw * width);
      each([&](int64_t i, int64_t) { variance += (x[i] - mean) * (x[i] - mean); });
      variance /= number<T>(hw * width);
      const T norm = number<T>(1) / std::sqrt(variance + number<T>(eps));
      each([&](int64_t i, int64_t j) {
        const T value = (x[i] - mean) * norm * gamma[j] + beta[j];
        y[i] = withSilu ? silu(value) : value;
      });
    }
  }
  return y;
}

// x [N, C, H W] -> [N, H W, C], times scale plus shift.
template <typename T>
Vector<T> toChannelsLast(int64_t n, int64_t c, int64_t hw, const Vector<T>& x, double scale,
                         double shift) {
  Vector<T> y;
  for (int64_t image = 0; image < n; image++) {
    for (int64_t i = 0; i < hw; i++) {
      for (int64_t j = 0; j < c; j++) {
        y.push_back(x[(image * c + j) * hw + i] * number<T>(scale) + number<T>(shift));
      }
    }
  }
  return y;
}

// x [N, H W, C] -> [N, C, H W].
template <typename T>
Vector<T> toChannelsFirst(int64_t n, int64_t c, int64_t hw, const Vector<T>& x) {
  return toChannelsLast<T>(n, hw, c, x, 1, 0);
}

// moments [N, H W, 2C], noise [N, C, H W] or empty -> [N, C, H W].
template <typename T>
Vector<T> sampleMoments(int64_t n, int64_t c, int64_t hw, const Vector<T>& moments,
                        const Vector<T>& noise, double scale, double shift) {
  Vector<T> y;
  for (int64_t image = 0; image < n; image++) {
    for (int64_t j = 0; j < c; j++) {
      for (int64_t i = 0; i < hw; i++) {
        const T* pixel = &moments[(image * hw + i) * 2 * c];
        T value = pixel[j];
        if (!noise.empty()) {
          const T logvar = clamped(pixel[c + j], -30, 20);
          value += std::exp(logvar / number<T>(2)) * noise[y.size()];
        }
        y.push_back((value - number<T>(shift)) * number<T>(scale));
      }
    }
  }
  return y;
}

template <typename T>
Vector<T> toRgb8(const Vector<T>& x) {
  Vector<T> y;
  for (T value : x) {
    const T scaled = clamped(number<T>(127.5) * value + number<T>(128), 0, 255);
    y.push_back(number<T>(std::trunc(realPart(scaled))));
  }
  return y;
}

}  // namespace dit::test::oracle
