// AdamW (Loshchilov and Hutter, arXiv 1711.05101) on one element, in the order of torch.optim.AdamW(foreach=False),
// which it follows within 2 ulp of max(|w|, lr) a step. At step t, counted from 1, with g <- sign grad:
//   m <- m + (1 - beta1) (g - m);  v <- beta2 v + (1 - beta2) g^2;  x = v, with amsgrad x <- max(x, v)
//   w <- (1 - lr weight_decay) w - lr / (1 - beta1^t) m / (sqrt(x) / sqrt(1 - beta2^t) + eps)
// One division and one root an element: what depends on t alone is computed before, in double. What a rule has to say
// of itself: rule.h. Tests: tests/cpp/test_math.cpp, tests/python/test_ops_adamw.py.
#pragma once

#include "../power.h"
#include "rule.h"

namespace torch_ssam::math {

struct AdamW {
  double lr, beta1, beta2, eps, weight_decay;
  bool amsgrad, maximize;

  static constexpr const char* kName = "adamw";
  static constexpr RuleNumber kNumbers[] = {
      {"lr", kNonnegative},           {"beta1", kBelowOne},    {"beta2", kBelowOne},    {"eps", kNonnegative},
      {"weight_decay", kNonnegative}, {"amsgrad", kZeroOrOne}, {"maximize", kZeroOrOne}};
  static constexpr const char* kBuffers[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr bool kCountsSteps = true;

  static constexpr AdamW from(const double* numbers) {
    return {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5] != 0.0, numbers[6] != 0.0};
  }

  enum class Kind : int { plain = 0, amsgrad = 1 };
  static constexpr int kKinds = 2;
  TORCH_SSAM_BODY constexpr Kind kind_of(const AdamW& rule) { return rule.amsgrad ? Kind::amsgrad : Kind::plain; }
  TORCH_SSAM_BODY constexpr int buffers_of(Kind kind) { return kind == Kind::plain ? 2 : 3; }

  template <typename opmath_t>
  struct Params {
    opmath_t step_size;   // lr / (1 - beta1^t)
    opmath_t decay;       // 1 - lr weight_decay
    opmath_t grad_share;  // 1 - beta1, of g in m; where that is 1/2 or more, m is g - beta1 (g - m), and this -beta1
    opmath_t from_grad;   // whether it is: 1 or 0
    opmath_t beta2;
    opmath_t square_share;  // 1 - beta2
    opmath_t root_factor;   // 1 / sqrt(1 - beta2^t)
    opmath_t eps;
    opmath_t sign;
    double bias_factor;  // 1 / (1 - beta1^t)
    double weight_decay;
  };

  template <typename opmath_t>
  TORCH_SSAM_BODY void set_lr(Params<opmath_t>& p, double lr) {
    p.step_size = static_cast<opmath_t>(lr * p.bias_factor);
    p.decay = static_cast<opmath_t>(1.0 - lr * p.weight_decay);
  }

  template <typename opmath_t>
  TORCH_SSAM_BODY Params<opmath_t> params(const AdamW& rule, int64_t step) {
    const bool from_grad = 1.0 - rule.beta1 >= 0.5;
    Params<opmath_t> p{};
    p.grad_share = static_cast<opmath_t>(from_grad ? -rule.beta1 : 1.0 - rule.beta1);
    p.from_grad = static_cast<opmath_t>(from_grad ? 1.0 : 0.0);
    p.beta2 = static_cast<opmath_t>(rule.beta2);
    p.square_share = static_cast<opmath_t>(1.0 - rule.beta2);
    p.root_factor = static_cast<opmath_t>(1.0 / square_root(1.0 - power(rule.beta2, step)));
    p.eps = static_cast<opmath_t>(rule.eps);
    p.sign = static_cast<opmath_t>(rule.maximize ? -1.0 : 1.0);
    p.bias_factor = 1.0 / (1.0 - power(rule.beta1, step));
    p.weight_decay = rule.weight_decay;
    set_lr(p, rule.lr);
    return p;
  }

  template <Kind kKind, typename opmath_t, int kCount>
  TORCH_SSAM_BODY opmath_t update_element(opmath_t clean, opmath_t grad, opmath_t (&buffers)[kCount],
                                          const Params<opmath_t>& p) {
    const opmath_t g = p.sign * grad;
    opmath_t& m = buffers[0];
    opmath_t& v = buffers[1];
    m = fused_multiply_add(p.grad_share, g - m, p.from_grad != opmath_t(0) ? g : m);
    v = fused_multiply_add(p.beta2, v, (p.square_share * g) * g);
    opmath_t x = v;
    if constexpr (kKind == Kind::amsgrad) {  // NaN stays, as in torch.maximum
      opmath_t& most = buffers[2];
      most = ((v > most) | (v != v)) ? v : most;
      x = most;
    }
    const opmath_t denominator = fused_multiply_add(square_root(x), p.root_factor, p.eps);
    return fused_multiply_add(-p.step_size, m / denominator, p.decay * clean);
  }
};

}  // namespace torch_ssam::math
