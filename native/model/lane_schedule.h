#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// Which images are in the making: the policy alone, without a model, a queue or a clock.

namespace dit {

// An image that is not finished.
struct Contender {
  uint64_t caller = 0, call = 0;
  int32_t priority = 0;
  uint64_t turn = 0;   // of its call: the lowest comes first
  int64_t left = 0;    // steps until it is finished
  bool holds = false;  // a lane
  int64_t held = 0;    // rounds since it was given its lane
};

// Rounds after which an image gives way to equals that wait. Longer than the usual image takes, so
// that those are made in one go, in the order in which they came, which is best where all take the
// same time; the images of hundreds of steps take turns, so that they do not lock out the others.
constexpr int64_t kLaneQuantum = 32;

// Those that are to hold a lane in the next round, at most `lanes`, as indices into `contenders`.
//
//  - A higher priority goes first, always: a lower one has the lanes that it leaves.
//  - Callers of equal priority get equal numbers of lanes, or what they want if that is less; so do
//    the calls of one caller. A lane changes hands at once where that makes the numbers more equal.
//  - Where they are as equal as can be, those who wait get their turn, in its order, from an image
//    that has held its lane for kLaneQuantum rounds. Of one call the first image goes first.
//  - Otherwise who has a lane keeps it.
//
// Nobody of the highest priority that there is waits for ever: with n callers of it each gets at
// least a quantum in n turns. Lower priorities can.
std::vector<size_t> assignLanes(const std::vector<Contender>& contenders, int64_t lanes);

}  // namespace dit
