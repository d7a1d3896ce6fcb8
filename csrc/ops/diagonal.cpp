// Schemas and checks of the operators in diagonal.h.
#include "diagonal.h"

namespace torch_ssam {

STABLE_TORCH_LIBRARY_FRAGMENT(torch_ssam, m) {
  m.def(
      "diagonal(Tensor input, Tensor weight, Tensor? generator=None, float noise_std=0, "
      "str distribution='gaussian', bool readout=False) -> Tensor");
  m.def(
      "diagonal_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? generator, float noise_std, "
      "str distribution, bool readout, bool needs_input, bool needs_weight) -> (Tensor, Tensor)");
}

DiagonalShape check_diagonal(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& generator) {
  check_strided(input, "input");
  const TensorView w = view_parameter(weight, "weight", {}, Use::reads);
  TORCH_SSAM_CHECK(w.dim == 2 && w.sizes[0] >= 1, "weight has shape ", shape_of(w),
                   "; expected (depth, features), depth >= 1.");
  const int64_t dim = input.dim();
  TORCH_SSAM_CHECK(dim >= 1, "input is a single number; expected (..., features) with features = ", w.sizes[1], ".");
  TORCH_SSAM_CHECK(input.size(dim - 1) == w.sizes[1], "input has ", input.size(dim - 1),
                   " features in its last dimension and weight has ", w.sizes[1], "; expected the same.");
  const ScalarType x = input.scalar_type();
  TORCH_SSAM_CHECK(
      x == w.dtype || (w.dtype == ScalarType::Float && (x == ScalarType::BFloat16 || x == ScalarType::Half)),
      "input has dtype ", dtype_name(x), " and weight has ", dtype_name(w.dtype),
      "; expected the same. Convert the input, or the module with module.to(dtype).");
  check_one_device({input}, "input", weight, "weight");
  if (generator) {
    check_generator(*generator);
    check_one_device({*generator}, "generator", weight, "weight");
  }
  return {w.sizes[0], w.sizes[1], w.sizes[1] == 0 ? 0 : input.numel() / w.sizes[1]};
}

void check_diagonal_grad(const Tensor& grad_output, const Tensor& input, bool readout) {
  check_strided(grad_output, "grad_output");
  const int64_t dim = input.dim() - (readout ? 1 : 0);
  bool same = grad_output.dim() == dim && grad_output.scalar_type() == input.scalar_type();
  for (int64_t d = 0; same && d < dim; ++d) same = grad_output.size(d) == input.size(d);
  TORCH_SSAM_CHECK(same, "grad_output has shape ", shape_of(grad_output), " and dtype ",
                   dtype_name(grad_output.scalar_type()), ", and input has ", shape_of(input), " and ",
                   dtype_name(input.scalar_type()), "; expected those of the output, which are the input's",
                   readout ? " without the last dimension." : ".");
  check_one_device({grad_output}, "grad_output", input, "input");
}

}  // namespace torch_ssam
