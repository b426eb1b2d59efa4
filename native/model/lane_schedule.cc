#include "model/lane_schedule.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <tuple>

namespace dit {

namespace {

// The contenders of one priority, and the lanes that higher ones left.
class Share {
 public:
  Share(const std::vector<Contender>& contenders, std::vector<size_t> members, int64_t lanes)
      : contenders_(contenders), lanes_(static_cast<size_t>(lanes)) {
    for (const size_t i : members) {
      if (at(i).holds) {
        give(i);
      } else {
        waiting_.push_back(i);
      }
    }
  }

  std::vector<size_t> settle() {
    while (given_.size() > lanes_) take(*victim([](size_t) { return true; }));
    while (given_.size() < lanes_ && !waiting_.empty()) giveTo(next());
    for (;;) {
      if (waiting_.empty()) break;
      const size_t waits = next();
      const auto holder = holderFor(waits, [](size_t) { return true; });
      if (!holder) break;
      take(*holder);
      giveTo(waits);
    }
    while (evenOutCalls()) continue;
    return given_;
  }

 private:
  // Lanes of a contender's caller, then of its call.
  using Lanes = std::pair<int64_t, int64_t>;

  const Contender& at(size_t i) const { return contenders_[i]; }
  Lanes lanesOf(size_t i) const {
    const auto count = [](const auto& counts, uint64_t key) {
      const auto found = counts.find(key);
      return found == counts.end() ? 0 : found->second;
    };
    return {count(callerLanes_, at(i).caller), count(callLanes_, at(i).call)};
  }

  void count(size_t i, int64_t change) {
    callerLanes_[at(i).caller] += change;
    callLanes_[at(i).call] += change;
  }
  void give(size_t i) {
    given_.push_back(i);
    count(i, 1);
  }
  void giveTo(size_t i) {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), i));
    give(i);
  }
  void take(size_t i) {
    given_.erase(std::find(given_.begin(), given_.end(), i));
    count(i, -1);
  }

  bool before(size_t a, size_t b) const {
    return std::tuple(lanesOf(a), at(a).turn, a) < std::tuple(lanesOf(b), at(b).turn, b);
  }

  // Who is to have the next lane.
  size_t next() const {
    return *std::min_element(waiting_.begin(), waiting_.end(),
                             [&](size_t a, size_t b) { return before(a, b); });
  }

  // A caller that gets no more lanes may still have too many of them in one of its calls. Gives one
  // of them to another; false where that is nowhere so.
  bool evenOutCalls() {
    std::map<uint64_t, size_t> first;  // of each caller, of those who wait
    for (const size_t i : waiting_) {
      if (lanesOf(i).first == 0) continue;
      const auto [found, fresh] = first.try_emplace(at(i).caller, i);
      if (!fresh && before(i, found->second)) found->second = i;
    }
    for (const auto& entry : first) {
      const size_t waits = entry.second;
      const auto holder = holderFor(waits, [&](size_t i) { return at(i).caller == entry.first; });
      if (!holder) continue;
      take(*holder);
      giveTo(waits);
      return true;
    }
    return false;
  }

  // How many lanes more a holder's side has than that of who waits: of their callers, or of their
  // calls where they have the same caller.
  int64_t excess(size_t holder, size_t waits) const {
    const Lanes has = lanesOf(holder), lacks = lanesOf(waits);
    return at(holder).caller == at(waits).caller ? has.second - lacks.second
                                                 : has.first - lacks.first;
  }

  std::optional<size_t> holderFor(size_t waits, const std::function<bool(size_t)>& among) const {
    const auto fair = victim([&](size_t i) { return among(i) && excess(i, waits) >= 2; });
    if (fair) return fair;
    return victim(
        [&](size_t i) { return among(i) && excess(i, waits) >= 1 && at(i).held >= kLaneQuantum; });
  }

  // Who gives its lane up: of those that may, one whose caller and call have most lanes; that has
  // had its turn; that is farthest from its end.
  std::optional<size_t> victim(const std::function<bool(size_t)>& may) const {
    std::optional<size_t> found;
    const auto rank = [&](size_t i) {
      return std::tuple(lanesOf(i), at(i).held >= kLaneQuantum, at(i).left);
    };
    for (const size_t i : given_) {
      if (at(i).holds && may(i) && (!found || rank(i) > rank(*found))) found = i;
    }
    return found;
  }

  const std::vector<Contender>& contenders_;
  const size_t lanes_;
  std::vector<size_t> given_, waiting_;
  std::map<uint64_t, int64_t> callerLanes_, callLanes_;
};

}  // namespace

std::vector<size_t> assignLanes(const std::vector<Contender>& contenders, int64_t lanes) {
  std::map<int32_t, std::vector<size_t>, std::greater<>> byPriority;
  for (size_t i = 0; i < contenders.size(); i++) byPriority[contenders[i].priority].push_back(i);
  std::vector<size_t> given;
  for (auto& [priority, members] : byPriority) {
    const int64_t left = lanes - static_cast<int64_t>(given.size());
    const std::vector<size_t> some = Share(contenders, std::move(members), left).settle();
    given.insert(given.end(), some.begin(), some.end());
  }
  return given;
}

}  // namespace dit
