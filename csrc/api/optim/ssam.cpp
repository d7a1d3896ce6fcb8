// SSAM: the options and the state of SGD's update on the base of fused.h. Python's twin is optim/ssam.py.
// Tests: tests/cpp/test_api_ssam.cpp, tests/python/test_cpp_parity.py.
#include <torch/optim/serialize.h>
#include <torch/serialize/archive.h>
#include <torch_ssam/ssam.h>

#include "operators.h"

namespace torch_ssam {

using torch::optim::OptimizerParamGroup;

namespace {

const SSAMOptions& ssam(const FusedOptions& options) { return static_cast<const SSAMOptions&>(options); }

}  // namespace

SSAM::SSAM(std::vector<at::Tensor> params, SSAMOptions defaults)
    : SSAM({OptimizerParamGroup(std::move(params))}, std::move(defaults)) {}

SSAM::SSAM(const std::vector<OptimizerParamGroup>& param_groups, SSAMOptions defaults)
    : FusedOptimizer(std::make_unique<SSAMOptions>(std::move(defaults))) {
  add_groups(param_groups);
}

void SSAM::check_update(const FusedOptions& options) const {
  const SSAMOptions& o = ssam(options);
  TORCH_CHECK_VALUE(!o.nesterov() || (o.momentum() > 0 && o.dampening() == 0), "torch_ssam: nesterov with momentum ",
                    o.momentum(), " and dampening ", o.dampening(),
                    "; Nesterov momentum expects momentum > 0 and dampening 0.");
}

std::size_t SSAM::count_buffers(const FusedOptions& options) const { return ssam(options).momentum() != 0 ? 1 : 0; }

// The numbers of csrc/math/rules/sgd.h in its order.
ops::Update SSAM::update_of(const FusedOptions& options) const {
  const SSAMOptions& o = ssam(options);
  return {"sgd",
          {o.lr(), o.momentum(), o.dampening(), o.weight_decay(), o.nesterov() ? 1.0 : 0.0, o.maximize() ? 1.0 : 0.0}};
}

void SSAM::write(torch::serialize::OutputArchive& archive) const {
  torch::optim::serialize<SSAMParamState, SSAMOptions>(archive, *this);
}

void SSAM::read(torch::serialize::InputArchive& archive) {
  torch::optim::serialize<SSAMParamState, SSAMOptions>(archive, *this);
}

}  // namespace torch_ssam
