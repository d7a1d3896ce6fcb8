// See options.h.
#include "noise/options.h"

namespace torch_ssam::detail {

void check_noise(const NoiseOptions& o) {
  o.check_ranges();
  TORCH_CHECK_VALUE(o.scale() == "isotropic" || o.memory() == "copy", "torch_ssam: memory 'regenerate' with scale '",
                    o.scale(),
                    "': the clean weights that the scale depends on are gone when the noise is to be taken off; "
                    "expected scale 'isotropic'. Use memory 'copy'.");
}

void check_passes(const FusedOptions& o) {
  TORCH_CHECK_VALUE(
      !o.keep_perturbed() || count_passes(o) == 1,
      "torch_ssam: keep_perturbed keeps one perturbation in the parameters, so it goes with samples 1, no "
      "antithetic, clean_weight 0; got samples ",
      o.samples(), ", antithetic ", o.antithetic(), ", clean_weight ", o.clean_weight(),
      ". Use perturbations() without keep_perturbed for several passes a step.");
}

std::int64_t count_passes(const FusedOptions& options) {
  return options.samples() * (options.antithetic() ? 2 : 1) + (options.clean_weight() > 0 ? 1 : 0);
}

GroupNoise noise_of(const NoiseOptions& o, std::int64_t sample, bool negate) {
  GroupNoise noise{{o.noise_std(), o.distribution(), sample, negate}, o.scale(), o.memory() == kRegenerate};
  noise.channel_dim = o.channel_dim();
  return noise;
}

GroupNoise noise_of(const FusedOptions& o, std::int64_t sample, bool negate, std::int64_t draw_offset) {
  GroupNoise noise = noise_of(static_cast<const NoiseOptions&>(o), sample, negate);
  noise.noise.draw_offset = draw_offset;
  noise.masters = o.master_dtype().has_value();
  noise.fisher_factor = o.fisher_factor();
  return noise;
}

}  // namespace torch_ssam::detail
