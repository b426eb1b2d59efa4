#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/dit_layers.h"
#include "model/weights.h"

namespace dit {

// The trained parameters of a DiT and everything that has their shape, each in one array: values,
// gradients, AdamW's moments, EMA, and the copy in the precision of the products. A parameter has
// the same place in all of them, and begins at a granule (kParamGranule).
class Parameters {
 public:
  // For products over `rows` rows at once.
  Parameters(Ops& ops, const DitConfig& config, Precision precision, int64_t rows);

  // Bytes of all arrays.
  static size_t bytes(const DitConfig& config, Precision precision);

  Tensor values, gradients, firstMoment, secondMoment, ema;  // [count] F32
  Tensor low;                                                // [count] BF16; absent in fp32
  Tensor decays;                                             // [count / kParamGranule] U8

  // The layers, whose weights and gradients lie in the arrays.
  const DitLayers& layers() const { return layers_; }

  // Values from `weights`, EMA equal to them, the rest 0. `decayAll`: biases and tables decay too.
  void start(WeightSource& weights, bool decayAll, const LoadProgress& progress);
  // One array from `weights`.
  void load(const Tensor& array, WeightSource& weights, const LoadProgress& progress);
  // After a change of the values from outside: the copies follow.
  void refresh();
  // After AdamW, which has written `low` itself.
  void changed();
  // Reads from `array`, and the position embedding.
  std::unique_ptr<WeightSource> source(const Tensor& array);

 private:
  struct Slot {
    ParamSpec spec;
    int64_t offset = 0;
  };
  class Source;

  static std::vector<Slot> layOut(const DitConfig& config);
  static int64_t count(const std::vector<Slot>& slots);
  static Tensor part(const Tensor& array, const Slot& slot);

  Ops& ops_;
  std::vector<Slot> slots_;  // without the position embedding
  ParamSpec position_;
  DeviceBuffer memory_;
  DitLayers layers_;
  std::vector<PreparedWeight*> weights_;
};

}  // namespace dit
