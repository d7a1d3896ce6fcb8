// The update of the SGD family on one element: momentum, dampening, Nesterov, weight decay and ascent, in the order of
// torch.optim.SGD, which it follows within 2 ulp a step.
//   g <- sign grad (sign -1 to maximise);  g <- g + weight_decay w
//   v <- momentum v + (1 - dampening) g  (v <- g at the first step);  g <- nesterov ? g + momentum v : v
//   w <- w - lr g
// What is the same for all elements is numbers or template arguments, never a branch, so that loops vectorise. What a
// rule has to say of itself: rule.h. Tests: tests/cpp/test_math.cpp, tests/python/test_ops_update.py.
#pragma once

#include "rule.h"

namespace torch_ssam::math {

struct Sgd {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize;

  static constexpr const char* kName = "sgd";
  static constexpr RuleNumber kNumbers[] = {{"lr", kNonnegative},     {"momentum", kNonnegative},
                                            {"dampening", kFinite},   {"weight_decay", kNonnegative},
                                            {"nesterov", kZeroOrOne}, {"maximize", kZeroOrOne}};
  static constexpr const char* kBuffers[] = {"momentum_buffer"};
  static constexpr bool kCountsSteps = false;

  static constexpr Sgd from(const double* numbers) {
    return {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] != 0.0, numbers[5] != 0.0};
  }

  enum class Kind : int { plain = 0, heavy_ball = 1, nesterov = 2 };
  static constexpr int kKinds = 3;
  TORCH_SSAM_BODY constexpr Kind kind_of(const Sgd& rule) {
    return rule.momentum == 0.0 ? Kind::plain : (rule.nesterov ? Kind::nesterov : Kind::heavy_ball);
  }
  TORCH_SSAM_BODY constexpr int buffers_of(Kind kind) { return kind == Kind::plain ? 0 : 1; }

  template <typename opmath_t>
  struct Params {
    opmath_t lr;
    opmath_t momentum;
    opmath_t buffer_factor;  // momentum, or 0 at the first step, whose buffer must be finite (the fronts give zeros)
    opmath_t grad_factor;    // 1 - dampening, or 1 at the first step
    opmath_t weight_decay;
    opmath_t sign;
  };

  template <typename opmath_t>
  TORCH_SSAM_BODY Params<opmath_t> params(const Sgd& rule, int64_t step) {
    const bool first = step == 1;
    return {static_cast<opmath_t>(rule.lr),
            static_cast<opmath_t>(rule.momentum),
            static_cast<opmath_t>(first ? 0.0 : rule.momentum),
            static_cast<opmath_t>(first ? 1.0 : 1.0 - rule.dampening),
            static_cast<opmath_t>(rule.weight_decay),
            static_cast<opmath_t>(rule.maximize ? -1.0 : 1.0)};
  }

  template <typename opmath_t>
  TORCH_SSAM_BODY void set_lr(Params<opmath_t>& p, double lr) {
    p.lr = static_cast<opmath_t>(lr);
  }

  template <Kind kKind, typename opmath_t, int kCount>
  TORCH_SSAM_BODY opmath_t update_element(opmath_t clean, opmath_t grad, opmath_t (&buffers)[kCount],
                                          const Params<opmath_t>& p) {
    opmath_t g = p.sign * grad;
    g = p.weight_decay != opmath_t(0) ? fused_multiply_add(p.weight_decay, clean, g) : g;
    if constexpr (kKind != Kind::plain) {
      opmath_t& v = buffers[0];
      v = fused_multiply_add(p.buffer_factor, v, p.grad_factor * g);
      g = kKind == Kind::nesterov ? fused_multiply_add(p.momentum, v, g) : v;
    }
    return fused_multiply_add(-p.lr, g, clean);
  }
};

}  // namespace torch_ssam::math
