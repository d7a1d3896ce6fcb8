// The checks of noise.h.
#include "noise.h"

namespace torch_ssam {
namespace {

constexpr Named<math::Distribution> kDistributions[] = {{"gaussian", math::Distribution::gaussian},
                                                        {"rademacher", math::Distribution::rademacher}};
constexpr Named<math::Scale> kScales[] = {
    {"isotropic", math::Scale::isotropic}, {"rows", math::Scale::rows}, {"element", math::Scale::element}};

}  // namespace

SharedNoise check_shared_noise(const NoiseArguments& arguments) {
  check_finite_nonnegative(arguments.noise_std, "noise_std");
  TORCH_SSAM_CHECK(arguments.sample >= 0 && arguments.sample <= 0xffffffffLL, "sample is ", arguments.sample,
                   "; expected 0 to 2^32 - 1.");
  return {arguments.noise_std,
          find_named(arguments.distribution, "distribution", kDistributions),
          find_named(arguments.scale, "scale", kScales),
          arguments.draw_offset,
          arguments.sample,
          arguments.negate};
}

Noise check_noise(const SharedNoise& shared, const NoiseArguments& arguments, const Tensor& generator,
                  const std::vector<int64_t>& places, const TensorViews& params) {
  check_places(places, params.size());
  Noise noise{shared, view_generator(generator), places};
  static const OptionalInts whole;
  noise.shards = check_shards(arguments.shards == nullptr ? whole : *arguments.shards, params);
  const bool by_rows = shared.scale == math::Scale::rows;
  const std::vector<Tensor>* row_scales =
      arguments.row_scales != nullptr && arguments.row_scales->has_value() ? &**arguments.row_scales : nullptr;
  TORCH_SSAM_CHECK(by_rows == (row_scales != nullptr), "scale is ", by_rows ? "" : "not ", "'rows' and row_scales are ",
                   by_rows ? "missing" : "given", "; expected them with 'rows' and with nothing else.");
  if (by_rows) {
    noise.row_scales = view_rows(*row_scales, "row_scales", params, "params", arguments.channel_dim);
    check_one_device(*row_scales, "row_scales", generator, "generator");
  }
  return noise;
}

}  // namespace torch_ssam
