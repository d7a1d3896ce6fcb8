// See options.h.
#include "noise/options.h"

#include <algorithm>

#include "checks.h"

namespace torch_ssam::detail {

void check_noise(double noise_std, const std::string& distribution, const std::string& scale,
                 const std::string& memory) {
  check_number("noise_std", noise_std);
  TORCH_CHECK_VALUE(distribution == "gaussian" || distribution == "rademacher", "torch_ssam: distribution is '",
                    distribution, "'; expected 'gaussian' or 'rademacher'.");
  TORCH_CHECK_VALUE(memory == "copy" || memory == kRegenerate, "torch_ssam: memory is '", memory,
                    "'; expected 'copy' or 'regenerate'.");
  const auto known = {"isotropic", "tensor", "filter", "element", "fisher"};
  TORCH_CHECK_VALUE(std::find(known.begin(), known.end(), scale) != known.end(), "torch_ssam: scale is '", scale,
                    "'; expected one of 'isotropic', 'tensor', 'filter', 'element', 'fisher'.");
  TORCH_CHECK_VALUE(scale == "isotropic" || memory == "copy", "torch_ssam: memory 'regenerate' with scale '", scale,
                    "': the clean weights that the scale depends on are gone when the noise is to be taken off; "
                    "expected scale 'isotropic'. Use memory 'copy'.");
}

std::int64_t passes_of(const SSAMOptions& options) {
  return options.samples() * (options.antithetic() ? 2 : 1) + (options.clean_weight() > 0 ? 1 : 0);
}

}  // namespace torch_ssam::detail
