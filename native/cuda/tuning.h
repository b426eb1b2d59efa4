#pragma once

#include <string>

// What is tried out on a device before it is what the kernels do. The environment variable
// DIT_CUDA_TUNING chooses when a device is opened, by names with commas between them:
//
//   linear=128x256x2s4g1   products of Hopper's `linear` by this candidate (linear_candidates.h);
//                          only in libraries that were built with -DDIT_CUDA_CANDIDATES=ON
//   launch=dependent       kernels start while those before them end (awaitPrevious in ptx.cuh);
//                          on Hopper only
//
// No result depends on it, in no bit.

namespace dit::cuda {

struct Tuning {
  int linear = -1;  // of kLinearCandidates; -1: as linear_sm90.cu chooses
  bool dependentLaunches = false;
};

// text: may be null. Throws Option for what is unknown here.
Tuning tuningOf(const char* text);

}  // namespace dit::cuda
