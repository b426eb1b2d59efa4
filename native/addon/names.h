#pragma once

#include <array>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/tensor.h"
#include "model/runner.h"

// The words of bindings.d.ts for the values of enumerations.

namespace dit::addon {

template <typename T, size_t n>
using Names = std::array<std::pair<const char*, T>, n>;

// The value whose name is `text`.
template <typename T, size_t n>
T named(const Names<T, n>& names, const std::string& text, const char* what) {
  for (const auto& [name, value] : names) {
    if (text == name) return value;
  }
  fail(ErrorCode::Internal, "Unknown ", what, " '", text, "'");
}

// The other way.
template <typename T, size_t n>
const char* nameOf(const Names<T, n>& names, T value) {
  for (const auto& [name, other] : names) {
    if (other == value) return name;
  }
  fail(ErrorCode::Internal, "A value without a name");
}

inline constexpr std::array kPrecisions{std::pair{"fp32", Precision::F32},
                                        std::pair{"tf32", Precision::TF32},
                                        std::pair{"bf16", Precision::BF16}};
inline constexpr std::array kSamplers{std::pair{"ddpm", SamplerKind::Ddpm},
                                      std::pair{"ddim", SamplerKind::Ddim},
                                      std::pair{"dpm++", SamplerKind::DpmSolver}};
inline constexpr std::array kPreviews{std::pair{"linear", PreviewKind::Linear},
                                      std::pair{"decode", PreviewKind::Decode}};
inline constexpr std::array kSchedules{std::pair{"linear", BetaSchedule::Linear},
                                       std::pair{"cosine", BetaSchedule::Cosine}};
inline constexpr std::array kDTypes{std::pair{"F64", DType::F64}, std::pair{"F32", DType::F32},
                                    std::pair{"F16", DType::F16}, std::pair{"BF16", DType::BF16},
                                    std::pair{"I64", DType::I64}, std::pair{"I32", DType::I32},
                                    std::pair{"U8", DType::U8}};
// Whether the variance's bound is part of the loss.
inline constexpr std::array kLosses{std::pair{"hybrid", true}, std::pair{"mse", false}};
inline constexpr std::array kParts{std::pair{"dit", SaveRequest::Part::Weights},
                                   std::pair{"vae", SaveRequest::Part::Vae},
                                   std::pair{"model", SaveRequest::Part::Model},
                                   std::pair{"ema", SaveRequest::Part::Ema},
                                   std::pair{"expAvg", SaveRequest::Part::FirstMoment},
                                   std::pair{"expAvgSq", SaveRequest::Part::SecondMoment}};
inline constexpr std::array kOutcomes{std::pair{"applied", StepOutcome::Applied},
                                      std::pair{"nonFinite", StepOutcome::NonFinite},
                                      std::pair{"spike", StepOutcome::Spike}};

}  // namespace dit::addon
