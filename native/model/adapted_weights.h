#pragma once

#include <cstdint>
#include <memory>

#include "model/dit_config.h"
#include "model/weights.h"

// Fine-tuning: the weights of a DiT as those of one with another patch size, or other classes. All
// else stays; the position embedding does not come from here where the grid of tokens changes.

namespace dit {

// `from` is the size of `stored`, `to` may differ from it in patch, height, width and classes.
//
// Patches of p x p pixels become q x q. Let R [q q, p p] resize one (bilinear, widened where it
// shrinks, so that every pixel counts).
//
//   embedding    w' = pinv(R^T) w for each channel (Beyer et al. 2023, "FlexiViT", section 3.2):
//   the
//                kernel whose product with R x is nearest to that of w with x; where q > p, equal
//   last layer   W' = R W and b' = R b: what was made of a patch, resized
//
// So where patches grow, and the latent with them (the same tokens), the model of resized patches
// is the resized model: f'(R x) = R f(x).
//
// Other classes: their rows of the label table are the null class's, which stays, plus the
// deviation of 0.02 that a table begins with (Peebles & Xie 2022): a new class begins as no class.
// Without a null class, that deviation alone. They follow from `seed`.
std::unique_ptr<WeightSource> adaptWeights(std::unique_ptr<WeightSource> stored,
                                           const DitConfig& from, const DitConfig& to,
                                           uint64_t seed);

}  // namespace dit
