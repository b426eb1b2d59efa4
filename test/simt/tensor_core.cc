#include "tensor_core.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace dit::simt {

namespace {

constexpr int kMostColumns = 256;

// The power of two at or below |x|; 0 for 0, infinity for what is not finite.
double leading(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits &= 0x7ff0000000000000;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

float towardsZero(double x) {
  const auto nearest = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &nearest, sizeof(bits));
  bits -= std::abs(static_cast<double>(nearest)) > std::abs(x) ? 1 : 0;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

}  // namespace

void addProducts(const TensorCore& core, float* d, const float* a, const float* b, int n,
                 int depth) {
  const double kept = std::ldexp(1.0, 23 + core.extraBits);
  double largest[kMostColumns], sum[kMostColumns];
  float before[kMostColumns];
  for (int first = 0; first < depth; first += core.products) {
    const int last = std::min(first + core.products, depth);
    for (int j = 0; j < n; j++) largest[j] = leading(d[j]);
    for (int k = first; k < last; k++) {
      const float* const row = b + k * n;
      const double of = leading(a[k]);
      for (int j = 0; j < n; j++) {
        const double product = of * leading(row[j]);
        largest[j] = largest[j] < product ? product : largest[j];
      }
    }
    // Units in the last place that is kept, to the minus one. Of nothing but zeros, any will do.
    for (int j = 0; j < n; j++) largest[j] = kept / (largest[j] > 0 ? largest[j] : 1.0);
    for (int j = 0; j < n; j++) {
      before[j] = d[j];
      sum[j] = std::trunc(d[j] * largest[j]);
    }
    for (int k = first; k < last; k++) {
      const float* const row = b + k * n;
      const double of = a[k];
      for (int j = 0; j < n; j++) sum[j] += std::trunc(of * row[j] * largest[j]);
    }
    double finite = 0;  // or NaN
    for (int j = 0; j < n; j++) {
      const double value = sum[j] / largest[j];
      finite += value * 0;
      d[j] = towardsZero(value);
    }
    if (finite == 0) continue;
    for (int j = 0; j < n; j++) {  // NaN and infinities go their way
      if (std::isfinite(sum[j] / largest[j])) continue;
      d[j] = before[j];
      for (int k = first; k < last; k++) d[j] += a[k] * b[k * n + j];
    }
  }
}

}  // namespace dit::simt
