// The update of the SGD family on one element: momentum, dampening, Nesterov, weight decay, ascent, and the gradient
// scale of automatic mixed precision, in the order of torch.optim.SGD, which it follows within 2 ulp a step.
//   g <- sign grad / grad_scale (sign -1 to maximise);  g <- g + weight_decay w
//   v <- momentum v + (1 - dampening) g  (v <- g at the first step);  g <- nesterov ? g + momentum v : v
//   w <- w - lr g
// What is the same for all elements is numbers or template arguments, never a branch, so that loops vectorise.
// Tests: tests/cpp/test_math.cpp, tests/python/test_ops_update.py.
#pragma once

#include "portable.h"

namespace torch_ssam::math {

enum class Momentum : int { none = 0, heavy_ball = 1, nesterov = 2 };

TORCH_SSAM_BODY Momentum momentum_kind(bool has_buffer, bool nesterov) {
  return !has_buffer ? Momentum::none : (nesterov ? Momentum::nesterov : Momentum::heavy_ball);
}

template <typename opmath_t>
struct UpdateParams {
  opmath_t lr;
  opmath_t momentum;
  opmath_t buffer_factor;  // momentum, or 0 at the first step, whose buffer must be finite (the fronts give zeros)
  opmath_t grad_factor;    // 1 - dampening, or 1 at the first step
  opmath_t weight_decay;
  opmath_t sign;
  opmath_t grad_scale;
};

// The numbers of a call from its options, in double. A device that reads lr and grad_scale itself fills them in later.
template <typename opmath_t>
TORCH_SSAM_BODY UpdateParams<opmath_t> make_update_params(double lr, double momentum, double dampening,
                                                          double weight_decay, bool maximize, bool first_step,
                                                          double grad_scale) {
  return {static_cast<opmath_t>(lr),
          static_cast<opmath_t>(momentum),
          static_cast<opmath_t>(first_step ? 0.0 : momentum),
          static_cast<opmath_t>(first_step ? 1.0 : 1.0 - dampening),
          static_cast<opmath_t>(weight_decay),
          static_cast<opmath_t>(maximize ? -1.0 : 1.0),
          static_cast<opmath_t>(grad_scale)};
}

// Automatic mixed precision scales the loss, and so the gradient, by grad_scale.
template <typename opmath_t>
TORCH_SSAM_BODY opmath_t unscale_gradient(opmath_t grad, opmath_t grad_scale) {
  return grad / grad_scale;
}

// With Momentum::none the buffer is neither read nor written; with kScaled false there is no grad_scale.
template <Momentum kMomentum, bool kScaled, typename opmath_t>
TORCH_SSAM_BODY opmath_t update_element(opmath_t clean, opmath_t grad, opmath_t& momentum_buffer,
                                        const UpdateParams<opmath_t>& p) {
  opmath_t g = p.sign * (kScaled ? unscale_gradient(grad, p.grad_scale) : grad);
  g = p.weight_decay != opmath_t(0) ? fused_multiply_add(p.weight_decay, clean, g) : g;
  if (kMomentum != Momentum::none) {
    momentum_buffer = fused_multiply_add(p.buffer_factor, momentum_buffer, p.grad_factor * g);
    g = kMomentum == Momentum::nesterov ? fused_multiply_add(p.momentum, momentum_buffer, g) : momentum_buffer;
  }
  return fused_multiply_add(-p.lr, g, clean);
}

}  // namespace torch_ssam::math
