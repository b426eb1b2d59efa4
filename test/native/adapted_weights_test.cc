// Weights of one size read as those of another.
#include "model/adapted_weights.h"

#include <cmath>
#include <map>

#include "dit_model.h"
#include "harness.h"

namespace dit::test {
namespace {

// Numbers under names.
class Given : public WeightSource {
 public:
  using WeightSource::read;
  bool has(const std::string& name) const override { return tensors.count(name) != 0; }
  Shape shape(const std::string& name) const override { return tensors.at(name).first; }
  Tensor read(const std::string& name, bool) override {
    auto& [shape, values] = tensors.at(name);
    return {values.data(), DType::F32, shape};
  }
  std::map<std::string, std::pair<Shape, std::vector<float>>> tensors;
};

constexpr const char* kEmbedding = "x_embedder.proj.weight";
constexpr const char* kLast = "final_layer.linear.weight";
constexpr const char* kBias = "final_layer.linear.bias";
constexpr const char* kLabels = "y_embedder.embedding_table.weight";

DitConfig small(int64_t patch, int64_t classes = 3) {
  DitConfig config;
  config.depth = 1;
  config.hidden = 4;
  config.heads = 1;
  config.mlpHidden = 8;
  config.patch = patch;
  config.channels = 2;
  config.height = config.width = 12 * patch;
  config.classes = classes;
  return config;
}

// A line of p numbers to q by its formula: a triangle around where the pixel's centre was.
double resized(int64_t p, int64_t q, int64_t to, int64_t from) {
  const auto weight = [&](int64_t j) {
    const double scale = static_cast<double>(p) / static_cast<double>(q);
    const double centre = (static_cast<double>(to) + 0.5) * scale;
    const double distance = std::abs(static_cast<double>(j) + 0.5 - centre);
    return std::max(0.0, 1 - distance / std::max(1.0, scale));
  };
  double sum = 0;
  for (int64_t j = 0; j < p; j++) sum += weight(j);
  return weight(from) / sum;
}

float wave(int64_t i) { return std::sin(0.7f * static_cast<float>(i) + 0.3f); }

std::vector<float> waves(const Shape& shape) {
  std::vector<float> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); i++) values[i] = wave(static_cast<int64_t>(i));
  return values;
}

std::unique_ptr<WeightSource> adapted(const DitConfig& from, const DitConfig& to,
                                      uint64_t seed = 0) {
  auto given = std::make_unique<Given>();
  for (const ParamSpec& param : ditParams(from)) {
    given->tensors[param.name] = {param.shape, waves(param.shape)};
  }
  return adaptWeights(std::move(given), from, to, seed);
}

// Where patches grow, resized patches make the same tokens, and what is made of a token is resized.
void checkPatches(Test& test, int64_t p, int64_t q) {
  const DitConfig from = small(p), to = small(q);
  const auto source = adapted(from, to);
  for (const ParamSpec& param : ditParams(to)) EXPECT(source->shape(param.name) == param.shape);
  const std::vector<float> kernels = floats(source->read(kEmbedding, false));
  for (int64_t kernel = 0; kernel < 4 * 2; kernel++) {
    double before = 0, after = 0;
    for (int64_t a = 0; a < p * p; a++) before += wave(kernel * p * p + a) * wave(3 * a);
    for (int64_t i = 0; i < q * q; i++) {
      double pixel = 0;
      for (int64_t a = 0; a < p * p; a++) {
        pixel += resized(p, q, i / q, a / p) * resized(p, q, i % q, a % p) * wave(3 * a);
      }
      after += kernels[static_cast<size_t>(kernel * q * q + i)] * pixel;
    }
    EXPECT(std::abs(before - after) < 1e-5, p, " to ", q, ": kernel ", kernel, " gave ", before,
           ", now ", after);
  }
  for (const auto& [name, width] : {std::pair{kLast, 4}, std::pair{kBias, 1}}) {
    const std::vector<float> rows = floats(source->read(name, false));
    const int64_t step = from.outChannels() * width;
    double worst = 0;
    for (int64_t i = 0; i < q * q; i++) {
      for (int64_t c = 0; c < step; c++) {
        double want = 0;
        for (int64_t a = 0; a < p * p; a++) {
          want += resized(p, q, i / q, a / p) * resized(p, q, i % q, a % p) * wave(a * step + c);
        }
        worst = std::max(worst, std::abs(want - rows[static_cast<size_t>(i * step + c)]));
      }
    }
    EXPECT(worst < 1e-6, p, " to ", q, ": ", name, " is off by ", worst);
  }
}

