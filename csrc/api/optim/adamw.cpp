// SSAMAdamW: the options and the state of AdamW's update on the base of fused.h. Python's twin is optim/adamw.py.
// Tests: tests/cpp/test_api_adamw.cpp, tests/python/test_cpp_parity.py.
#include <torch/optim/serialize.h>
#include <torch/serialize/archive.h>
#include <torch_ssam/adamw.h>

#include "operators.h"
#include "pickled.h"

namespace torch_ssam {

using torch::optim::OptimizerParamGroup;

namespace {

const SSAMAdamWOptions& adamw(const FusedOptions& options) { return static_cast<const SSAMAdamWOptions&>(options); }

}  // namespace

SSAMAdamW::SSAMAdamW(std::vector<at::Tensor> params, SSAMAdamWOptions defaults)
    : SSAMAdamW({OptimizerParamGroup(std::move(params))}, std::move(defaults)) {}

SSAMAdamW::SSAMAdamW(const std::vector<OptimizerParamGroup>& param_groups, SSAMAdamWOptions defaults)
    : FusedOptimizer(std::make_unique<SSAMAdamWOptions>(std::move(defaults))) {
  add_groups(param_groups);
}

std::size_t SSAMAdamW::count_buffers(const FusedOptions& options) const { return adamw(options).amsgrad() ? 3 : 2; }

// The numbers of csrc/math/rules/adamw.h in its order.
ops::Update SSAMAdamW::update_of(const FusedOptions& options) const {
  const SSAMAdamWOptions& o = adamw(options);
  const auto [beta1, beta2] = o.betas();
  return {"adamw",
          {o.lr(), beta1, beta2, o.eps(), o.weight_decay(), o.amsgrad() ? 1.0 : 0.0, o.maximize() ? 1.0 : 0.0}};
}

// The largest average of squares may be missing: amsgrad can be switched on.
void SSAMAdamW::check_loaded(const NoiseParamState& state, std::int64_t place) const {
  const bool of_update = state.step() > 0 || state.buffer(0).defined() || state.buffer(1).defined() ||
                         state.buffer(2).defined() || state.has_others();
  const bool complete = state.step() > 0 && state.buffer(0).defined() && state.buffer(1).defined();
  TORCH_CHECK_VALUE(!of_update || complete, "torch_ssam: the saved state of parameter ", place, " lacks ",
                    !state.buffer(0).defined()   ? "'exp_avg'"
                    : !state.buffer(1).defined() ? "'exp_avg_sq'"
                                                 : "'step', the number of its updates so far",
                    "; expected the state of SSAMAdamW or of torch's AdamW.");
}

void SSAMAdamW::check_loaded_group(const c10::impl::GenericDict& group) const {
  const c10::IValue decoupled = detail::value_of(group, "decoupled_weight_decay");
  const c10::IValue decay = detail::value_of(group, "weight_decay");
  if (!decoupled.isBool() || decoupled.toBool() || decay.isNone()) return;
  TORCH_CHECK_VALUE(
      detail::as_double(decay, "weight_decay") == 0, "torch_ssam: weight_decay ",
      detail::as_double(decay, "weight_decay"),
      " with decoupled_weight_decay false, as torch.optim.Adam has it: there it is added to the gradient, "
      "here taken off the weights. Set weight_decay 0 before saving.");
}

void SSAMAdamW::write(torch::serialize::OutputArchive& archive) const {
  torch::optim::serialize<SSAMAdamWParamState, SSAMAdamWOptions>(archive, *this);
}

void SSAMAdamW::read(torch::serialize::InputArchive& archive) {
  torch::optim::serialize<SSAMAdamWParamState, SSAMAdamWOptions>(archive, *this);
}

}  // namespace torch_ssam
