// What an optimizer keeps of one parameter, by name, as it stands in checkpoints. Tests: tests/cpp/test_api_state.cpp,
// test_api_fused.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace torch_ssam {

// The buffers of the update rule, each under a name, and what the noise needs.
class NoiseParamState : public torch::optim::OptimizerParamState {
 public:
  // Undefined before the first step, and where the options ask for none.
  const at::Tensor& buffer(std::size_t i) const noexcept { return buffers_[i]; }
  at::Tensor& buffer(std::size_t i) noexcept { return buffers_[i]; }
  // The clean weights while the parameter holds others: kept perturbed, or loaded and not yet written.
  const at::Tensor& clean() const noexcept { return clean_; }
  at::Tensor& clean() noexcept { return clean_; }
  // With scale "fisher": F of each filter, Float.
  const at::Tensor& fisher() const noexcept { return fisher_; }
  at::Tensor& fisher() noexcept { return fisher_; }
  // With master_dtype: the clean weights of a 16-bit parameter, Float.
  const at::Tensor& master() const noexcept { return master_; }
  at::Tensor& master() noexcept { return master_; }
  // Updates so far, where the update rule counts them.
  std::int64_t step() const noexcept { return step_; }
  std::int64_t& step() noexcept { return step_; }
  bool empty() const;
  // While it is loaded: whether what was saved has other names too, as another optimizer's.
  bool has_others() const noexcept { return has_others_; }
  void set_has_others(bool others) noexcept { has_others_ = others; }

  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  friend bool operator==(const NoiseParamState& a, const NoiseParamState& b);

  // Visits every tensor with its name, defined or not.
  void each(const std::function<void(const char*, const at::Tensor&)>& visit) const;
  void each(const std::function<void(const char*, at::Tensor&)>& visit);

 protected:
  explicit NoiseParamState(std::vector<const char*> names) : names_(std::move(names)), buffers_(names_.size()) {}

 private:
  std::vector<const char*> names_;  // of the buffers, as torch::optim and Python call them
  std::vector<at::Tensor> buffers_;
  at::Tensor clean_, fisher_, master_;
  std::int64_t step_ = 0;
  bool has_others_ = false;
};

}  // namespace torch_ssam
