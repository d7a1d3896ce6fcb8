// See options.h.
#include "optim/options.h"

#include "noise/options.h"

namespace torch_ssam::detail {

void check_sgd(const SSAMOptions& o) {
  TORCH_CHECK_VALUE(!o.nesterov() || (o.momentum() > 0 && o.dampening() == 0), "torch_ssam: nesterov with momentum ",
                    o.momentum(), " and dampening ", o.dampening(),
                    "; Nesterov momentum expects momentum > 0 and dampening 0.");
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
  check_noise(o);
  check_passes(o);
  TORCH_CHECK_VALUE(
      !o.master_dtype() || o.memory() == "copy",
      "torch_ssam: memory 'regenerate' with master_dtype: the masters are the clean weights, and are kept "
      "in any case. Use memory 'copy', which makes no further copy beside masters.");
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
