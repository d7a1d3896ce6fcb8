// Operators of the diagonal network: y = x * w_1 * ... * w_L, with its own noise where a generator is given, and the
// sum over the last dimension where `readout` is set. weight is (depth, features), input (..., features).
//   diagonal           -> (..., features), or (...) with readout
//   diagonal_backward  -> gradients of input and weight; an empty tensor where one is not needed
// Noise on the weights is that of an optimizer whose first parameter is `weight`: place 0, sample 0, rounded to the
// weight's dtype. Reductions have one fixed order (csrc/math/diagonal.h). Tests: test_ops_diagonal.py.
#include "operators.h"

namespace torch_ssam {
namespace {

DiagonalCall check_diagonal(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& generator,
                            double noise_std, const std::string& distribution, bool readout) {
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
    view_generator(*generator);
    check_one_device({*generator}, "generator", weight, "weight");
  }
  const SharedNoise noise = check_shared_noise({.noise_std = noise_std, .distribution = distribution});
  const int64_t rows = w.sizes[1] == 0 ? 0 : input.numel() / w.sizes[1];
  const bool noisy = generator && noise_std > 0;
  return {{w.sizes[0], w.sizes[1], rows},
          dtype_pair(w.dtype, x),
          as_contiguous(input),
          as_contiguous(weight),
          noisy ? view_generator(*generator) : nullptr,
          noise,
          readout};
}

void check_grad(const Tensor& grad_output, const Tensor& input, bool readout) {
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

Tensor diagonal(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& generator, double noise_std,
                StringArgument distribution, bool readout) {
  const DiagonalCall call = check_diagonal(input, weight, generator, noise_std, take(distribution), readout);
  const auto sizes = input.sizes();
  const std::vector<int64_t> output_sizes(sizes.begin(), sizes.end() - (readout ? 1 : 0));
  const bool empty_sums = readout && call.shape.features == 0;
  Tensor output = empty_sums ? torch::stable::new_zeros(input, output_sizes) : empty_beside(input, output_sizes);
  if (call.shape.features > 0 && call.shape.rows > 0) backend_of(weight).diagonal(call, output);
  return output;
}

std::tuple<Tensor, Tensor> diagonal_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                             const std::optional<Tensor>& generator, double noise_std,
                                             StringArgument distribution, bool readout, bool needs_input,
                                             bool needs_weight) {
  DiagonalCall forward = check_diagonal(input, weight, generator, noise_std, take(distribution), readout);
  check_grad(grad_output, input, readout);
  const auto [depth, features, rows] = forward.shape;
  const std::vector<int64_t> none{0}, weight_sizes{depth, features};
  const auto input_sizes = input.sizes();
  Tensor grad_input =
      empty_beside(input, needs_input ? std::vector<int64_t>(input_sizes.begin(), input_sizes.end()) : none);
  Tensor grad_weight = needs_weight && rows == 0 ? torch::stable::new_zeros(weight, weight_sizes)
                                                 : empty_beside(weight, needs_weight ? weight_sizes : none);
  if (features > 0 && rows > 0 && (needs_input || needs_weight)) {
    const DiagonalBackwardCall call{std::move(forward), as_contiguous(grad_output), needs_input, needs_weight};
    backend_of(weight).diagonal_backward(call, grad_input, grad_weight);
  }
  return {grad_input, grad_weight};
}

}  // namespace

TORCH_SSAM_OPERATOR(diagonal,
                    "(Tensor input, Tensor weight, Tensor? generator=None, float noise_std=0, "
                    "str distribution='gaussian', bool readout=False) -> Tensor");
TORCH_SSAM_OPERATOR(diagonal_backward,
                    "(Tensor grad_output, Tensor input, Tensor weight, Tensor? generator, float noise_std, "
                    "str distribution, bool readout, bool needs_input, bool needs_weight) -> (Tensor, Tensor)");

}  // namespace torch_ssam
