// A stretch of a tensor reduced in the order of csrc/math/reduce.h: a piece of kNormPiece elements at most, whose lanes
// are shared among threads. For the projection (project_body.h) and the numbers of rows (rows_body.h).
#pragma once

#include "../../math/reduce.h"
#include "list_body.h"

namespace torch_ssam::cuda {

// The lanes of one piece, the elements [begin, end) of a tensor, of which a thread owns kCount.
template <typename Reduction, typename scalar_t, int kCount, typename lane_t, typename TableType>
TORCH_SSAM_BODY void reduce_lanes(const TableType& table, int index, int64_t begin, int64_t end, int lane,
                                  lane_t (&lanes)[kCount]) {
  TORCH_SSAM_UNROLL_BY(4)
  for (int64_t element = begin + lane; element < end; element += math::kLanes) {
    scalar_t values[kCount];
    load_operand(table, Cursor<1, kCount>::make(table, index, element), 0, values);
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kCount; ++l) lanes[l] = Reduction::accumulate(lanes[l], math::load_scalar(values[l]));
  }
}

}  // namespace torch_ssam::cuda