DIT_CASE("adapted-weights/larger-patches") {
  for (const auto& [p, q] : {std::pair<int64_t, int64_t>{2, 4}, {1, 2}, {2, 3}, {4, 8}, {3, 16}}) {
    checkPatches(test, p, q);
  }
}

// Where patches shrink, of all kernels none has products nearer to those before: the rest is
// orthogonal to what can be made by resizing (the normal equations of least squares).
DIT_CASE("adapted-weights/smaller-patches") {
  const int64_t p = 4, q = 2;
  const auto source = adapted(small(p), small(q));
  const std::vector<float> kernels = floats(source->read(kEmbedding, false));
  const auto r = [&](int64_t i, int64_t a) {
    return resized(p, q, i / q, a / p) * resized(p, q, i % q, a % p);
  };
  for (int64_t kernel = 0; kernel < 4 * 2; kernel++) {
    std::vector<double> rest(static_cast<size_t>(p * p));  // R^T w' - w
    for (int64_t a = 0; a < p * p; a++) {
      rest[a] = -wave(kernel * p * p + a);
      for (int64_t i = 0; i < q * q; i++) rest[a] += r(i, a) * kernels[kernel * q * q + i];
    }
    for (int64_t i = 0; i < q * q; i++) {
      double product = 0;
      for (int64_t a = 0; a < p * p; a++) product += r(i, a) * rest[a];
      EXPECT(std::abs(product) < 1e-6, "kernel ", kernel, ", row ", i, ": ", product);
    }
  }
}

DIT_CASE("adapted-weights/classes") {
  const DitConfig from = small(2, 3);
  for (const int64_t classes : {1, 2, 7}) {
    const auto source = adapted(from, small(2, classes), 5);
    const std::vector<float> table = floats(source->read(kLabels, false));
    EXPECT(static_cast<int64_t>(table.size()) == (classes + 1) * 4);
    double square = 0;
    for (int64_t i = 0; i < classes * 4; i++) {
      const double noise = table[i] - wave(3 * 4 + i % 4);
      square += noise * noise / static_cast<double>(classes * 4);
    }
    EXPECT(square > 0 && std::sqrt(square) < 0.05, "deviation ", std::sqrt(square));
    for (int64_t i = 0; i < 4; i++) EXPECT(table[classes * 4 + i] == wave(3 * 4 + i), "null class");
    const auto other = floats(adapted(from, small(2, classes), 6)->read(kLabels, false));
    EXPECT(floats(adapted(from, small(2, classes), 5)->read(kLabels, false)) == table);
    EXPECT(other != table, "another seed");
    EXPECT(floats(source->read(kEmbedding, false)) == waves({4, 2, 2, 2}), "the rest stays");
  }
  DitConfig before = from, after = small(2, 5);
  before.nullClass = after.nullClass = false;
  const std::vector<float> table = floats(adapted(before, after)->read(kLabels, false));
  double largest = 0;
  for (const float value : table) largest = std::max<double>(largest, std::abs(value));
  EXPECT(table.size() == 20 && largest > 0 && largest < 0.1, largest);
}

DIT_CASE("adapted-weights/errors") {
  DitConfig deeper = small(2);
  deeper.depth = 2;
  EXPECT_ERROR(Internal, adapted(small(2), deeper));
  // What a file has is not what its header said.
  EXPECT_ERROR(Format, adaptWeights(std::make_unique<Given>([] {
                                      Given given;
                                      given.tensors[kLabels] = {{2, 4}, waves({2, 4})};
                                      return given;
                                    }()),
                                    small(2), small(2, 5), 0)
                           ->read(kLabels, false));
}

}  // namespace
}  // namespace dit::test
