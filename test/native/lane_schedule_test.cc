// Who has a lane: the policy, round by round, without a model.
#include "model/lane_schedule.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>

#include "harness.h"

namespace dit::test {
namespace {

// Images that take part in rounds until their steps are done, as SamplingJobs has them do.
class Rounds {
 public:
  Rounds(Test& test, int64_t lanes) : test_(test), lanes_(lanes) {}

  // Images of a call of their own; returns its number.
  uint64_t call(int images, int64_t steps, uint64_t caller = 0, int32_t priority = 0) {
    const uint64_t id = ++lastCall_;
    turns_[id] = ++lastTurn_;
    for (int i = 0; i < images; i++) {
      Contender image;
      image.caller = caller == 0 ? id : caller;
      image.call = id;
      image.priority = priority;
      image.left = steps;
      all_.push_back(image);
    }
    return id;
  }

  void round() {
    Test& test = test_;
    std::vector<bool> chosen(all_.size());
    for (Contender& image : all_) image.turn = turns_[image.call];
    const std::vector<size_t> given = assignLanes(all_, lanes_);
    EXPECT(static_cast<int64_t>(given.size()) <= lanes_);
    const size_t wanted = std::min(all_.size(), static_cast<size_t>(lanes_));
    EXPECT(given.size() == wanted, "a lane is idle while an image waits");
    for (const size_t i : given) {
      EXPECT(!chosen[i], "given twice");
      chosen[i] = true;
    }
    for (size_t i = 0; i < all_.size(); i++) {
      Contender& image = all_[i];
      if (image.holds != chosen[i]) {
        changes_++;
        if (image.holds && image.held >= kLaneQuantum) turns_[image.call] = ++lastTurn_;
        image.held = 0;
      }
      image.holds = chosen[i];
      if (!image.holds) continue;
      image.held++;
      image.left--;
      served_[image.call]++;
    }
    rounds_++;
    std::erase_if(all_, [&](const Contender& image) {
      if (image.left > 0) return false;
      ended_[image.call] = rounds_;
      return true;
    });
  }

  void rounds(int n) {
    for (int i = 0; i < n; i++) round();
  }
  // Rounds until the last image of a call ended, from the beginning.
  int64_t end(uint64_t call) {
    const auto remains = [&] {
      return std::any_of(all_.begin(), all_.end(),
                         [&](const Contender& image) { return image.call == call; });
    };
    while (remains()) round();
    return ended_[call];
  }
  int64_t lanesOf(uint64_t call) const {
    return std::count_if(all_.begin(), all_.end(),
                         [&](const Contender& image) { return image.call == call && image.holds; });
  }
  int64_t served(uint64_t call) { return served_[call]; }
  int64_t changes() const { return changes_; }

