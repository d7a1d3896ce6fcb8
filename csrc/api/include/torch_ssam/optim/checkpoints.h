// Options, groups and state of an optimizer with noise: checked as they come, saved and loaded. Seed and draw travel
// with the state, and clean weights too while the parameters hold perturbed ones. base.h builds the ways to drive it on
// this class. Python's twin is optim/checkpoints.py. Tests: tests/cpp/test_api_state.cpp, test_api_checkpoint.cpp.
#pragma once

#include <ATen/core/Dict.h>
#include <torch/optim/optimizer.h>
#include <torch_ssam/optim/options.h>
#include <torch_ssam/optim/param_state.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace torch_ssam {

namespace detail {
struct Drive;
struct GroupNoise;
struct Members;
}  // namespace detail

class NoiseOptimizer : public torch::optim::Optimizer {
 public:
  NoiseOptimizer& operator=(NoiseOptimizer&&) = delete;
  NoiseOptimizer(const NoiseOptimizer&) = delete;
  NoiseOptimizer& operator=(const NoiseOptimizer&) = delete;

  // Adds a group; options that it does not set are the optimizer's. In train with keep_perturbed it is perturbed.
  // Tensors that do not require gradients count for the places and are never perturbed; they may be of any dtype.
  void add_param_group(const torch::optim::OptimizerParamGroup& param_group);

  std::int64_t seed() const;
  std::int64_t draw() const;  // in use while perturbed, else the next

  // torch::save(opt, path) and torch::load(opt, path) resume bit for bit, seed and draw included. load also takes what
  // LibTorch's optimizer with the same update saved. state_dict is the layout of Python's, for torch::pickle_save;
  // checkpoint.h.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  c10::IValue state_dict() const;
  void load_state_dict(const c10::IValue& state_dict);

 protected:
  explicit NoiseOptimizer(std::unique_ptr<FusedOptions> defaults);
  NoiseOptimizer(NoiseOptimizer&& other) noexcept = default;

  // What a class says of its options and state, under its name in messages.
  virtual const char* name() const = 0;
  virtual void check_update(const FusedOptions& options) const = 0;  // throws where they do not go together
  virtual std::unique_ptr<NoiseParamState> new_state() const = 0;
  // Whether its update goes by the number of a tensor's updates, which is then counted and saved.
  virtual bool counts_steps() const { return false; }
  // Throw where what a checkpoint has of a parameter, or of a group in Python's layout, is not for this class.
  virtual void check_loaded(const NoiseParamState& /*state*/, std::int64_t /*place*/) const {}
  virtual void check_loaded_group(const c10::impl::GenericDict& /*group*/) const {}
  virtual void write(torch::serialize::OutputArchive& archive) const = 0;  // groups and state, as torch::optim's
  virtual void read(torch::serialize::InputArchive& archive) = 0;

  void add_groups(const std::vector<torch::optim::OptimizerParamGroup>& groups);  // of a constructor
  const FusedOptions& options_of(std::size_t group) const;
  FusedOptions& options_of(std::size_t group);
  const FusedOptions& first_options() const { return options_of(0); }
  void check_options(const FusedOptions& options) const;
  // Each group with all of its tensors, frozen ones too.
  void for_each_group(const std::function<void(const FusedOptions&, const detail::Members&)>& visit);
  NoiseParamState& state_of(const at::Tensor& param);
  const NoiseParamState* find_state(const at::Tensor& param) const;  // null where there is none
  NoiseParamState* find_state(const at::Tensor& param);
  void settle();      // writes clean weights that a load brought
  void note_clean();  // names the clean copies of perturbed tensors in the state

  std::shared_ptr<detail::Drive> drive_;

 private:
  // The tensors of each group and their places; forgets what is kept of tensors that left their group.
  const std::vector<detail::Members>& placed();
  void name_clean(bool regenerated_too);
  void note_masters_and_sums();
  void note_to_save();
  void forget_regenerated();
  void check_may_load() const;
  void fit_loaded(const at::Tensor& param, const FusedOptions& options, NoiseParamState& state) const;
  void finish_load(std::optional<std::int64_t> seed, std::optional<std::int64_t> draw);
};

}  // namespace torch_ssam
