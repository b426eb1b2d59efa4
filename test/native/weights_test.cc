// Parameters in files and of fresh models.
#include "model/weights.h"

#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>

#include "dit_model.h"
#include "harness.h"
#include "temporary_file.h"

namespace dit::test {
namespace {

DIT_CASE("weights/files") {
  const TemporaryFile file(test);
  std::vector<float> numbers;
  for (int i = 0; i < 24; i++) numbers.push_back(static_cast<float>(i) * 0.5f);
  file.write(numbers.data(), numbers.size() * 4);
  const TensorPart whole{file.path, 0, DType::F32, {4, 6}, {6, 1}};
  const TensorPart transposed{file.path, 0, DType::F32, {6, 4}, {1, 6}};
  const TensorPart column{file.path, 8, DType::F32, {4, 1}, {6, 1}};
  const TensorPart repeated{file.path, 4, DType::F32, {3, 2}, {0, 1}};
  const TensorPart halves{file.path, 2, DType::BF16, {2, 2}, {2, 4}};
  const TensorPart nothing{file.path, 96, DType::F32, {0, 3}, {3, 1}};
  const auto source = openWeightFiles({{"whole", {whole}},
                                       {"transposed", {transposed}},
                                       {"parts", {column, column}},
                                       {"repeated", {repeated}},
                                       {"halves", {halves}},
                                       {"nothing", {nothing}},
                                       {"scalar", {{file.path, 12, DType::F32, {}, {}}}}});
  const auto values = [&](const char* name) { return floats(source->read(name, false)); };
  EXPECT(values("whole") == numbers);
  EXPECT(values("transposed")[1] == 3 && values("transposed")[4] == 0.5f);
  EXPECT(values("parts") == (std::vector<float>{1, 4, 7, 10, 1, 4, 7, 10}));
  EXPECT(source->shape("parts") == (Shape{8, 1}));
  EXPECT(values("repeated") == (std::vector<float>{0.5f, 1, 0.5f, 1, 0.5f, 1}));
  // The upper halves of numbers 0, 2, 1 and 3: small ones are exact in bfloat16.
  EXPECT(values("halves") == (std::vector<float>{0, 1, 0.5f, 1.5f}));
  EXPECT(source->read("halves", true).dtype == DType::BF16);
  EXPECT(values("nothing").empty() && values("scalar") == (std::vector<float>{1.5f}));
  EXPECT_ERROR(Format, source->read("absent", false));
  EXPECT_ERROR(Format, source->read(ParamSpec{"whole", {6, 4}}, false));

  const auto open = [&](TensorPart part) { openWeightFiles({{"w", {std::move(part)}}}); };
  EXPECT_ERROR(File, open({file.path, 4, DType::F32, {4, 6}, {6, 1}}));
  EXPECT_ERROR(File, open({file.path, 0, DType::F32, {5, 6}, {6, 1}}));
  EXPECT_ERROR(File, open({file.path, ~uint64_t{0} - 3, DType::F32, {1}, {1}}));
  EXPECT_ERROR(File, open({file.path, 0, DType::F32, {2}, {int64_t{1} << 62}}));
  EXPECT_ERROR(File,
               open({file.path, 0, DType::F32, {int64_t{1} << 40, int64_t{1} << 40}, {0, 0}}));
  EXPECT_ERROR(Format, open({file.path, 0, DType::F32, {-1}, {1}}));
  EXPECT_ERROR(Format, open({file.path, 0, DType::F32, {1}, {-1}}));
  EXPECT_ERROR(Format, open({file.path, 0, DType::F32, {1, 1}, {1}}));
  EXPECT_ERROR(File, open({file.path + ".absent", 0, DType::F32, {1}, {1}}));
}

DIT_CASE("weights/save") {
  const TemporaryFile file(test);
  const DitConfig config = fixtureConfig("micro24");
  const std::vector<ParamSpec> params = ditParams(config);
  const auto source = initialWeights(params, 5);
  writeWeights(file.path, "header", *source,
               {{"blocks.0.attn.qkv.weight", 24, 48, DType::F32},
                {"x_embedder.proj.weight", 0, 24, DType::BF16}});
  const std::string bytes = readFile(file.path);
  EXPECT(bytes.size() == 6 + 24 * 24 * 4 + 24 * 16 * 2 && bytes.rfind("header", 0) == 0);
  const std::vector<float> qkv = floats(source->read("blocks.0.attn.qkv.weight", false));
  EXPECT(std::memcmp(bytes.data() + 6, qkv.data() + 24 * 24, 24 * 24 * 4) == 0);
  EXPECT_ERROR(File, writeWeights("/nonexistent/file", "", *source, {}));
  EXPECT_ERROR(Internal, writeWeights(file.path, "", *source,
                                      {{"x_embedder.proj.weight", 0, 25, DType::F32}}));
  EXPECT(readFile(file.path) == bytes);  // the failed write left the old file alone
}

// A limit on the size of files, in the place of a full disk: a write beyond it fails in part, then
// whole, as there.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

DIT_CASE("weights/full-disk") {
  namespace fs = std::filesystem;
  const TemporaryFile folder(test);
  fs::create_directory(folder.path);
  const std::string path = folder.path + "/model.safetensors";
  const auto source = initialWeights(ditParams(fixtureConfig("micro24")), 5);
  const std::vector<SavedTensor> tensors{{"blocks.0.attn.qkv.weight", 0, 72, DType::F32}};
  writeWeights(path, "old header", *source, tensors);
  const std::string old = readFile(path);
  // Nothing fits, the header alone, half of the numbers.
  for (const rlim_t bytes : {0, 10, 3000}) {
    std::string message;
    {
      const FileSizeLimit limit(bytes);
      message = EXPECT_ERROR(File, writeWeights(path, "new header", *source, tensors));
    }
    EXPECT(message.find(path) != std::string::npos, message);
    EXPECT(readFile(path) == old, "the old file is intact");
    const auto files = std::distance(fs::directory_iterator(folder.path), {});
    EXPECT(files == 1, "nothing is left beside it, ", files);
  }
  writeWeights(path, "new header", *source, tensors);
  EXPECT(readFile(path).rfind("new header", 0) == 0);
  fs::remove_all(folder.path);
}

// Xavier: uniform within its bound; normal 0.02; zeros where DiT starts as the identity.
DIT_CASE("weights/initial") {
  const auto source = initialWeights(ditParams(fixtureConfig("a96h4")), 5);
  const auto stats = [&](const char* name) {
    double mean = 0, square = 0, largest = 0;
    const std::vector<float> values = floats(source->read(name, false));
    for (float value : values) {
      mean += value / static_cast<double>(values.size());
      square += static_cast<double>(value) * value / static_cast<double>(values.size());
      largest = std::max<double>(largest, std::abs(value));
    }
    return std::vector<double>{mean, std::sqrt(square), largest};
  };
  const double bound = std::sqrt(6.0 / (96 + 288));
  const auto qkv = stats("blocks.1.attn.qkv.weight");
  EXPECT(std::abs(qkv[0]) < 0.003 && std::abs(qkv[1] - bound / std::sqrt(3.0)) < 0.002 &&
         qkv[2] <= bound && qkv[2] > 0.99 * bound);
  const auto table = stats("t_embedder.mlp.0.weight");
  EXPECT(std::abs(table[1] - 0.02) < 0.0005, table[1]);
  EXPECT(stats("final_layer.linear.weight")[2] == 0);
  EXPECT(stats("blocks.0.adaLN_modulation.1.weight")[2] == 0);
  EXPECT(floats(source->read("blocks.0.attn.qkv.weight", false)) !=
         floats(source->read("blocks.1.attn.qkv.weight", false)));
}

}  // namespace
}  // namespace dit::test
