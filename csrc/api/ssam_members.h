// What the sources of SSAM share: the tensors of a group with their places, and the walk over groups.
#pragma once

#include <torch_ssam/ssam.h>

#include <utility>

#include "noise_state.h"

namespace torch_ssam {

struct SSAM::Members : detail::Members {};

template <typename Visit>
void SSAM::for_each_group(const Visit& visit, bool frozen_too) {
  std::int64_t place = 0;
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    Members members;
    const std::vector<at::Tensor>& params = param_groups_[g].params();
    members.params.reserve(params.size());
    members.places.reserve(params.size());
    for (const at::Tensor& p : params) {
      if (frozen_too || p.requires_grad()) members.push_back(p, place);
      ++place;
    }
    visit(std::as_const(options_of(g)), members);
  }
}

}  // namespace torch_ssam
