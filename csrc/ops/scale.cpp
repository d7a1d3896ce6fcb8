// Schemas and checks of the operators in scale.h.
#include "scale.h"

namespace torch_ssam {

STABLE_TORCH_LIBRARY_FRAGMENT(torch_ssam, m) {
  m.def("row_scales_(Tensor(a!)[] row_scales, Tensor[] weights, Tensor[] fisher, float fisher_factor=0) -> ()");
  m.def("row_fisher_(Tensor(a!)[] fisher, Tensor[] grads, float decay) -> ()");
}

math::Scale parse_scale(const std::string& name) {
  if (name == "isotropic") return math::Scale::isotropic;
  if (name == "rows") return math::Scale::rows;
  TORCH_SSAM_CHECK(name == "element", "scale is '", name, "'; expected 'isotropic', 'rows' or 'element'.");
  return math::Scale::element;
}

RowViews view_rows(const std::vector<Tensor>& rows, const char* name, const TensorViews& like, const char* like_name) {
  TORCH_SSAM_CHECK(rows.size() == like.size(), name, " has ", rows.size(), " tensors and ", like_name, " has ",
                   like.size(), "; expected one for each.");
  RowViews views;
  views.reserve(rows.size());
  for (size_t t = 0; t < rows.size(); ++t) {
    const TensorView view = view_parameter(rows[t], name, t, Use::reads);
    TORCH_SSAM_CHECK(view.dtype == ScalarType::Float && view.contiguous, name, "[", t, "] has dtype ",
                     dtype_name(view.dtype), view.contiguous ? "" : " and is not contiguous",
                     "; expected a contiguous float32 tensor.");
    const int64_t filters = like[t].dim == 0 ? 1 : like[t].sizes[0];
    TORCH_SSAM_CHECK(view.numel == 1 || view.numel == filters, name, "[", t, "] has ", view.numel, " elements and ",
                     like_name, "[", t, "] has shape ", shape_of(like[t]), "; expected 1 or ", filters,
                     ", one for each row.");
    const int64_t length = view.numel == 0 ? 1 : like[t].numel / view.numel;
    views.push_back({static_cast<float*>(view.data), view.numel, length});
  }
  return views;
}

RowScalesArgs check_row_scales(const std::vector<Tensor>& row_scales, const std::vector<Tensor>& weights,
                               const std::vector<Tensor>& fisher, double fisher_factor) {
  check_finite_nonnegative(fisher_factor, "fisher_factor");
  RowScalesArgs args{view_parameters(weights, "weights", Use::reads), {}, {}};
  args.row_scales = view_rows(row_scales, "row_scales", args.weights, "weights");
  if (!fisher.empty()) args.fisher = view_rows(fisher, "fisher", args.weights, "weights");
  for (size_t t = 0; t < args.fisher.size(); ++t) {
    TORCH_SSAM_CHECK(args.fisher[t].rows == args.row_scales[t].rows, "fisher[", t, "] has ", args.fisher[t].rows,
                     " elements and row_scales[", t, "] has ", args.row_scales[t].rows, "; expected the same.");
  }
  if (!weights.empty()) {
    check_one_device(weights, "weights", weights[0], "weights[0]");
    check_one_device(row_scales, "row_scales", weights[0], "weights[0]");
    check_one_device(fisher, "fisher", weights[0], "weights[0]");
  }
  return args;
}

RowFisherArgs check_row_fisher(const std::vector<Tensor>& fisher, const std::vector<Tensor>& grads, double decay) {
  TORCH_SSAM_CHECK(decay >= 0.0 && decay <= 1.0, "decay is ", decay, "; expected 0 to 1.");
  RowFisherArgs args{view_parameters(grads, "grads", Use::reads), {}};
  args.fisher = view_rows(fisher, "fisher", args.grads, "grads");
  if (!grads.empty()) {
    check_one_device(grads, "grads", grads[0], "grads[0]");
    check_one_device(fisher, "fisher", grads[0], "grads[0]");
  }
  return args;
}

}  // namespace torch_ssam
