// The options of a call's noise, checked, and what the noise of a list of tensors needs besides.
//   noise = +-noise_std * z(seed, draw, place, element, sample) * scale, z by csrc/math/noise.h, scale by
//   csrc/math/scale.h: 1, that of the element's row, or that of the clean element.
// Names of distributions and scales, as calls give them, are listed here once (noise.cpp).
// Tests: test_ops_perturb.py, test_ops_scale.py, test_ops_shards.py, test_ops_errors.py.
#pragma once

#include "../math/scale.h"
#include "rows.h"
#include "shards.h"

namespace torch_ssam {

// Of all tensors of a call.
struct NoiseOptions {
  double noise_std = 0;
  math::Distribution distribution = math::Distribution::gaussian;
  math::Scale scale = math::Scale::isotropic;
  int64_t draw_offset = 0;  // added to the generator's draw
  int64_t sample = 0;
  bool negate = false;
  bool alone = false;  // by element: not added to the weights that scale it
  double signed_std() const { return negate ? -noise_std : noise_std; }
};

NoiseOptions check_noise_options(double noise_std, const std::string& distribution,
                                 const std::string& scale = "isotropic", int64_t draw_offset = 0, int64_t sample = 0,
                                 bool negate = false);

// Of a list. References are to the call's arguments.
struct Noise {
  NoiseOptions options;
  const Tensor& generator;
  const std::vector<int64_t>& places;
  RowViews row_scales = {};  // empty but for Scale::rows
  Shards shards = {};        // empty where every tensor is whole
};

using OptionalTensors = std::optional<std::vector<Tensor>>;
using OptionalInts = std::optional<std::vector<int64_t>>;

// `params` are what gets the noise; that they are on the generator's device is for the caller to check.
Noise check_noise(const NoiseOptions& options, const Tensor& generator, const std::vector<int64_t>& places,
                  const TensorViews& params, const OptionalTensors& row_scales, const OptionalInts& shards,
                  int64_t channel_dim = 0);

}  // namespace torch_ssam
