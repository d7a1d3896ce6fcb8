// The options of the noise of one parameter group: their ranges and what goes together, with the bounds and wording of
// Python's noise/options.py. They serve the optimizers and WeightNoise. Tests: tests/cpp/test_api_errors.cpp.
#pragma once

#include <torch_ssam/ssam.h>

#include <cstdint>
#include <string>

namespace torch_ssam::detail {

inline constexpr const char* kRegenerate = "regenerate";

void check_noise(double noise_std, const std::string& distribution, const std::string& scale,
                 const std::string& memory);
std::int64_t passes_of(const SSAMOptions& options);

}  // namespace torch_ssam::detail
