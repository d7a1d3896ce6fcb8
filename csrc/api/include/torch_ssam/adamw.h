// SSAMAdamW: AdamW whose gradients are taken at perturbed weights, for LibTorch: the Python class of the same name,
// option by option and bit by bit. One pass over memory a step, also without noise (arXiv 1711.05101, 2503.11891).
//   torch_ssam::SSAMAdamW opt(model->parameters(), torch_ssam::SSAMAdamWOptions(1e-3).noise_std(0.01));
//   { auto perturbed = opt.perturb(); loss(model).backward(); }  // clean bits back at the brace
//   opt.step();                                                  // or opt.step(closure)
// How it is driven is in optim/base.h, as for SSAM; its update is csrc/math/rules/adamw.h.
// Tests: tests/cpp/test_api_adamw.cpp, those of SSAM that run over both, tests/python/test_cpp_parity.py.
#pragma once

#include <torch_ssam/optim/fused.h>

#include <cstddef>
#include <memory>
#include <vector>

// weight_decay is decoupled: a step takes lr weight_decay of the clean weights off.
#define TORCH_SSAM_ADAMW_OPTIONS(X)                                                                                    \
  X(double, lr, 1e-3, at_least(0), "learning rate")                                                                    \
  X(Betas, betas, Betas(0.9, 0.999), from_up_to(0, 1), "how much the averages of gradients and of their squares keep") \
  X(double, eps, 1e-8, at_least(0), "added to the root of the average of squares")                                     \
  X(double, weight_decay, 1e-2, at_least(0), "share of the clean weights that a step takes off, times lr")             \
  X(bool, amsgrad, false, any(), "divide by the largest average of squares so far")

namespace torch_ssam {

class SSAMAdamWOptions : public FusedSetters<SSAMAdamWOptions> {
  TORCH_SSAM_OPTIONS_OF_UPDATE(SSAMAdamWOptions, TORCH_SSAM_ADAMW_OPTIONS)

 public:
  SSAMAdamWOptions() = default;
  SSAMAdamWOptions(double learning_rate) { lr(learning_rate); }
};

// The names are those of torch::optim::AdamW and of Python. step() counts the parameter's updates.
class SSAMAdamWParamState : public NoiseParamState {
 public:
  SSAMAdamWParamState() : NoiseParamState({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}) {}

  // The averages of gradients and of their squares, and with amsgrad the largest of the second so far. Undefined before
  // the first step.
  const at::Tensor& exp_avg() const noexcept { return buffer(0); }
  at::Tensor& exp_avg() noexcept { return buffer(0); }
  const at::Tensor& exp_avg_sq() const noexcept { return buffer(1); }
  at::Tensor& exp_avg_sq() noexcept { return buffer(1); }
  const at::Tensor& max_exp_avg_sq() const noexcept { return buffer(2); }
  at::Tensor& max_exp_avg_sq() noexcept { return buffer(2); }

  std::unique_ptr<torch::optim::OptimizerParamState> clone() const override {
    return std::make_unique<SSAMAdamWParamState>(*this);
  }
};

// With noise_std 0 it follows torch::optim::AdamW within 2 ulp of max(|w|, lr) a step. Files that either saved load
// into the other, also in the middle of training.
class SSAMAdamW : public FusedOptimizer {
 public:
  explicit SSAMAdamW(std::vector<at::Tensor> params, SSAMAdamWOptions defaults = {});
  explicit SSAMAdamW(const std::vector<torch::optim::OptimizerParamGroup>& param_groups,
                     SSAMAdamWOptions defaults = {});
  SSAMAdamW(SSAMAdamW&& other) noexcept = default;

 private:
  const char* name() const override { return "SSAMAdamW"; }
  void check_update(const FusedOptions& /*options*/) const override {}
  void check_loaded(const NoiseParamState& state, std::int64_t place) const override;
  void check_loaded_group(const c10::impl::GenericDict& group) const override;
  std::unique_ptr<NoiseParamState> new_state() const override { return std::make_unique<SSAMAdamWParamState>(); }
  std::size_t count_buffers(const FusedOptions& options) const override;
  bool counts_steps() const override { return true; }
  ops::Update update_of(const FusedOptions& options) const override;
  void write(torch::serialize::OutputArchive& archive) const override;
  void read(torch::serialize::InputArchive& archive) override;
};

}  // namespace torch_ssam
