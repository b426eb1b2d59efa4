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

// [n, rows] of [rows, n].
template <typename T>
Vector<T> transposed(int64_t rows, int64_t n, const Vector<T>& x) {
  Vector<T> columns(x.size());
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t i = 0; i < n; i++) columns[i * rows + row] = x[row * n + i];
  }
  return columns;
}

// x [rows, K] or, where x was gelu(preActivation), preActivation [rows, K] and x empty; w [N, K],
// dY [rows, N]. stored(value): what is left of x, and of dY W before the derivative of gelu.
template <typename T, typename Stored = Exactly, typename Products = InOrder>
LinearGradients<T> linearBackward(int64_t rows, int64_t n, int64_t k, const Vector<T>& x,
                                  const Vector<T>& w, const Vector<T>& dY,
                                  const Vector<T>& preActivation = {}, const Stored& stored = {},
                                  const Products& products = {}) {
  LinearGradients<T> d{x, Vector<T>(rows * k), Vector<T>(n * k), Vector<T>(n)};
  for (const T& pre : preActivation) d.x.push_back(stored(gelu(pre)));
  const Vector<T> weights = transposed(n, k, w), outputs = transposed(rows, n, dY),
                  inputs = transposed(rows, k, d.x);
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t i = 0; i < k; i++) {
      T& sum = d.dX[row * k + i];
      sum = products(&dY[row * n], &weights[i * n], n);
      if (!preActivation.empty()) sum = stored(sum) * geluDerivative(preActivation[row * k + i]);
    }
    for (int64_t j = 0; j < n; j++) d.dBias[j] += dY[row * n + j];
  }
  for (int64_t j = 0; j < n; j++) {
    for (int64_t i = 0; i < k; i++) {
      d.dWeight[j * k + i] = products(&outputs[j * rows], &inputs[i * rows], rows);
    }
  }
  return d;
}

}  // namespace dit::test::oracle
