// Schemas and checks of the operators in perturb.h, and of `advance_`, which moves the generator to the next draw.
#include "perturb.h"

namespace torch_ssam {

STABLE_TORCH_LIBRARY_FRAGMENT(torch_ssam, m) {
  m.def(
      "perturb_(Tensor(a!)[] params, Tensor(b!)[] clean, Tensor generator, int[] places, float noise_std, "
      "str distribution='gaussian', int sample=0, bool negate=False, int draw_offset=0, str scale='isotropic', "
      "Tensor[]? row_scales=None, int[]? shards=None) -> ()");
  m.def(
      "perturb_from_clean_(Tensor(a!)[] params, Tensor[] clean, Tensor generator, int[] places, float noise_std, "
      "str distribution='gaussian', int sample=0, bool negate=False, int draw_offset=0, Tensor? found_inf=None, "
      "str scale='isotropic', Tensor[]? row_scales=None, int[]? shards=None) -> ()");
  m.def(
      "perturbed(Tensor weights, Tensor generator, int place, float noise_std, str distribution='gaussian', "
      "int sample=0, bool negate=False, int draw_offset=0, str scale='isotropic', Tensor[]? row_scales=None, "
      "int[]? shards=None, bool noise_only=False) -> Tensor");
  m.def("restore_(Tensor(a!)[] params, Tensor[] clean) -> ()");
  m.def("advance_(Tensor(a!) generator, int draws, Tensor? found_inf=None) -> ()");
}

NoiseOptions check_noise(double noise_std, const std::string& distribution, int64_t sample, bool negate,
                         int64_t draw_offset, const std::string& scale) {
  check_finite_nonnegative(noise_std, "noise_std");
  TORCH_SSAM_CHECK(sample >= 0 && sample <= 0xffffffffLL, "sample is ", sample, "; expected 0 to 2^32 - 1.");
  return {noise_std, parse_distribution(distribution), sample, negate, draw_offset, parse_scale(scale)};
}

PerturbArgs check_perturb(const std::vector<Tensor>& params, const std::vector<Tensor>& clean, const Tensor& generator,
                          const std::vector<int64_t>& places, const NoiseOptions& noise,
                          const std::optional<std::vector<Tensor>>& row_scales,
                          const std::optional<std::vector<int64_t>>& shards, bool save,
                          const std::optional<Tensor>& found_inf) {
  PerturbArgs args{view_parameters(params, "params", Use::writes),
                   view_parameters(clean, "clean", save ? Use::writes : Use::reads),
                   noise,
                   {},
                   {}};
  check_matches(args.clean, "clean", args.params, "params", /*any_dtype=*/!save);
  check_places(places, params.size());
  check_generator(generator);
  check_one_device(params, "params", generator, "generator");
  check_one_device(clean, "clean", generator, "generator");
  check_number(found_inf, "found_inf", {generator}, "generator");
  args.shards = check_shards(shards, args.params);
  const bool by_rows = noise.scale == math::Scale::rows;
  TORCH_SSAM_CHECK(by_rows == row_scales.has_value(), "scale is ", by_rows ? "" : "not ", "'rows' and row_scales are ",
                   by_rows ? "missing" : "given", "; expected them with 'rows' and with nothing else.");
  if (by_rows) {
    args.row_scales = view_rows(*row_scales, "row_scales", args.params, "params");
    check_one_device(*row_scales, "row_scales", generator, "generator");
  }
  return args;
}

Tensor source_of_noise(const Tensor& weights, math::Scale scale) {
  if (scale == math::Scale::element) return weights;
  Tensor zeros = torch::stable::empty_like(weights);
  torch::stable::zero_(zeros);
  return zeros;
}

void check_advance(const Tensor& generator, const std::optional<Tensor>& found_inf) {
  check_generator(generator);
  check_number(found_inf, "found_inf", {generator}, "generator");
}

RestoreArgs check_restore(const std::vector<Tensor>& params, const std::vector<Tensor>& clean) {
  RestoreArgs args{view_parameters(params, "params", Use::writes), view_parameters(clean, "clean", Use::reads)};
  check_matches(args.clean, "clean", args.params, "params", /*any_dtype=*/true);
  if (!params.empty()) {
    check_one_device(params, "params", params[0], "params[0]");
    check_one_device(clean, "clean", params[0], "params[0]");
  }
  return args;
}

}  // namespace torch_ssam
