#pragma once

#include <functional>

#include "oracle.h"

// The oracle of attentionBackward, and of what attention keeps for it.

namespace dit::test::oracle {

// qkv [R, T, 3C] -> [R, heads, T]: log of the sum of exp(q k / sqrt(d)) over k.
template <typename T>
Vector<T> attentionLogSumExp(int64_t rows, int64_t tokens, int64_t c, int64_t heads,
                             const Vector<T>& qkv) {
  const int64_t d = c / heads;
  const T scale = number<T>(1) / std::sqrt(number<T>(d));
  Vector<T> y, s(tokens);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t h = 0; h < heads; h++) {
      const T *q = &qkv[r * tokens * 3 * c + h * d], *k = q + c;
      for (int64_t i = 0; i < tokens; i++) {
        double largest = -INFINITY;
        for (int64_t j = 0; j < tokens; j++) {
          T dot{};
          for (int64_t a = 0; a < d; a++) dot += q[i * 3 * c + a] * k[j * 3 * c + a];
          s[j] = dot * scale;
          largest = std::max<double>(largest, realPart(s[j]));
        }
        T sum{};
        for (T value : s) sum += std::exp(value - number<T>(largest));
        y.push_back(number<T>(largest) + std::log(sum));
      }
    }
  }
  return y;
}

// qkv [R, T, 3C], y and dY [R, T, C], logSumExp [R, heads, T] -> dQkv [R, T, 3C]. asFactor rounds P
// and dS where they are factors of a product.
template <typename T, typename Round = std::identity>
Vector<T> attentionBackward(int64_t rows, int64_t tokens, int64_t c, int64_t heads,
                            const Vector<T>& qkv, const Vector<T>& y, const Vector<T>& logSumExp,
                            const Vector<T>& dY, const Round& asFactor = {}) {
  const int64_t d = c / heads;
  const T scale = number<T>(1) / std::sqrt(number<T>(d));
  Vector<T> dQkv(qkv.size());
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t h = 0; h < heads; h++) {
      const int64_t at = r * tokens * c + h * d, atQkv = r * tokens * 3 * c + h * d;
      for (int64_t i = 0; i < tokens; i++) {
        const T *q = &qkv[atQkv + i * 3 * c], *dYi = &dY[at + i * c], *yi = &y[at + i * c];
        T* dQ = &dQkv[atQkv + i * 3 * c];
        T delta{};
        for (int64_t a = 0; a < d; a++) delta += dYi[a] * yi[a];
        for (int64_t j = 0; j < tokens; j++) {
          const T *k = &qkv[atQkv + j * 3 * c + c], *v = k + c;
          T *dK = &dQkv[atQkv + j * 3 * c + c], *dV = dK + c;
          T s{}, dP{};
          for (int64_t a = 0; a < d; a++) s += q[a] * k[a];
          for (int64_t a = 0; a < d; a++) dP += dYi[a] * v[a];
          const T p = std::exp(s * scale - logSumExp[(r * heads + h) * tokens + i]);
          const T dS = asFactor(p * (dP - delta) * scale), weight = asFactor(p);
          for (int64_t a = 0; a < d; a++) {
            dQ[a] += dS * k[a];
            dK[a] += dS * q[a];
            dV[a] += weight * dYi[a];
          }
        }
      }
    }
  }
  return dQkv;
}

}  // namespace dit::test::oracle
