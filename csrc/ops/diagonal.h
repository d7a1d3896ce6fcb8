// Operators of the diagonal network: y = x * w_1 * ... * w_L, with its own noise where a generator is given, and the
// sum over the last dimension where `readout` is set. weight is (depth, features), input (..., features).
//   diagonal           -> (..., features), or (...) with readout
//   diagonal_backward  -> gradients of input and weight; an empty tensor where one is not needed
// Noise on the weights is that of an optimizer whose first parameter is `weight`: place 0, sample 0, rounded to the
// weight's dtype. Reductions have one fixed order (csrc/math/diagonal.h). Tests: test_ops_diagonal.py.
#pragma once

#include "perturb.h"

namespace torch_ssam {

struct DiagonalShape {
  int64_t depth;
  int64_t features;
  int64_t rows;  // product of the leading dimensions of the input
};

TORCH_SSAM_EXPORT DiagonalShape check_diagonal(const Tensor& input, const Tensor& weight,
                                               const std::optional<Tensor>& generator);
TORCH_SSAM_EXPORT void check_diagonal_grad(const Tensor& grad_output, const Tensor& input, bool readout);

}  // namespace torch_ssam
