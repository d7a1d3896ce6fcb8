// Operators that put noise on weights and take it off again.
//   perturb_            saves the clean weights, then writes clean + noise into the parameters
//   perturb_from_clean_ writes clean + noise, from clean weights saved before (the next sample, or the next draw)
//   perturbed           clean + noise, or with noise_only the noise alone, as a new tensor
//   restore_            writes the clean weights back, bit for bit; float32 ones rounded to 16-bit parameters
// noise = +-noise_std * z(seed, draw, place, element, sample) * scale, z by csrc/math/noise.h, scale by
// csrc/math/scale.h: 1, that of the element's row, or that of the clean element. Tests: test_ops_perturb.py,
// test_ops_scale.py.
#pragma once

#include "scale.h"
#include "shards.h"

namespace torch_ssam {

struct NoiseOptions {
  double noise_std;
  math::Distribution distribution;
  int64_t sample;
  bool negate;
  int64_t draw_offset;  // added to the generator's draw
  math::Scale scale = math::Scale::isotropic;
  double signed_std() const { return negate ? -noise_std : noise_std; }
};

TORCH_SSAM_EXPORT NoiseOptions check_noise(double noise_std, const std::string& distribution, int64_t sample,
                                           bool negate, int64_t draw_offset, const std::string& scale = "isotropic");

struct PerturbArgs {
  TensorViews params;
  TensorViews clean;
  NoiseOptions noise;
  RowViews row_scales;  // empty but for Scale::rows
  Shards shards;        // empty where every tensor is whole
};

// `save` says that the parameters hold the clean weights and `clean` receives them (then the dtypes must agree).
TORCH_SSAM_EXPORT PerturbArgs check_perturb(const std::vector<Tensor>& params, const std::vector<Tensor>& clean,
                                            const Tensor& generator, const std::vector<int64_t>& places,
                                            const NoiseOptions& noise,
                                            const std::optional<std::vector<Tensor>>& row_scales,
                                            const std::optional<std::vector<int64_t>>& shards, bool save,
                                            const std::optional<Tensor>& found_inf = {});

// What is to be perturbed where noise alone is asked for: zeros, or the weights where noise depends on each of them.
TORCH_SSAM_EXPORT Tensor source_of_noise(const Tensor& weights, math::Scale scale);

TORCH_SSAM_EXPORT void check_advance(const Tensor& generator, const std::optional<Tensor>& found_inf);

struct RestoreArgs {
  TensorViews params;
  TensorViews clean;
};

TORCH_SSAM_EXPORT RestoreArgs check_restore(const std::vector<Tensor>& params, const std::vector<Tensor>& clean);

}  // namespace torch_ssam
