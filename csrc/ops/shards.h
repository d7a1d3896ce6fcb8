// The `shards` argument of the operators that make noise: where each tensor lies in the tensor that it is a part of.
// For each tensor of d dimensions 2 d integers: the sizes of the whole tensor, then where the part starts. Without it
// every tensor is whole. What an element's noise is of is its index in the whole tensor. Tests: test_ops_shards.py.
#pragma once

#include "../math/shard.h"
#include "tensors.h"

namespace torch_ssam {

using Shards = std::vector<math::Shard>;  // one for each tensor; empty where all are whole

Shards check_shards(const std::optional<std::vector<int64_t>>& shards, const TensorViews& params);

}  // namespace torch_ssam
