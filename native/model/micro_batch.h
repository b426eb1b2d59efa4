#pragma once

#include <cstddef>
#include <cstdint>

#include "core/arena.h"
#include "model/activations.h"
#include "model/dit_config.h"
#include "model/dit_layers.h"

namespace dit {

// The memory of one micro-batch of R rows beside the parameters.
struct MicroBatch {
  Tensor x, deviation, noise, noised;  // [R, C, H, W] F32
  Tensor signal, sigma;                // [R] F32
  Tensor lossSteps;                    // [R] LossStep
  Tensor out, dOut;                    // [R, Co, H, W] F32
  Tensor terms;                        // [R, 2] F32
  Tensor index;                        // [R] I32: 0, 1, 2, ..: a row's lane and its modulation
  ConditionActivations condition;
  Tensor modulation;  // [R, modulationSize] F32
  EndActivations ends;
  ActivationStore store;
  // Of the backward.
  Tensor dTokens, dTokensLow;
  BlockGradients block;
  FinalGradients final;
  Tensor dFinalModulationLow, dConditionAct, conditionScratch;

  MicroBatch() = default;
  MicroBatch(const DitConfig& config, DType act, const CheckpointPolicy& policy, int64_t rows,
             Arena& arena);
};

// Its size.
size_t microBatchBytes(const DitConfig& config, DType act, const CheckpointPolicy& policy,
                       int64_t rows);

// The largest number of rows, at most `most`, that fits; 0 when not even one does.
int64_t rowsThatFit(const DitConfig& config, DType act, const CheckpointPolicy& policy,
                    int64_t most, size_t bytes);

}  // namespace dit
