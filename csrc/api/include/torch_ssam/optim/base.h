// How an optimizer with noise is driven: perturb(), perturbations(), step(), train() and eval(). A class says how clean
// weights are updated, and how they are updated and perturbed again; everything about order, draws and accumulation is
// here, once. Python's twin is optim/base.py. Tests: tests/cpp/test_api_driving.cpp, test_api_kept.cpp.
#pragma once

#include <torch_ssam/optim/checkpoints.h>
#include <torch_ssam/perturbation.h>

#include <array>
#include <cstdint>
#include <functional>
#include <utility>

namespace torch_ssam {

class NoiseDriver : public NoiseOptimizer {
 public:
  ~NoiseDriver() override;  // in train with keep_perturbed, puts the clean weights back

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

 protected:
  explicit NoiseDriver(std::unique_ptr<FusedOptions> defaults);
  NoiseDriver(NoiseDriver&& other) noexcept;

  virtual void update() = 0;              // the clean weights, which the parameters hold
  virtual void update_and_perturb() = 0;  // those of perturbed parameters, which get the next draw

 private:
  friend struct detail::Loop;
  friend class AdaptiveNoiseStd;

  // What the function returns at the clean weights, and at those of the next pass: optim/outputs.cpp.
  std::pair<at::Tensor, at::Tensor> clean_and_noisy(const std::function<at::Tensor()>& outputs);
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
  void report_changed();
};

}  // namespace torch_ssam
