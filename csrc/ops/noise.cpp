// The checks of noise.h.
#include "noise.h"

#include "backend.h"

namespace torch_ssam {
namespace {

constexpr Named<math::Distribution> kDistributions[] = {{"gaussian", math::Distribution::gaussian},
                                                        {"rademacher", math::Distribution::rademacher}};
constexpr Named<math::Scale> kScales[] = {
    {"isotropic", math::Scale::isotropic}, {"rows", math::Scale::rows}, {"element", math::Scale::element}};

}  // namespace

NoiseOptions check_noise_options(double noise_std, const std::string& distribution, const std::string& scale,
                                 int64_t draw_offset, int64_t sample, bool negate) {
  check_finite_nonnegative(noise_std, "noise_std");
  TORCH_SSAM_CHECK(sample >= 0 && sample <= 0xffffffffLL, "sample is ", sample, "; expected 0 to 2^32 - 1.");
  return {noise_std,
          find_named(distribution, "distribution", kDistributions),
          find_named(scale, "scale", kScales),
          draw_offset,
          sample,
          negate};
}

Noise check_noise(const NoiseOptions& options, const Tensor& generator, const std::vector<int64_t>& places,
                  const TensorViews& params, const OptionalTensors& row_scales, const OptionalInts& shards,
                  int64_t channel_dim) {
  check_places(places, params.size());
  check_generator(generator);
  Noise noise{options, generator, places, {}, check_shards(shards, params)};
  TORCH_SSAM_CHECK(noise.shards.empty() || backend_of(generator).has_shards,
                   "noise of a shard of a tensor has no CUDA kernels in this version; expected whole tensors on a GPU "
                   "(DistributedDataParallel), or shards on the CPU.");
  const bool by_rows = options.scale == math::Scale::rows;
  TORCH_SSAM_CHECK(by_rows == row_scales.has_value(), "scale is ", by_rows ? "" : "not ", "'rows' and row_scales are ",
                   by_rows ? "missing" : "given", "; expected them with 'rows' and with nothing else.");
  if (by_rows) {
    noise.row_scales = view_rows(*row_scales, "row_scales", params, "params", channel_dim);
    check_one_device(*row_scales, "row_scales", generator, "generator");
  }
  return noise;
}

}  // namespace torch_ssam
