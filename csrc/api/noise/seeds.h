// Seeds: given, drawn from torch's generator, one for all groups. Tests: tests/cpp/test_api_errors.cpp,
// test_api_noise.cpp.
#pragma once

#include <cstdint>
#include <optional>

namespace torch_ssam::detail {

// As given, or drawn from torch's default generator exactly as Python draws it.
std::int64_t resolve_seed(std::optional<std::int64_t> seed);

// One seed serves all groups: a group may only repeat it.
void check_group_seed(std::optional<std::int64_t> of_group, std::int64_t seed);

}  // namespace torch_ssam::detail
