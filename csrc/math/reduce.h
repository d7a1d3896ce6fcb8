// Reductions with one fixed order, the same on every device: kLanes running values over the elements l, l + 16, ...,
// joined as a tree. A row, or a list of stacked weights, takes pieces of kNormPiece elements and joins the pieces in
// order. The projection onto a ball ([CLS] Theorem 4.4) is w * radius / norm where the norm exceeds the radius; a row
// is clipped to a multiple of its root mean square.
// The readout of the diagonal product uses the same lanes (diagonal.h). Tests: test_kernels.cpp, test_cuda_on_host.cpp.
#pragma once

#include "noise.h"

namespace torch_ssam::math {

inline constexpr int64_t kNormPiece = 4096;

TORCH_SSAM_BODY int64_t norm_pieces(int64_t count) { return (count + kNormPiece - 1) / kNormPiece; }

struct Add {
  template <typename lane_t>
  TORCH_SSAM_BODY lane_t join(lane_t a, lane_t b) {
    return a + b;
  }
};

struct Larger {
  template <typename lane_t>
  TORCH_SSAM_BODY lane_t join(lane_t a, lane_t b) {
    return a > b ? a : b;
  }
};

template <typename Join, int kWidth, typename lane_t>
TORCH_SSAM_BODY void join_upper_lanes(lane_t (&lanes)[kLanes]) {
  TORCH_SSAM_UNROLL
  for (int l = 0; l < kWidth; ++l) lanes[l] = Join::join(lanes[l], lanes[l + kWidth]);
}

// A tree of widths 8, 4, 2, 1; the lanes are spent. Written out, so that a GPU keeps them in registers.
template <typename Join, typename lane_t>
TORCH_SSAM_BODY lane_t join_lanes(lane_t (&lanes)[kLanes]) {
  join_upper_lanes<Join, 8>(lanes);
  join_upper_lanes<Join, 4>(lanes);
  join_upper_lanes<Join, 2>(lanes);
  join_upper_lanes<Join, 1>(lanes);
  return lanes[0];
}

template <typename opmath_t>
TORCH_SSAM_BODY opmath_t add_lanes(opmath_t (&lanes)[kLanes]) {
  return join_lanes<Add>(lanes);
}

// What a row is reduced to. Lanes hold lane_t and start at 0; each element joins its lane, lanes join into the piece's
// double, pieces join in order, from 0 on.
struct SumOfSquares : Add {
  template <typename opmath_t>
  using lane_t = double;
  template <typename opmath_t>
  TORCH_SSAM_BODY double accumulate(double sum, opmath_t value) {
    const auto wide = static_cast<double>(value);
    return fused_multiply_add(wide, wide, sum);
  }
  TORCH_SSAM_BODY double of_piece(double sum) { return sum; }
  TORCH_SSAM_BODY double join_pieces(double a, double b) { return a + b; }
};

// max |value|, in any order. Magnitudes are compared as the integers that their bits are: NaN is above infinity, so
// that a row with a NaN has NaN, whichever came first.
struct LargestMagnitude : Larger {
  template <typename opmath_t>
  using lane_t = decltype(magnitude_bits(opmath_t()));
  template <typename opmath_t>
  TORCH_SSAM_BODY lane_t<opmath_t> accumulate(lane_t<opmath_t> largest, opmath_t value) {
    return join(largest, magnitude_bits(value));
  }
  TORCH_SSAM_BODY double of_piece(int32_t bits) {
    return static_cast<double>(bits_to_float(static_cast<uint32_t>(bits)));
  }
  TORCH_SSAM_BODY double of_piece(int64_t bits) { return bits_to_double(bits); }
  TORCH_SSAM_BODY double join_pieces(double a, double b) {
    return bits_to_double(join(magnitude_bits(a), magnitude_bits(b)));
  }
};

struct Projection {
  bool outside;
  double factor;  // of use only where `outside`
};

// Weights that overflowed, or whose squares do, stay as they are: a factor of 0 would hide that the run diverged.
TORCH_SSAM_BODY Projection make_projection(double squared_norm, double radius) {
  const double norm = square_root(squared_norm);
  return {norm > radius && norm <= 0x1p+1023, radius / norm};
}

// What a row is clipped to: `weight_clip` times its root mean square. NaN and infinity, from weights that overflowed,
// clip nothing.
TORCH_SSAM_BODY double row_limit(double squared_norm, int64_t length, double weight_clip) {
  return weight_clip * square_root(squared_norm / static_cast<double>(length));
}

template <typename opmath_t>
TORCH_SSAM_BODY opmath_t clip_element(opmath_t value, opmath_t limit) {
  return value > limit ? limit : value < -limit ? -limit : value;
}

template <typename opmath_t>
TORCH_SSAM_BODY opmath_t scale_element(opmath_t value, opmath_t factor) {
  return value * factor;
}

}  // namespace torch_ssam::math
