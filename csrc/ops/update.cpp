// Schemas and checks of the operators in update.h.
#include "update.h"

#include <cmath>

namespace torch_ssam {

STABLE_TORCH_LIBRARY_FRAGMENT(torch_ssam, m) {
  m.def(
      "update_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] momentum_buffers, float lr, float momentum=0, "
      "float dampening=0, float weight_decay=0, bool nesterov=False, bool maximize=False, bool first_step=False, "
      "Tensor? lr_tensor=None, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()");
  m.def(
      "update_and_perturb_(Tensor(a!)[] params, Tensor(b!)[] clean, Tensor[] grads, Tensor(c!)[] momentum_buffers, "
      "Tensor generator, int[] places, float lr, float momentum, float dampening, float weight_decay, bool nesterov, "
      "bool maximize, bool first_step, float noise_std, str distribution='gaussian', int sample=0, bool negate=False, "
      "int draw_offset=0, Tensor? lr_tensor=None, Tensor? grad_scale=None, Tensor? found_inf=None, "
      "str scale='isotropic', int[]? shards=None) -> ()");
  m.def("project_(Tensor(a!)[] weights, float radius) -> ()");
}

UpdateOptions check_update_options(double lr, double momentum, double dampening, double weight_decay, bool nesterov,
                                   bool maximize, bool first_step) {
  check_finite_nonnegative(lr, "lr");
  check_finite_nonnegative(momentum, "momentum");
  check_finite_nonnegative(weight_decay, "weight_decay");
  TORCH_SSAM_CHECK(std::isfinite(dampening), "dampening is ", dampening, "; expected a finite number.");
  TORCH_SSAM_CHECK(!nesterov || (momentum > 0 && dampening == 0), "nesterov=True with momentum ", momentum,
                   " and dampening ", dampening, "; Nesterov momentum expects momentum > 0 and dampening 0.");
  return {lr, momentum, dampening, weight_decay, nesterov, maximize, first_step};
}

UpdateTensors check_update(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads,
                           const std::vector<Tensor>& momentum_buffers, const std::vector<Tensor>* params,
                           const UpdateOptions& options, const std::optional<Tensor>& lr_tensor,
                           const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf) {
  UpdateTensors t{view_parameters(weights, "weights", Use::writes),
                  view_parameters(grads, "grads", Use::reads),
                  view_parameters(momentum_buffers, "momentum_buffers", Use::writes),
                  params != nullptr ? view_parameters(*params, "params", Use::writes) : TensorViews{},
                  grad_scale,
                  found_inf,
                  lr_tensor};
  // float32 clean weights may go with 16-bit gradients: the loops name the pairs that they have.
  check_matches(t.grads, "grads", t.weights, "weights", /*any_dtype=*/true);
  if (params != nullptr) {
    check_matches(t.params, "params", t.weights, "weights", /*any_dtype=*/true);
    check_matches(t.grads, "grads", t.params, "params");
  }
  TORCH_SSAM_CHECK((options.momentum != 0) == !momentum_buffers.empty() || weights.empty(), "momentum is ",
                   options.momentum, " and there are ", momentum_buffers.size(),
                   " momentum_buffers; expected one a tensor where momentum is not 0, and none where it is.");
  if (!momentum_buffers.empty()) check_matches(t.momentum_buffers, "momentum_buffers", t.weights, "weights");
  if (!weights.empty()) {
    check_one_device(weights, "weights", weights[0], "weights[0]");
    check_one_device(grads, "grads", weights[0], "weights[0]");
    check_one_device(momentum_buffers, "momentum_buffers", weights[0], "weights[0]");
    if (params != nullptr) check_one_device(*params, "params", weights[0], "weights[0]");
  }
  check_number(lr_tensor, "lr", weights, "weights[0]");
  check_number(grad_scale, "grad_scale", weights, "weights[0]");
  check_number(found_inf, "found_inf", weights, "weights[0]");
  return t;
}

NoiseOptions check_fused_noise(double noise_std, const std::string& distribution, int64_t sample, bool negate,
                               int64_t draw_offset, const std::string& scale) {
  TORCH_SSAM_CHECK(scale != "rows",
                   "scale is 'rows'; update_and_perturb_ takes 'isotropic' or 'element'. Call update_, row_scales_ and "
                   "perturb_from_clean_: the norms are those of the updated weights.");
  return check_noise(noise_std, distribution, sample, negate, draw_offset, scale);
}

TensorViews check_project(const std::vector<Tensor>& weights, double radius) {
  TORCH_SSAM_CHECK(std::isfinite(radius) && radius > 0, "radius is ", radius, "; expected a finite number > 0.");
  TensorViews views = view_parameters(weights, "weights", Use::writes);
  if (!weights.empty()) check_one_device(weights, "weights", weights[0], "weights[0]");
  return views;
}

}  // namespace torch_ssam
