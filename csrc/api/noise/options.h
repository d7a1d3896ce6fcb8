// What goes together among the options of noise, with the wording of Python's noise/options.py. The options and their
// ranges are in <torch_ssam/noise/options.h>. Tests: tests/cpp/test_api_errors.cpp.
#pragma once

#include <torch_ssam/optim/options.h>

#include <cstdint>

#include "noise/scales.h"

namespace torch_ssam::detail {

inline constexpr const char* kRegenerate = "regenerate";

// Throws ValueError for options that are out of range or do not go together.
void check_noise(const NoiseOptions& options);
void check_passes(const FusedOptions& options);

// The passes of a step, without a list of them: what to refuse may be long.
std::int64_t count_passes(const FusedOptions& options);

// What the noise of a group is, of a pass of a step.
GroupNoise noise_of(const NoiseOptions& options, std::int64_t sample = 0, bool negate = false);
GroupNoise noise_of(const FusedOptions& options, std::int64_t sample = 0, bool negate = false,
                    std::int64_t draw_offset = 0);

}  // namespace torch_ssam::detail
