// See options.h.
#include "optim/options.h"

#include <limits>

#include "checks.h"
#include "noise/options.h"

namespace torch_ssam::detail {

void check_sgd(const SSAMOptions& o) {
  check_number("lr", o.lr());
  check_number("momentum", o.momentum());
  check_number("weight_decay", o.weight_decay());
  check_number("dampening", o.dampening(), -std::numeric_limits<double>::infinity());
  TORCH_CHECK_VALUE(!o.nesterov() || (o.momentum() > 0 && o.dampening() == 0), "torch_ssam: nesterov with momentum ",
                    o.momentum(), " and dampening ", o.dampening(),
                    "; Nesterov momentum expects momentum > 0 and dampening 0.");
  if (o.radius()) check_number("radius", *o.radius(), 0, /*open_low=*/true);
}

void check_masters(const SSAMOptions& o, const std::vector<at::Tensor>& params) {
  if (!o.master_dtype()) return;
  for (const at::Tensor& p : params) {
    TORCH_CHECK_VALUE(p.scalar_type() != at::kDouble,
                      "torch_ssam: master_dtype is Float and a parameter is Double, which is finer; expected BFloat16, "
                      "Half or Float (which needs no master). Give it a group without master_dtype.");
  }
}

void check_options(const SSAMOptions& o) {
  TORCH_CHECK_VALUE(!o.master_dtype() || *o.master_dtype() == at::kFloat, "torch_ssam: master_dtype is ",
                    o.master_dtype().value_or(at::kFloat),
                    "; expected at::kFloat, for BFloat16 and Half parameters, or std::nullopt.");
  TORCH_CHECK_VALUE(
      !o.master_dtype() || o.memory() == "copy",
      "torch_ssam: memory 'regenerate' with master_dtype: the masters are the clean weights, and are kept "
      "in any case. Use memory 'copy', which makes no further copy beside masters.");
  check_noise(o.noise_std(), o.distribution(), o.scale(), o.memory());
  check_number("fisher_decay", o.fisher_decay());
  TORCH_CHECK_VALUE(o.fisher_decay() <= 1, "torch_ssam: fisher_decay is ", o.fisher_decay(),
                    "; expected 0 <= fisher_decay <= 1.");
  check_number("fisher_factor", o.fisher_factor());
  check_count("samples", o.samples(), 1, 0xffffffffLL);
  check_number("clean_weight", o.clean_weight());
  TORCH_CHECK_VALUE(o.clean_weight() < 1, "torch_ssam: clean_weight is ", o.clean_weight(),
                    "; expected 0 <= clean_weight < 1 (the share of the gradient at the clean weights).");
  TORCH_CHECK_VALUE(
      !o.keep_perturbed() || passes_of(o) == 1,
      "torch_ssam: keep_perturbed keeps one perturbation in the parameters, so it goes with samples 1, no "
      "antithetic, clean_weight 0; got samples ",
      o.samples(), ", antithetic ", o.antithetic(), ", clean_weight ", o.clean_weight(),
      ". Use perturbations() without keep_perturbed for several passes a step.");
  check_sgd(o);
}

void check_common(const SSAMOptions& options, const SSAMOptions& first) {
  const auto same = [](const char* name, auto here, auto there) {
    TORCH_CHECK_VALUE(here == there, "torch_ssam: ", name, " is ", here, " in one parameter group and ", there,
                      " in another; expected the same in all groups, since a pass runs the whole model.");
  };
  same("samples", options.samples(), first.samples());
  same("antithetic", options.antithetic(), first.antithetic());
  same("clean_weight", options.clean_weight(), first.clean_weight());
  same("keep_perturbed", options.keep_perturbed(), first.keep_perturbed());
}

}  // namespace torch_ssam::detail
