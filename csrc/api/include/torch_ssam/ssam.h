// SSAM: SGD whose gradients are taken at Gaussian-perturbed weights, for LibTorch: the Python class of the same name,
// option by option and bit by bit, because both call the same operators (arXiv 2503.11891).
//   torch_ssam::SSAM opt(model->parameters(), torch_ssam::SSAMOptions(0.1).noise_std(0.01).momentum(0.9));
//   { auto perturbed = opt.perturb(); loss(model).backward(); }  // clean bits back at the brace
//   opt.step();                                                  // or opt.step(closure)
// How it is driven is in optim/base.h, what is saved in optim/checkpoints.h, the options of noise in noise/options.h
// and optim/options.h. Errors are c10::Error. Tests: tests/cpp/test_api_*.cpp, tests/python/test_cpp_parity.py.
#pragma once

#include <torch_ssam/optim/fused.h>

#include <cstddef>
#include <memory>
#include <vector>

#define TORCH_SSAM_SGD_OPTIONS(X)                                            \
  X(double, lr, 0.1, at_least(0), "learning rate")                           \
  X(double, momentum, 0, at_least(0), "momentum factor")                     \
  X(double, dampening, 0, finite(), "dampening of momentum")                 \
  X(double, weight_decay, 0, at_least(0), "L2 penalty on the clean weights") \
  X(bool, nesterov, false, any(), "Nesterov momentum, for momentum > 0 and dampening 0")

namespace torch_ssam {

class SSAMOptions : public FusedSetters<SSAMOptions> {
  TORCH_SSAM_OPTIONS_OF_UPDATE(SSAMOptions, TORCH_SSAM_SGD_OPTIONS)

 public:
  SSAMOptions() = default;
  SSAMOptions(double learning_rate) { lr(learning_rate); }
};

class SSAMParamState : public NoiseParamState {
 public:
  SSAMParamState() : NoiseParamState({"momentum_buffer"}) {}

  // Undefined without momentum, and before the first step.
  const at::Tensor& momentum_buffer() const noexcept { return buffer(0); }
  at::Tensor& momentum_buffer() noexcept { return buffer(0); }

  std::unique_ptr<torch::optim::OptimizerParamState> clone() const override {
    return std::make_unique<SSAMParamState>(*this);
  }
};

class SSAM : public FusedOptimizer {
 public:
  explicit SSAM(std::vector<at::Tensor> params, SSAMOptions defaults = {});
  explicit SSAM(const std::vector<torch::optim::OptimizerParamGroup>& param_groups, SSAMOptions defaults = {});
  SSAM(SSAM&& other) noexcept = default;

 private:
  const char* name() const override { return "SSAM"; }
  void check_update(const FusedOptions& options) const override;
  std::unique_ptr<NoiseParamState> new_state() const override { return std::make_unique<SSAMParamState>(); }
  std::size_t count_buffers(const FusedOptions& options) const override;
  ops::Update update_of(const FusedOptions& options) const override;
  void write(torch::serialize::OutputArchive& archive) const override;
  void read(torch::serialize::InputArchive& archive) override;
};

}  // namespace torch_ssam
