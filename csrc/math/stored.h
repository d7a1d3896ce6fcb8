// The bodies of noise.h and update.h between stored values: where numbers are rounded to the stored type, and in what
// order, is part of the contract that all backends share. master_t is how clean weights and momentum are stored,
// model_t how parameters and gradients are. Tests: test_kernels.cpp, test_cuda*_on_host.cpp, test_ops_update.py.
#pragma once

#include "noise.h"
#include "scale.h"
#include "storage.h"
#include "update.h"

namespace torch_ssam::math {

// A clean weight as the parameter stores it: one rounding, none where the types are the same.
template <typename model_t, typename master_t>
TORCH_SSAM_BODY model_t round_stored(master_t clean) {
  return Store<model_t>::from(load_scalar(clean));
}

// One rounding in opmath, one to the stored type.
template <typename model_t, typename master_t>
TORCH_SSAM_BODY model_t perturb_stored(master_t clean, opmath_t<master_t> noise_std, float noise) {
  return Store<model_t>::from(perturb_element(load_scalar(clean), noise_std, noise));
}

// The same with the element's own scale; with noise_only, what it adds alone.
template <typename model_t, typename master_t>
TORCH_SSAM_BODY model_t perturb_stored_by_element(master_t clean, opmath_t<master_t> noise_std, float noise,
                                                  bool noise_only) {
  const opmath_t<master_t> w = load_scalar(clean);
  const opmath_t<master_t> base = noise_only ? opmath_t<master_t>(0) : w;
  return Store<model_t>::from(perturb_element(base, noise_std, scale_noise(noise, element_scale(w))));
}

// Reads clean weight, gradient and momentum buffer, writes the buffer (not touched where there is no momentum) and
// returns the new clean weight as stored. A perturbed weight is made from this, so that restoring and perturbing again
// agrees.
template <Momentum kMomentum, bool kScaled, typename master_t, typename model_t>
TORCH_SSAM_BODY master_t update_stored(master_t clean, model_t grad, master_t* buffer,
                                       const UpdateParams<opmath_t<master_t>>& p) {
  using math_t = opmath_t<master_t>;
  math_t moved = kMomentum != Momentum::none ? load_scalar(*buffer) : math_t(0);
  const math_t updated =
      update_element<kMomentum, kScaled>(load_scalar(clean), static_cast<math_t>(load_scalar(grad)), moved, p);
  if (kMomentum != Momentum::none) *buffer = Store<master_t>::from(moved);
  return Store<master_t>::from(updated);
}

}  // namespace torch_ssam::math
