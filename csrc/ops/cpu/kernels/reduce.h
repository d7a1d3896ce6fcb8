// Reductions of rows, the multiplication of a projection, and clipping. Part of ../kernels.cpp.
#pragma once

#include "../../../math/reduce.h"
#include "../../../math/stored.h"
#include "../kernels.h"

namespace torch_ssam::cpu {
namespace {

using math::kLanes;
using math::load_scalar;
using math::opmath_t;
using math::Store;

// 16 lanes, then a tree: one order for every build. Groups of 16 are taken several at a time, or the compiler would
// unroll the lanes before it could make vectors of them.
template <typename Reduction, typename master_t>
double reduce(const void* weights_, int64_t count) {
  using math_t = opmath_t<master_t>;
  const auto* weights = static_cast<const master_t*>(weights_);
  typename Reduction::template lane_t<math_t> lanes[kLanes] = {};
  constexpr int kGroups = 8;
  const int64_t whole = count - count % kLanes;
  int64_t done = 0;
  for (; done + kGroups * kLanes <= count; done += kGroups * kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      auto lane = lanes[l];
      TORCH_SSAM_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        lane = Reduction::template accumulate<math_t>(lane, load_scalar(weights[done + g * kLanes + l]));
      }
      lanes[l] = lane;
    }
  }
  for (int64_t i = done; i < whole; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lanes[l] = Reduction::template accumulate<math_t>(lanes[l], load_scalar(weights[i + l]));
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    auto& lane = lanes[i - whole];
    lane = Reduction::template accumulate<math_t>(lane, load_scalar(weights[i]));
  }
  return Reduction::of_piece(math::join_lanes<Reduction>(lanes));
}

template <typename master_t>
void scale(double factor, void* weights_, int64_t count) {
  using math_t = opmath_t<master_t>;
  auto* weights = static_cast<master_t*>(weights_);
  const auto f = static_cast<math_t>(factor);
  for (int64_t i = 0; i < count; ++i)
    weights[i] = Store<master_t>::from(math::scale_element(load_scalar(weights[i]), f));
}

template <typename master_t>
void clip(double limit, void* weights_, int64_t count) {
  using math_t = opmath_t<master_t>;
  auto* weights = static_cast<master_t*>(weights_);
  const auto most = static_cast<math_t>(limit);
  for (int64_t i = 0; i < count; ++i)
    weights[i] = Store<master_t>::from(math::clip_element(load_scalar(weights[i]), most));
}

}  // namespace
}  // namespace torch_ssam::cpu
