// The diagonal product y = x * w_1 * ... * w_L of one coordinate, forward and backward, without a division:
// the gradient of layer i is (sum over the batch of g x) times the product of the other layers, built from a prefix
// going up and a suffix going down, so zeros, negative zeros and any depth >= 1 come out right.
// Layers are visited through a stride, so that a body sees neither layout nor tensor. docs/theory.md: P_i = prod_{k!=i}
// w_k. Tests: tests/cpp/test_math.cpp, tests/python/test_ops_diagonal.py.
#pragma once

#include "portable.h"

namespace torch_ssam::math {

// Rows of the batch whose products are summed one after the other before they join the total: the sum has one fixed
// order whatever the number of threads or blocks.
inline constexpr int64_t kBatchSegment = 64;

// Coordinates summed together by readout="sum"; lane l takes coordinates l, l + 16, ... of its chunk.
inline constexpr int64_t kReadoutChunk = 1024;

template <typename opmath_t>
TORCH_SSAM_BODY opmath_t diagonal_extend(opmath_t product, opmath_t layer) {
  return product * layer;
}

// One more row: sum over the batch of grad_output * input.
template <typename opmath_t>
TORCH_SSAM_BODY opmath_t diagonal_accumulate(opmath_t sum, opmath_t grad_output, opmath_t input) {
  return fused_multiply_add(grad_output, input, sum);
}

// Gradient of layer i from the product of the layers before it, of those after it, and the accumulated sum.
template <typename opmath_t>
TORCH_SSAM_BODY opmath_t diagonal_layer_gradient(opmath_t prefix, opmath_t suffix, opmath_t accumulated) {
  return accumulated * (prefix * suffix);
}

}  // namespace torch_ssam::math
