#pragma once

#include "oracle.h"

// The oracle of the operations of training: as oracle.h, their formulas as training.h has them.

namespace dit::test::oracle {

// The gradient of sum dY * f(x) with respect to x by complex step: Im f(x + ih) / h, without any
// difference and so without rounding of its own. f takes and gives Vector<std::complex<double>>.
template <typename F>
Vector<double> complexStep(const Vector<double>& x, const Vector<double>& dY, F&& f) {
  constexpr double kStep = 1e-100;
  Vector<std::complex<double>> moved(x.begin(), x.end());
  Vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); i++) {
    moved[i] = {x[i], kStep};
    const Vector<std::complex<double>> y = f(moved);
    for (size_t j = 0; j < y.size(); j++) gradient[i] += dY[j] * (y[j].imag() / kStep);
    moved[i] = x[i];
  }
  return gradient;
}

// gelu'(x) for gelu(x) = x / 2 (1 + tanh(u)): (1 + tanh(u)) / 2 + x / 2 (1 - tanh(u)^2) u'.
template <typename T>
T geluDerivative(T x) {
  const T root = number<T>(std::sqrt(2 / M_PI)), one = number<T>(1), half = number<T>(0.5);
  const T tanh = std::tanh(root * (x + number<T>(0.044715) * x * x * x));
  const T slope = root * (one + number<T>(3 * 0.044715) * x * x);
  return half * (one + tanh) + half * x * (one - tanh * tanh) * slope;
}

template <typename T>
T siluDerivative(T x) {
  const T s = number<T>(1) / (number<T>(1) + std::exp(-x));
  return s * (number<T>(1) + x * (number<T>(1) - s));
}

// kept [R, M, N]; gate [R, N] or empty, residual [R, M, N], [1, M, N] or empty: gelu.
template <typename T>
Vector<T> linearFinish(int64_t m, int64_t n, const Vector<T>& kept, const Vector<T>& gate,
                       const Vector<T>& residual) {
  Vector<T> y;
  for (size_t i = 0; i < kept.size(); i++) {
    if (residual.empty()) {
      y.push_back(gelu(kept[i]));
    } else {
      const size_t row = i / static_cast<size_t>(m * n), column = i % static_cast<size_t>(n);
      const T factor = gate.empty() ? number<T>(1) : gate[row * n + column];
      y.push_back(residual[i % residual.size()] + factor * kept[i]);
    }
  }
  return y;
}

template <typename T>
struct GateGradients {
  Vector<T> dBranch, dGate;
};

// dY and branch [R, M, N], gate [R, N].
template <typename T>
GateGradients<T> gateBackward(int64_t rows, int64_t m, int64_t n, const Vector<T>& dY,
                              const Vector<T>& branch, const Vector<T>& gate) {
  GateGradients<T> d{Vector<T>(dY.size()), Vector<T>(rows * n)};
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t i = 0; i < m; i++) {
      for (int64_t j = 0; j < n; j++) {
        const int64_t at = (row * m + i) * n + j;
        d.dBranch[at] = gate[row * n + j] * dY[at];
        d.dGate[row * n + j] += dY[at] * branch[at];
      }
    }
  }
  return d;
}

template <typename T>
struct NormGradients {
  Vector<T> dX, dShift, dScale;
};

// x and dY [R, T, C], scale [R, C], dResidual [R, T, C] or empty.
template <typename T>
NormGradients<T> layerNormModulateBackward(int64_t rows, int64_t tokens, int64_t c,
                                           const Vector<T>& x, const Vector<T>& scale,
                                           const Vector<T>& dY, const Vector<T>& dResidual,
                                           double eps = 1e-6) {
  NormGradients<T> d{Vector<T>(x.size()), Vector<T>(rows * c), Vector<T>(rows * c)};
  const T n = number<T>(c);
  for (int64_t token = 0; token < rows * tokens; token++) {
    const T *in = &x[token * c], *dOut = &dY[token * c];
    const int64_t row = token / tokens * c;
    T mean{}, variance{}, meanOfG{}, meanOfGx{};
    for (int64_t i = 0; i < c; i++) mean += in[i];
    mean /= n;
    for (int64_t i = 0; i < c; i++) variance += (in[i] - mean) * (in[i] - mean);
    variance /= n;
    const T norm = number<T>(1) / std::sqrt(variance + number<T>(eps));
    auto normal = [&](int64_t i) { return (in[i] - mean) * norm; };
    auto g = [&](int64_t i) { return dOut[i] * (number<T>(1) + scale[row + i]); };
    for (int64_t i = 0; i < c; i++) {
      d.dShift[row + i] += dOut[i];
      d.dScale[row + i] += dOut[i] * normal(i);
      meanOfG += g(i);
      meanOfGx += g(i) * normal(i);
    }
    meanOfG /= n;
    meanOfGx /= n;
    for (int64_t i = 0; i < c; i++) {
      const T residual = dResidual.empty() ? T{} : dResidual[token * c + i];
      d.dX[token * c + i] = residual + norm * (g(i) - meanOfG - normal(i) * meanOfGx);
    }
  }
  return d;
}

// dY [E, C]; dTable [rows, C] before, gives it after.
template <typename T>
Vector<T> conditionEmbeddingBackward(int64_t c, const Vector<T>& dY,
                                     const std::vector<int32_t>& label, Vector<T> dTable) {
  for (size_t e = 0; e < label.size(); e++) {
    for (int64_t i = 0; i < c; i++) dTable[label[e] * c + i] += dY[e * c + i];
  }
  return dTable;
}

// dY [R, C, H, W] -> [R, T, p p C].
template <typename T>
Vector<T> unpatchifyBackward(int64_t rows, int64_t c, int64_t h, int64_t w, int64_t p,
                             const Vector<T>& dY) {
  Vector<T> dX;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = 0; i < h / p; i++) {
      for (int64_t j = 0; j < w / p; j++) {
        for (int64_t a = 0; a < p; a++) {
          for (int64_t b = 0; b < p; b++) {
            for (int64_t channel = 0; channel < c; channel++) {
              dX.push_back(dY[((r * c + channel) * h + i * p + a) * w + j * p + b]);
            }
          }
        }
      }
    }
  }
  return dX;
}

template <typename T>
Vector<T> drawLatents(const Vector<T>& mean, const Vector<T>& deviation, const Vector<T>& z,
                      double scale, double shift) {
  Vector<T> y;
  for (size_t i = 0; i < mean.size(); i++) {
    y.push_back((mean[i] + deviation[i] * z[i] - number<T>(shift)) * number<T>(scale));
  }
  return y;
}

// x0 and z [R, n], signal and noise [R].
template <typename T>
Vector<T> qSample(int64_t n, const Vector<T>& x0, const Vector<T>& z, const Vector<T>& signal,
                  const Vector<T>& noise) {
  Vector<T> y;
  for (size_t i = 0; i < x0.size(); i++) {
    const size_t row = i / static_cast<size_t>(n);
    y.push_back(signal[row] * x0[i] + noise[row] * z[i]);
  }
  return y;
}

}  // namespace dit::test::oracle
