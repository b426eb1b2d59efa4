#include "model/adapted_weights.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace dit {

namespace {

constexpr const char* kEmbedding = "x_embedder.proj.weight";
constexpr const char* kLastWeight = "final_layer.linear.weight";
constexpr const char* kLastBias = "final_layer.linear.bias";
constexpr const char* kLabels = "y_embedder.embedding_table.weight";

// A small matrix, by rows.
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Matrix(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c)) {}
  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

// [q, p]: a line of p pixels to q by a triangular filter as wide as the larger of the two pixels;
// beyond the ends there is nothing. Where q >= p this is linear interpolation.
Matrix resizing(int64_t p, int64_t q) {
  Matrix matrix(q, p);
  const double factor = static_cast<double>(p) / static_cast<double>(q);
  const double reach = std::max(1.0, factor);
  for (int64_t i = 0; i < q; i++) {
    const double centre = (static_cast<double>(i) + 0.5) * factor - 0.5;
    double sum = 0;
    for (int64_t j = 0; j < p; j++) {
      matrix.at(i, j) = std::max(0.0, 1 - std::abs(static_cast<double>(j) - centre) / reach);
      sum += matrix.at(i, j);
    }
    for (int64_t j = 0; j < p; j++) matrix.at(i, j) /= sum;
  }
  return matrix;
}

// a^-1 b for a symmetric, positive definite a [n, n] and b [n, m], by Gauss-Jordan elimination.
Matrix solve(Matrix a, Matrix b) {
  for (int64_t k = 0; k < a.rows; k++) {
    const double pivot = a.at(k, k);
    DIT_CHECK(pivot > 1e-12, ErrorCode::Internal, "a resizing matrix is singular");
    for (int64_t row = 0; row < a.rows; row++) {
      if (row == k) continue;
      const double share = a.at(row, k) / pivot;
      for (int64_t j = k; j < a.cols; j++) a.at(row, j) -= share * a.at(k, j);
      for (int64_t j = 0; j < b.cols; j++) b.at(row, j) -= share * b.at(k, j);
    }
  }
  for (int64_t k = 0; k < a.rows; k++) {
    for (int64_t j = 0; j < b.cols; j++) b.at(k, j) /= a.at(k, k);
  }
  return b;
}

Matrix transposed(const Matrix& a) {
  Matrix t(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; i++) {
    for (int64_t j = 0; j < a.cols; j++) t.at(j, i) = a.at(i, j);
  }
  return t;
}

// a^T a.
Matrix gram(const Matrix& a) {
  Matrix product(a.cols, a.cols);
  for (int64_t i = 0; i < a.cols; i++) {
    for (int64_t j = 0; j < a.cols; j++) {
      for (int64_t k = 0; k < a.rows; k++) product.at(i, j) += a.at(k, i) * a.at(k, j);
    }
  }
  return product;
}

// pinv(r^T) [q, p] of r [q, p], which has full rank: r (r^T r)^-1, or (r r^T)^-1 r where q < p.
Matrix pseudoInverseOfTranspose(const Matrix& r) {
  if (r.rows < r.cols) return solve(gram(transposed(r)), r);
  return transposed(solve(gram(r), transposed(r)));
}

// Both sides of a square of numbers `from` [p, p], `step` apart, to `to` [q, q]: m from m^T.
void resizeSquare(const Matrix& m, const float* from, float* to, int64_t step) {
  const int64_t p = m.cols, q = m.rows;
  Matrix half(q, p);
  for (int64_t i = 0; i < q; i++) {
    for (int64_t j = 0; j < p; j++) {
      for (int64_t k = 0; k < p; k++) half.at(i, j) += m.at(i, k) * from[(k * p + j) * step];
    }
  }
  for (int64_t i = 0; i < q; i++) {
    for (int64_t j = 0; j < q; j++) {
      double sum = 0;
      for (int64_t k = 0; k < p; k++) sum += m.at(j, k) * half.at(i, k);
      to[(i * q + j) * step] = static_cast<float>(sum);
    }
  }
}

