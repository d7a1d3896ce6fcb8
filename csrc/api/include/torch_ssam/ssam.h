// SSAM: SGD whose gradients are taken at Gaussian-perturbed weights, for LibTorch: the Python class of the same name,
// option by option and bit by bit, because both call the same operators (arXiv 2503.11891).
//   torch_ssam::SSAM opt(model->parameters(), torch_ssam::SSAMOptions(0.1).noise_std(0.01).momentum(0.9));
//   { auto perturbed = opt.perturb(); loss(model).backward(); }  // clean bits back at the brace
//   opt.step();                                                  // or opt.step(closure)
// Errors are c10::Error. Tests: tests/cpp/test_api_*.cpp, tests/python/test_cpp_parity.py.
#pragma once

#include <torch/optim/optimizer.h>
#include <torch_ssam/optim/options.h>
#include <torch_ssam/perturbation.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#define TORCH_SSAM_SGD_OPTIONS(X)                                                                     \
  X(double, lr, 0.1, at_least(0), "learning rate")                                                     \
  X(double, momentum, 0, at_least(0), "momentum factor")                                               \
  X(double, dampening, 0, finite(), "dampening of momentum")                                           \
  X(double, weight_decay, 0, at_least(0), "L2 penalty on the clean weights")                           \
  X(bool, nesterov, false, any(), "Nesterov momentum, for momentum > 0 and dampening 0")

namespace torch_ssam {

class SSAMOptions : public FusedSetters<SSAMOptions> {
  TORCH_SSAM_OPTIONS_OF_UPDATE(SSAMOptions, TORCH_SSAM_SGD_OPTIONS)

 public:
  SSAMOptions() = default;
  SSAMOptions(double learning_rate) { lr(learning_rate); }
};

class SSAMParamState : public torch::optim::OptimizerCloneableParamState<SSAMParamState> {
 public:
  // Undefined without momentum, and before the first step.
  const at::Tensor& momentum_buffer() const noexcept { return momentum_buffer_; }
  at::Tensor& momentum_buffer() noexcept { return momentum_buffer_; }
  // The clean weights while the parameter holds others: kept perturbed, or loaded and not yet written.
  const at::Tensor& clean() const noexcept { return clean_; }
  at::Tensor& clean() noexcept { return clean_; }
  // With scale "fisher": F of each filter, Float.
  const at::Tensor& fisher() const noexcept { return fisher_; }
  at::Tensor& fisher() noexcept { return fisher_; }
  // With master_dtype: the clean weights of a 16-bit parameter, Float.
  const at::Tensor& master() const noexcept { return master_; }
  at::Tensor& master() noexcept { return master_; }
  bool empty() const noexcept {
    return !momentum_buffer_.defined() && !clean_.defined() && !fisher_.defined() && !master_.defined();
  }

  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  friend bool operator==(const SSAMParamState& a, const SSAMParamState& b);

 private:
  at::Tensor momentum_buffer_, clean_, fisher_, master_;
};

class SSAM : public torch::optim::Optimizer {
 public:
  explicit SSAM(std::vector<at::Tensor> params, SSAMOptions defaults = {});
  explicit SSAM(const std::vector<torch::optim::OptimizerParamGroup>& param_groups, SSAMOptions defaults = {});
  SSAM(SSAM&& other) noexcept;
  SSAM& operator=(SSAM&&) = delete;
  SSAM(const SSAM&) = delete;
  SSAM& operator=(const SSAM&) = delete;
  ~SSAM() override;  // in train with keep_perturbed, puts the clean weights back

  // Adds a group; options that it does not set are the optimizer's. In train with keep_perturbed it is perturbed.
  void add_param_group(const torch::optim::OptimizerParamGroup& param_group);

  // While the result lives, the parameters hold clean + noise. Each call uses the next draw; several before one step()
  // accumulate gradients as usual. For one pass a step.
  Perturbation perturb();

  // Runs a loop body once for each pass of a step: `samples` times, twice as often with `antithetic`, once more at the
  // clean weights where clean_weight > 0. Afterwards grad holds what it held before plus the weighted mean gradient.
  Perturbations perturbations();

  // The same with the examples (dimension 0) split over the passes; each part counts by its share of the examples.
  template <typename... Inputs>
  BatchPerturbations<1 + sizeof...(Inputs)> perturbations(const at::Tensor& input, const Inputs&... more) {
    const std::array<at::Tensor, 1 + sizeof...(Inputs)> inputs{input, more...};
    return {split_over(at::TensorList(inputs.data(), inputs.size())), inputs};
  }

  // Updates the clean weights. A closure clears gradients, computes the loss, calls backward and returns the loss; it
  // runs at perturbed weights once for each pass, and the weighted mean loss is returned. Throws without a gradient at
  // perturbed weights since the last step: that would train without noise.
  at::Tensor step(LossClosure closure = nullptr) override;

  // As Optimizer's; the next step() then needs a new gradient at perturbed weights.
  void zero_grad(bool set_to_none = true);

  // keep_perturbed: train() perturbs the weights and step() leaves them perturbed with the next draw, so a plain loop
  // needs no change; eval() puts the clean ones back. Otherwise these move nothing.
  void train(bool mode = true);
  void eval();

  std::int64_t seed() const;
  std::int64_t draw() const;  // in use while perturbed, else the next

  // torch::save(opt, path) and torch::load(opt, path) resume bit for bit, seed and draw included. load also takes
  // what torch::optim::SGD saved. state_dict is the layout of Python's, for torch::pickle_save; checkpoint.h.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  c10::IValue state_dict() const;
  void load_state_dict(const c10::IValue& state_dict);

 private:
  struct Part;
  friend struct detail::Loop;

  template <typename Self, typename Archive>
  static void serialize(Self& self, Archive& archive);

  SSAMOptions& options_of(std::size_t group);
  const SSAMOptions& options_of(std::size_t group) const;
  const SSAMOptions& first_options() const { return options_of(0); }
  void for_each_group(const std::function<void(const SSAMOptions&, const detail::Members&)>& visit);
  SSAMParamState& state_of(const at::Tensor& param);
  at::Tensor momentum_buffer(const at::Tensor& param) const;
  detail::GroupNoise noise_of(const SSAMOptions& options, std::int64_t sample, bool negate,
                              std::int64_t draw_offset = 0);

  void begin_pass();
  void watch_gradients();
  void apply_noise(std::int64_t sample, bool negate);
  void scale_grads(double factor);
  Perturbations split_over(at::TensorList inputs);
  bool noisy() const;
  bool idle() const;
  bool without_gradients() const;
  at::Tensor step_kept(const LossClosure& closure);
  at::Tensor run_closure(const LossClosure& closure);
  void check_before_update() const;
  void update();
  void update_parts(const SSAMOptions& options, const detail::Members& with_grad);
  void update_group(const SSAMOptions& options, const detail::Members& members);
  void observe(const SSAMOptions& options, const detail::Members& with_grad);
  void update_and_perturb();
  std::vector<Part> alike(const detail::Members& members, const SSAMOptions& options);
  void keep_momentum(const Part& part);
  void project(const SSAMOptions& options, const detail::Members& stacked);
  void settle();
  void note_masters_and_sums();
  void note_clean(bool regenerated_too = false);
  void note_clean_to_save();
  void forget_regenerated();
  void check_may_load() const;
  void finish_load(std::optional<std::int64_t> seed, std::optional<std::int64_t> draw);
  void report_changed();

  std::shared_ptr<detail::Drive> drive_;
};

}  // namespace torch_ssam
