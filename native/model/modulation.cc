#include "model/modulation.h"

#include <algorithm>

namespace dit {

namespace {

constexpr int64_t kRows = Dit::kModulationRows;

bool contains(const std::vector<ModulationCache::Need>& needs, const ModulationCache::Key& key) {
  return std::any_of(needs.begin(), needs.end(), [&](const auto& need) { return need.key == key; });
}

}  // namespace

// Room for one round twice over, so that the pairs of the next rounds do not push out those of this
// one, and a page to write to.
ModulationCache::ModulationCache(Ops& ops, Dit& dit, int64_t rows) : dit_(dit) {
  const int64_t pages = 2 * ((rows + kRows - 1) / kRows) + 1;
  const Shape shape{pages * kRows, dit.config().modulationSize()};
  pages_.resize(static_cast<size_t>(pages));
  memory_ = DeviceBuffer(ops.backend(), static_cast<size_t>(shape.count()) * sizeof(float));
  table_ = Tensor(memory_.data(), DType::F32, shape);
}

std::optional<int32_t> ModulationCache::find(const Key& key) const {
  for (size_t page = 0; page < pages_.size(); page++) {
    const auto& keys = pages_[page].keys;
    const auto it = std::find(keys.begin(), keys.end(), key);
    if (it != keys.end()) return static_cast<int32_t>(page * kRows + (it - keys.begin()));
  }
  return std::nullopt;
}

std::vector<ModulationCache::Need> ModulationCache::missing(const std::vector<Need>& needs) const {
  std::vector<Need> absent;
  for (const Need& need : needs) {
    if (!find(need.key) && !contains(absent, need.key)) absent.push_back(need);
  }
  return absent;
}

std::vector<int32_t> ModulationCache::require(const std::vector<Need>& now,
                                              const std::vector<Need>& soon,
                                              const Checkpoint& checkpoint) {
  clock_++;
  for (const Need& need : now) {
    if (const auto entry = find(need.key)) pages_[*entry / kRows].lastUsed = clock_;
  }
  std::vector<Need> needs = missing(now);
  if (!needs.empty()) {
    const auto products = [&] { return (needs.size() + kRows - 1) / kRows; };
    const size_t freePages = static_cast<size_t>(std::count_if(
        pages_.begin(), pages_.end(), [&](const Page& page) { return page.lastUsed != clock_; }));
    if (products() > freePages) {
      // What is needed now lies scattered over the pages: compute all of it again, together.
      clear();
      needs = missing(now);
    }
    const size_t room = products() * kRows;
    for (const Need& need : missing(soon)) {
      if (needs.size() == room) break;
      if (!contains(needs, need.key)) needs.push_back(need);
    }
    compute(needs, checkpoint);
  }
  std::vector<int32_t> entries;
  for (const Need& need : now) {
    const auto entry = find(need.key);
    DIT_CHECK(entry, ErrorCode::Internal, "a modulation that was computed is not there");
    entries.push_back(*entry);
  }
  return entries;
}

void ModulationCache::clear() {
  for (Page& page : pages_) page = {};
}

// Writes the pairs to the pages that were not used for longest, never to one in use now.
void ModulationCache::compute(const std::vector<Need>& needs, const Checkpoint& checkpoint) {
  for (size_t begin = 0; begin < needs.size(); begin += kRows) {
    const size_t end = std::min(needs.size(), begin + kRows);
    Page& page = *std::min_element(pages_.begin(), pages_.end(), [](const Page& a, const Page& b) {
      return a.lastUsed < b.lastUsed;
    });
    const int64_t number = &page - pages_.data();
    std::vector<Dit::Condition> conditions;
    std::vector<Key> keys;
    for (size_t i = begin; i < end; i++) {
      conditions.push_back(needs[i].condition);
      keys.push_back(needs[i].key);
    }
    page = {};  // not to be found while it is half written
    dit_.modulate(conditions, table_.slice(number * kRows, kRows), checkpoint);
    page = {std::move(keys), clock_};
  }
}

}  // namespace dit
