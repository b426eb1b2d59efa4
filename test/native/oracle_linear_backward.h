#pragma once

#include "oracle_training.h"

// The oracle of linearBackward. Sums over the rows run from the first to the last.

namespace dit::test::oracle {

// What a run in float64 makes of an intermediate result that is stored: nothing.
struct Exactly {
  template <typename T>
  T operator()(T x) const {
    return x;
  }
};

template <typename T>
struct LinearGradients {
  Vector<T> x;  // given, or gelu(preActivation)
  Vector<T> dX, dWeight, dBias;
};

// x [rows, K] or, where x was gelu(preActivation), preActivation [rows, K] and x empty; w [N, K],
// dY [rows, N]. stored(value): what is left of x, and of dY W before the derivative of gelu.
template <typename T, typename Stored = Exactly>
LinearGradients<T> linearBackward(int64_t rows, int64_t n, int64_t k, const Vector<T>& x,
                                  const Vector<T>& w, const Vector<T>& dY,
                                  const Vector<T>& preActivation = {}, Stored&& stored = {}) {
  LinearGradients<T> d{x, Vector<T>(rows * k), Vector<T>(n * k), Vector<T>(n)};
  for (const T& pre : preActivation) d.x.push_back(stored(gelu(pre)));
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t i = 0; i < k; i++) {
      T& sum = d.dX[row * k + i];
      for (int64_t j = 0; j < n; j++) sum += dY[row * n + j] * w[j * k + i];
      if (!preActivation.empty()) sum = stored(sum) * geluDerivative(preActivation[row * k + i]);
    }
    for (int64_t j = 0; j < n; j++) {
      d.dBias[j] += dY[row * n + j];
      for (int64_t i = 0; i < k; i++) d.dWeight[j * k + i] += dY[row * n + j] * d.x[row * k + i];
    }
  }
  return d;
}

}  // namespace dit::test::oracle
