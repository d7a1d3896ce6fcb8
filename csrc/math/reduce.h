// Sums with one fixed order, the same on every device: kLanes running sums over the elements l, l + 16, ..., added up
// as a tree. The squared norm of stacked weights takes pieces of kNormPiece elements and adds the pieces in order; the
// projection onto a ball ([CLS] Theorem 4.4) is w * radius / norm where the norm exceeds the radius.
// The readout of the diagonal product uses the same lanes (diagonal.h). Tests: test_kernels.cpp, test_cuda_on_host.cpp.
#pragma once

#include "noise.h"

namespace torch_ssam::math {

inline constexpr int64_t kNormPiece = 4096;

TORCH_SSAM_BODY int64_t norm_pieces(int64_t count) { return (count + kNormPiece - 1) / kNormPiece; }

TORCH_SSAM_BODY double accumulate_square(double sum, double value) { return fused_multiply_add(value, value, sum); }

template <int kWidth, typename opmath_t>
TORCH_SSAM_BODY void add_upper_lanes(opmath_t (&lanes)[kLanes]) {
  TORCH_SSAM_UNROLL
  for (int l = 0; l < kWidth; ++l) lanes[l] += lanes[l + kWidth];
}

// The sum as a tree of widths 8, 4, 2, 1; the lanes are spent. Written out, so that a GPU keeps them in registers.
template <typename opmath_t>
TORCH_SSAM_BODY opmath_t add_lanes(opmath_t (&lanes)[kLanes]) {
  add_upper_lanes<8>(lanes);
  add_upper_lanes<4>(lanes);
  add_upper_lanes<2>(lanes);
  add_upper_lanes<1>(lanes);
  return lanes[0];
}

struct Projection {
  bool outside;
  double factor;  // of use only where `outside`
};

// Weights that overflowed, or whose squares do, stay as they are: a factor of 0 would hide that the run diverged.
TORCH_SSAM_BODY Projection make_projection(double squared_norm, double radius) {
  const double norm = square_root(squared_norm);
  return {norm > radius && norm <= 0x1p+1023, radius / norm};
}

template <typename opmath_t>
TORCH_SSAM_BODY opmath_t scale_element(opmath_t value, opmath_t factor) {
  return value * factor;
}

}  // namespace torch_ssam::math
