// See options.h.
#include "optim/options.h"

namespace torch_ssam::detail {

void check_masters(const FusedOptions& o) {
  TORCH_CHECK_VALUE(
      !o.master_dtype() || o.memory() == "copy",
      "torch_ssam: memory 'regenerate' with master_dtype: the masters are the clean weights, and are kept "
      "in any case. Use memory 'copy', which makes no further copy beside masters.");
}

void check_masters(const FusedOptions& o, const std::vector<at::Tensor>& params) {
  if (!o.master_dtype()) return;
  for (const at::Tensor& p : params) {
    TORCH_CHECK_VALUE(p.scalar_type() != at::kDouble,
                      "torch_ssam: master_dtype is Float and a parameter is Double, which is finer; expected BFloat16, "
                      "Half or Float (which needs no master). Give it a group without master_dtype.");
  }
}

void check_common(const FusedOptions& options, const FusedOptions& first) {
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