class AdaptedWeights : public WeightSource {
 public:
  AdaptedWeights(std::unique_ptr<WeightSource> stored, const DitConfig& from, const DitConfig& to,
                 uint64_t seed)
      : stored_(std::move(stored)),
        from_(from),
        to_(to),
        fresh_(initialWeights(ditParams(to), seed)) {
    DIT_CHECK(from.depth == to.depth && from.hidden == to.hidden && from.heads == to.heads &&
                  from.mlpHidden == to.mlpHidden && from.channels == to.channels &&
                  from.nullClass == to.nullClass && from.learnSigma == to.learnSigma,
              ErrorCode::Internal, "weights can be adapted to other patches and classes only");
  }

  using WeightSource::read;
  bool has(const std::string& name) const override { return stored_->has(name); }

  Shape shape(const std::string& name) const override {
    // What a file holds is checked here, so that no row is read that is not there.
    const Shape shape = stored_->shape(name);
    const auto expect = [&](const Shape& expected) {
      DIT_CHECK(shape == expected, ErrorCode::Format, name, ": expected shape ", expected, ", got ",
                shape);
    };
    const int64_t C = from_.hidden, p = from_.patch, q = to_.patch;
    if (name == kEmbedding) {
      expect({C, from_.channels, p, p});
      return {C, from_.channels, q, q};
    }
    if (name == kLastWeight) {
      expect({p * p * from_.outChannels(), C});
      return {q * q * to_.outChannels(), C};
    }
    if (name == kLastBias) {
      expect({p * p * from_.outChannels()});
      return {q * q * to_.outChannels()};
    }
    if (name == kLabels) {
      expect({from_.labelRows(), C});
      return {to_.labelRows(), C};
    }
    return shape;
  }

  Tensor read(const std::string& name, bool keepBf16) override {
    const bool resized = name == kEmbedding || name == kLastWeight || name == kLastBias;
    if (resized && from_.patch != to_.patch) return resize(name);
    if (name == kLabels && from_.classes != to_.classes) return labels();
    return stored_->read(name, keepBf16);
  }

 private:
  Tensor resize(const std::string& name) {
    const Shape wanted = shape(name);
    const Tensor values = stored_->read(name, /*keepBf16=*/false);
    scratch_.assign(static_cast<size_t>(wanted.count()), 0.0f);
    const Matrix r = resizing(from_.patch, to_.patch);
    const int64_t p = from_.patch, q = to_.patch;
    if (name == kEmbedding) {
      const Matrix inverse = pseudoInverseOfTranspose(r);
      for (int64_t kernel = 0; kernel < from_.hidden * from_.channels; kernel++) {
        resizeSquare(inverse, values.as<float>() + kernel * p * p, scratch_.data() + kernel * q * q,
                     1);
      }
    } else {
      // Row (i p + j) channels + c makes channel c of pixel (i, j) of a patch.
      const int64_t step = values.count() / (p * p);
      for (int64_t c = 0; c < step; c++) {
        resizeSquare(r, values.as<float>() + c, scratch_.data() + c, step);
      }
    }
    return {scratch_.data(), DType::F32, wanted};
  }

  Tensor labels() {
    const Shape wanted = shape(kLabels);
    const Tensor fresh = fresh_->read(kLabels, /*keepBf16=*/false);
    scratch_.assign(fresh.as<float>(), fresh.as<float>() + wanted.count());
    if (to_.nullClass) {
      const int64_t C = to_.hidden;
      const Tensor table = stored_->read(kLabels, /*keepBf16=*/false);
      const float* none = table.as<float>() + from_.classes * C;
      for (int64_t i = 0; i < to_.classes * C; i++) scratch_[static_cast<size_t>(i)] += none[i % C];
      std::copy_n(none, C, scratch_.end() - C);
    }
    return {scratch_.data(), DType::F32, wanted};
  }

  std::unique_ptr<WeightSource> stored_;
  DitConfig from_, to_;
  std::unique_ptr<WeightSource> fresh_;
  std::vector<float> scratch_;
};

}  // namespace

std::unique_ptr<WeightSource> adaptWeights(std::unique_ptr<WeightSource> stored,
                                           const DitConfig& from, const DitConfig& to,
                                           uint64_t seed) {
  return std::make_unique<AdaptedWeights>(std::move(stored), from, to, seed);
}

}  // namespace dit
