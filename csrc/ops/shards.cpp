// The check of shards.h.
#include "shards.h"

namespace torch_ssam {

Shards check_shards(const std::optional<std::vector<int64_t>>& shards, const TensorViews& params) {
  if (!shards) return {};
  int64_t expected = 0;
  for (const TensorView& view : params) expected += 2 * view.dim;
  TORCH_SSAM_CHECK(static_cast<int64_t>(shards->size()) == expected, "shards has ", shards->size(),
                   " integers; expected ", expected,
                   ": for each tensor the sizes of the whole tensor, then where its shard starts in each dimension.");
  Shards result;
  result.reserve(params.size());
  const int64_t* whole = shards->data();
  for (size_t t = 0; t < params.size(); ++t) {
    const TensorView& view = params[t];
    const int64_t* start = whole + view.dim;
    math::Shard shard;
    int64_t numel = 1;
    for (int64_t d = 0; d < view.dim; ++d) {
      TORCH_SSAM_CHECK(start[d] >= 0 && whole[d] >= view.sizes[d] && start[d] <= whole[d] - view.sizes[d], "shard ", t,
                       " starts at ", start[d], " of ", whole[d], " in dimension ", d, " and has ", view.sizes[d],
                       "; expected it to lie inside the whole tensor.");
      TORCH_SSAM_CHECK(!__builtin_mul_overflow(numel, whole[d], &numel), "the whole tensor of shard ", t,
                       " has more elements than int64 counts.");
      TORCH_SSAM_CHECK(view.numel == 0 || math::add_dimension(shard, start[d], view.sizes[d], whole[d]), "shard ", t,
                       " is split along more than ", math::Shard::kMaxDims,
                       " runs of dimensions; expected fewer. Shard the tensor along fewer dimensions.");
    }
    result.push_back(shard);
    whole = start + view.dim;
  }
  return result;
}

}  // namespace torch_ssam
