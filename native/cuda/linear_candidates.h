#pragma once

#include <string>

// The shapes of Hopper's products (GemmShape in gemm_sm90.cuh) that are timed beside production's
// by `scripts/gpu-check bench --variants`, for `linear` with an output in bf16. Plain numbers, for
// the tests, too.

namespace dit::cuda {

// Rows of tiles in a group: one (all columns of a row of tiles come first), or all.
constexpr int kOne = 1, kAll = 1 << 20;

struct LinearCandidate {
  int tileM, tileN, cluster, stages, group;
  bool turns;

  // "128x256x2s4g1": the tile, blocks of a cluster, stages, the group ("gall": all), "t": in turns.
  std::string name() const {
    const std::string rows = group == kAll ? "all" : std::to_string(group);
    return std::to_string(tileM) + "x" + std::to_string(tileN) + "x" + std::to_string(cluster) +
           "s" + std::to_string(stages) + "g" + rows + (turns ? "t" : "");
  }
};

constexpr LinearCandidate kLinearCandidates[] = {
    // Production's, each for every number of rows.
    {128, 192, 2, 5, kOne, false},
    {128, 192, 1, 5, kOne, false},
    {128, 128, 2, 7, kOne, false},
    {128, 128, 1, 7, kOne, false},
    {128, 64, 1, 8, kOne, false},
    // Narrow tiles that share b.
    {128, 64, 2, 8, kOne, false},
    // Larger tiles: fewer bytes for the same sums, but fewer stages.
    {128, 256, 2, 4, kOne, false},
    {128, 256, 1, 4, kOne, false},
    {256, 128, 2, 4, kOne, false},
    {256, 128, 1, 4, kOne, false},
    // How deep the ring has to be.
    {128, 192, 2, 4, kOne, false},
    {128, 192, 2, 3, kOne, false},
    {128, 256, 2, 3, kOne, false},
    {128, 128, 2, 4, kOne, false},
    // What L2 is to keep: a's rows, b's, or a square of both.
    {128, 192, 2, 5, 8, false},
    {128, 192, 2, 5, kAll, false},
    {128, 256, 2, 4, 8, false},
    // In turns. A consumer has the whole tile, so 128 sums a thread are 128 x 128 or 64 x 256,
    // which
    // copy 1.33 and 1.67 times what 128 x 192 does for the same sums, and read 1.15 and 0.96 times
    // as much from shared memory: they pay only where epilogues are not hidden by the ring's slack.
    {128, 128, 2, 7, kOne, true},
    {128, 128, 1, 7, kOne, true},
    {64, 256, 2, 5, kOne, true},
};

}  // namespace dit::cuda