 private:
  Test& test_;
  int64_t lanes_;
  std::vector<Contender> all_;
  std::map<uint64_t, uint64_t> turns_;
  std::map<uint64_t, int64_t> served_, ended_;
  uint64_t lastCall_ = 0, lastTurn_ = 0;
  int64_t rounds_ = 0, changes_ = 0;
};

DIT_CASE("lane-schedule/in-order") {
  Rounds rounds(test, 2);
  std::vector<uint64_t> calls;
  for (int i = 0; i < 6; i++) calls.push_back(rounds.call(1, 25));
  for (int i = 0; i < 6; i++) {
    const int64_t end = rounds.end(calls[static_cast<size_t>(i)]);
    EXPECT(end == 25 * (1 + i / 2), "call ", i, " in round ", end);
  }
  EXPECT(rounds.changes() == 6, "nobody who is soon done is set aside");
}

DIT_CASE("lane-schedule/callers-share") {
  Rounds rounds(test, 4);
  const uint64_t many = rounds.call(1000, 25);
  rounds.rounds(3);
  EXPECT(rounds.lanesOf(many) == 4);
  const uint64_t few = rounds.call(3, 25);
  rounds.round();
  EXPECT(rounds.lanesOf(many) == 2 && rounds.lanesOf(few) == 2);
  const uint64_t one = rounds.call(1, 25);
  rounds.round();
  EXPECT(rounds.lanesOf(one) == 1);
  rounds.end(few);
  rounds.rounds(1);
  EXPECT(rounds.lanesOf(many) == 4, "what others do not want");

  // However many calls one caller makes.
  Rounds named(test, 4);
  std::vector<uint64_t> greedy;
  for (int i = 0; i < 20; i++) greedy.push_back(named.call(1, 10, 77));
  named.rounds(2);
  const uint64_t other = named.call(2, 10, 78);
  named.round();
  EXPECT(named.lanesOf(other) == 2);
  EXPECT(named.end(other) <= 2 + 10);
  // And one of its calls does not lock out the others.
  Rounds own(test, 4);
  own.call(8, 200, 5);
  own.rounds(2);
  const uint64_t second = own.call(1, 10, 5);
  EXPECT(own.end(second) == 2 + 10);
  // Nor does it where another caller is the next to get a lane: 2 and 1 are as equal as can be.
  Rounds beside(test, 3);
  const uint64_t first = beside.call(2, 1000, 5);
  const uint64_t theirs = beside.call(3, 1000, 6);
  beside.rounds(2);
  EXPECT(beside.lanesOf(first) == 2 && beside.lanesOf(theirs) == 1);
  const uint64_t late = beside.call(1, 10, 5);
  beside.round();
  EXPECT(beside.lanesOf(late) == 1 && beside.lanesOf(first) == 1 && beside.lanesOf(theirs) == 1);
  EXPECT(beside.end(late) == 2 + 10);
}

DIT_CASE("lane-schedule/long-ones-take-turns") {
  Rounds rounds(test, 4);
  std::vector<uint64_t> slow;
  for (int i = 0; i < 4; i++) slow.push_back(rounds.call(1, 250));
  rounds.rounds(5);
  const uint64_t early = rounds.call(1, 10);
  EXPECT(rounds.end(early) <= kLaneQuantum + 10, "four long ones do not lock it out");
  rounds.rounds(40);
  const uint64_t late = rounds.call(1, 10);
  const int64_t before = rounds.served(slow[0]) + rounds.served(slow[1]) + rounds.served(slow[2]) +
                         rounds.served(slow[3]);
  EXPECT(rounds.lanesOf(late) == 0);
  rounds.round();
  EXPECT(rounds.lanesOf(late) == 1, "at once: they have had their turns");
  EXPECT(before > 0);

  // Eight long ones on four lanes: all get on, and lanes do not change hands more often than once a
  // quantum.
  Rounds eight(test, 4);
  std::vector<uint64_t> calls;
  for (int i = 0; i < 8; i++) calls.push_back(eight.call(1, 500));
  eight.rounds(640);
  for (const uint64_t call : calls) {
    EXPECT(std::abs(eight.served(call) - 320) <= 2 * kLaneQuantum, eight.served(call));
  }
  EXPECT(eight.changes() <= 4 + 2 * 4 * 640 / kLaneQuantum, eight.changes());
}

DIT_CASE("lane-schedule/priority") {
  Rounds rounds(test, 4);
  const uint64_t low = rounds.call(4, 30, 0, -1), usual = rounds.call(2, 30);
  rounds.round();
  EXPECT(rounds.lanesOf(usual) == 2 && rounds.lanesOf(low) == 2);
  const uint64_t high = rounds.call(3, 5, 0, 7);
  rounds.round();
  EXPECT(rounds.lanesOf(high) == 3 && rounds.lanesOf(usual) == 1 && rounds.lanesOf(low) == 0);
  EXPECT(rounds.end(high) == 6);
  rounds.round();
  EXPECT(rounds.lanesOf(usual) == 2 && rounds.lanesOf(low) == 2);
  rounds.end(low);
}

// Whatever comes: no lane is idle, and of equal priority nobody waits longer than the others'
// turns.
DIT_CASE("lane-schedule/random") {
  std::mt19937 random(5);
  const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (int trial = 0; trial < 20; trial++) {
    Rounds rounds(test, 1 + pick(6));
    std::vector<uint64_t> calls;
    for (int i = 0; i < 40; i++) {
      calls.push_back(rounds.call(1 + pick(9), 1 + pick(120), static_cast<uint64_t>(pick(4)) * 1000,
                                  pick(3) - 1));
      rounds.rounds(pick(20));
    }
    for (const uint64_t call : calls) EXPECT(rounds.end(call) > 0);
  }
}

}  // namespace
}  // namespace dit::test
