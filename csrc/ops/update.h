// Operators that update clean weights from gradients.
//   update_             weights <- update(weights, grads, momentum_buffers)
//   update_and_perturb_ clean <- update(clean, grads, momentum_buffers); params <- clean + noise, one pass over memory.
//                       With noise_std 0 no noise is made: params <- clean, rounded to their dtype
//   project_            scales the stacked weights onto the Euclidean ball of a radius ([CLS] Theorem 4.4)
// The update is csrc/math/update.h's. momentum_buffers is empty where momentum is 0. With found_inf (a float tensor of
// one element, as torch.amp gives it) set to non-zero, nothing is written. Tests: test_ops_update.py.
#pragma once

#include "perturb.h"

namespace torch_ssam {

struct UpdateOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first_step;
};

TORCH_SSAM_EXPORT UpdateOptions check_update_options(double lr, double momentum, double dampening, double weight_decay,
                                                     bool nesterov, bool maximize, bool first_step);

struct UpdateTensors {
  TensorViews weights;  // clean
  TensorViews grads;
  TensorViews momentum_buffers;
  TensorViews params;  // perturbed; empty for update_
  std::optional<Tensor> grad_scale, found_inf, lr_tensor;
};

// `params` is null for update_.
TORCH_SSAM_EXPORT UpdateTensors check_update(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads,
                                             const std::vector<Tensor>& momentum_buffers,
                                             const std::vector<Tensor>* params, const UpdateOptions& options,
                                             const std::optional<Tensor>& lr_tensor,
                                             const std::optional<Tensor>& grad_scale,
                                             const std::optional<Tensor>& found_inf);

// Row scales need the norms of the updated weights, which one pass over memory does not have.
TORCH_SSAM_EXPORT NoiseOptions check_fused_noise(double noise_std, const std::string& distribution, int64_t sample,
                                                 bool negate, int64_t draw_offset, const std::string& scale);

TORCH_SSAM_EXPORT TensorViews check_project(const std::vector<Tensor>& weights, double radius);

}  // namespace torch_ssam
