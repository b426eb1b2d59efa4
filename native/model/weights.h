#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/tensor.h"

namespace dit {

// How a parameter starts (Peebles & Xie 2022, section 4: Xavier uniform for linear layers, zero for
// the last layer and adaLN, so that every block starts as the identity; normal with deviation 0.02
// for the embeddings).
enum class Init : uint8_t { Zero, XavierUniform, Normal002, Fixed };

struct ParamSpec {
  std::string name;
  Shape shape;
  Init init = Init::XavierUniform;
  bool decays = false;            // by weight decay: matrices do, biases and tables do not
  std::vector<float> fixed = {};  // the values of Init::Fixed, which is not trained
};

// Where the values of one tensor are: in one file, or in several whose parts follow one another
// along dimension 0. Strides are in elements and may be 0.
struct TensorPart {
  std::string file;
  uint64_t offset = 0;  // bytes
  DType dtype = DType::F32;
  std::vector<int64_t> shape, strides;
};

struct TensorSource {
  std::string name;
  std::vector<TensorPart> parts;
};

// Gives the values of parameters by name.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual bool has(const std::string& name) const = 0;
  virtual Shape shape(const std::string& name) const = 0;
  // Host memory, contiguous, F32; BF16 where the file holds BF16 and the caller can use it
  // (`keepBf16`). Valid until the next call.
  virtual Tensor read(const std::string& name, bool keepBf16) = 0;

  // The same, checked against the shape that the model needs.
  Tensor read(const ParamSpec& param, bool keepBf16);
};

// Maps the files that hold the tensors; a tensor that is not contiguous float is converted when it
// is read. Throws File when a file cannot be mapped or is shorter than its tensors need.
std::unique_ptr<WeightSource> openWeightFiles(const std::vector<TensorSource>& tensors);

// A fresh model: every value follows from (seed, number of the parameter, position).
std::unique_ptr<WeightSource> initialWeights(const std::vector<ParamSpec>& params, uint64_t seed);

// One tensor of a file to be written: rows [begin, end) of dimension 0 of a parameter.
struct SavedTensor {
  std::string name;
  int64_t rowBegin = 0, rowEnd = 0;
  DType dtype = DType::F32;  // F32 or BF16
};

// Writes header, then the tensors one after another, to `path`: first to a temporary file beside
// it, flushed to the disk, then renamed, so that `path` is never half written.
void writeWeights(const std::string& path, const std::string& header, WeightSource& source,
                  const std::vector<SavedTensor>& tensors);

}  // namespace dit
