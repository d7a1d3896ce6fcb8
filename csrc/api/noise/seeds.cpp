// See seeds.h.
#include "noise/seeds.h"

#include <ATen/Functions.h>

namespace torch_ssam::detail {

std::int64_t resolve_seed(std::optional<std::int64_t> seed) {
  if (seed) return *seed;
  return at::randint(0, std::int64_t{1} << 62, {1}, at::kLong).item<std::int64_t>();
}

void check_group_seed(std::optional<std::int64_t> of_group, std::int64_t seed) {
  TORCH_CHECK_VALUE(!of_group || *of_group == seed, "torch_ssam: a parameter group has seed ", of_group.value_or(0),
                    " and the seed is ", seed,
                    "; expected none in a group, since one seed serves all. Set it in the options that are not of a "
                    "group.");
}

}  // namespace torch_ssam::detail
