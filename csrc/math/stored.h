// The bodies of noise.h and rules.h between stored values: where numbers are rounded to the stored type, and in what
// order, is part of the contract that all backends share. master_t is how clean weights and a rule's buffers are
// stored, model_t how parameters and gradients are. Tests: test_kernels.cpp, test_cuda*_on_host.cpp,
// test_ops_update.py.
#pragma once

#include "noise.h"
#include "reduce.h"
#include "rules.h"
#include "scale.h"
#include "storage.h"

namespace torch_ssam::math {

// A clean weight as the parameter stores it: one rounding, none where the types are the same.
template <typename model_t, typename master_t>
TORCH_SSAM_BODY model_t round_stored(master_t clean) {
  return Store<model_t>::from(load_scalar(clean));
}

// The largest magnitude of a row once it is clipped: what is clipped is rounded as it is stored.
template <typename master_t>
TORCH_SSAM_BODY double clipped_largest(double largest, double limit) {
  using math_t = opmath_t<master_t>;
  const math_t clipped = clip_element(static_cast<math_t>(largest), static_cast<math_t>(limit));
  return static_cast<double>(load_scalar(Store<master_t>::from(clipped)));
}

// The clean weight of a parameter that others may have written to: as it was, where the parameter still holds its
// rounding, else what the parameter holds.
template <typename model_t, typename master_t>
TORCH_SSAM_BODY master_t follow_stored(master_t clean, model_t param) {
  const opmath_t<master_t> now = static_cast<opmath_t<master_t>>(load_scalar(param));
  const opmath_t<master_t> left = static_cast<opmath_t<master_t>>(load_scalar(round_stored<model_t>(clean)));
  return now == left ? clean : Store<master_t>::from(now);
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

// Reads clean weight, gradient and the rule's buffers, writes the buffers and returns the new clean weight as stored. A
// perturbed weight is made from this, so that restoring and perturbing again agrees.
template <typename Rule, typename Rule::Kind kKind, typename master_t, typename model_t, typename... Buffers>
TORCH_SSAM_BODY master_t update_stored(master_t clean, model_t grad,
                                       const typename Rule::template Params<opmath_t<master_t>>& p,
                                       Buffers*... buffers) {
  using math_t = opmath_t<master_t>;
  static_assert(sizeof...(Buffers) == Rule::buffers_of(kKind));
  math_t state[] = {load_scalar(*buffers)..., math_t(0)};  // one more, so that there is an array in any case
  const math_t updated =
      Rule::template update_element<kKind>(load_scalar(clean), static_cast<math_t>(load_scalar(grad)), state, p);
  [[maybe_unused]] int k = 0;
  ((*buffers = Store<master_t>::from(state[k++])), ...);
  return Store<master_t>::from(updated);
}

}  // namespace torch_ssam::math
