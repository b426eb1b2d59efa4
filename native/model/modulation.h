#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "model/dit.h"

namespace dit {

// adaLN's modulation depends on (timestep, condition) alone, and its products read a third of the
// model's weights. So it is computed for kModulationRows pairs at a time, those that are needed now
// and those that will be needed next, and kept. Lanes that have the same pair share it.
class ModulationCache {
 public:
  struct Key {
    float timestep = 0;
    int32_t label = 0;
    uint64_t vectorId = 0;  // tells vectors apart; 0 for labels
    bool operator==(const Key&) const = default;
  };
  struct Need {
    Key key;
    Dit::Condition condition;
  };

  // `rows`: how many pairs one round may need at most.
  ModulationCache(Ops& ops, Dit& dit, int64_t rows);

  // Makes sure that all of `now` are in the table, fills what room its products have with pairs of
  // `soon`, in their order, and returns the entry of each of `now`.
  std::vector<int32_t> require(const std::vector<Need>& now, const std::vector<Need>& soon,
                               const Checkpoint& checkpoint);

  // Forgets all pairs: the weights have changed.
  void clear();

  const Tensor& table() const { return table_; }
  size_t bytes() const { return memory_.bytes(); }

 private:
  // A product fills one page of the table; pages are what is replaced.
  struct Page {
    std::vector<Key> keys;
    uint64_t lastUsed = 0;
  };
  std::optional<int32_t> find(const Key& key) const;
  std::vector<Need> missing(const std::vector<Need>& needs) const;
  void compute(const std::vector<Need>& needs, const Checkpoint& checkpoint);

  Dit& dit_;
  std::vector<Page> pages_;
  DeviceBuffer memory_;
  Tensor table_;  // [pages * kModulationRows, modulationSize] F32
  uint64_t clock_ = 0;
};

}  // namespace dit
