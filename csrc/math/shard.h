// Where the elements of a shard lie in the whole tensor. Noise is a function of an element's index in the whole tensor
// (noise.h), so a rank that holds a box of it, a range in each dimension, needs no more than this map to make the noise
// of its own elements, and only that. Both count in row-major order.
// A dimension that the shard has whole is one with the dimension before it, so few are left: a shard along dimension 0
// is one run of neighbours. Tests: test_math.cpp, test_kernels.cpp, test_ops_shards.py.
#pragma once

#include "portable.h"

namespace torch_ssam::math {

struct Shard {
  static constexpr int kMaxDims = 4;
  int64_t origin = 0;  // index of the shard's first element in the whole tensor
  int dims = 0;        // with none or one the shard is one run
  int64_t sizes[kMaxDims] = {};
  int64_t pitches[kMaxDims] = {};  // between neighbours along the dimension, in elements of the whole tensor

  bool one_run() const { return dims <= 1; }
};

// Adds a dimension inside those that are there: the shard has `size` of its `whole` indices, from `start` on.
// False where there is no room for one more.
TORCH_SSAM_BODY bool add_dimension(Shard& shard, int64_t start, int64_t size, int64_t whole) {
  shard.origin = shard.origin * whole + start;
  for (int d = 0; d < shard.dims; ++d) shard.pitches[d] *= whole;
  if (shard.dims > 0 && (size == whole || shard.sizes[shard.dims - 1] == 1)) {
    shard.sizes[shard.dims - 1] *= size;
    shard.pitches[shard.dims - 1] = 1;
    return true;
  }
  if (shard.dims == Shard::kMaxDims) return false;
  shard.sizes[shard.dims] = size;
  shard.pitches[shard.dims] = 1;
  ++shard.dims;
  return true;
}

// Element `element` of a shard of so many dimensions, as an element of the whole tensor.
TORCH_SSAM_BODY int64_t whole_element(int64_t origin, int64_t dims, const int64_t* sizes, const int64_t* pitches,
                                      int64_t element) {
  int64_t whole = origin;
  for (int64_t d = dims - 1; d > 0; --d) {
    whole += element % sizes[d] * pitches[d];
    element /= sizes[d];
  }
  return whole + element * (dims > 0 ? pitches[0] : 1);
}
TORCH_SSAM_BODY int64_t whole_element(const Shard& shard, int64_t element) {
  return whole_element(shard.origin, shard.dims, shard.sizes, shard.pitches, element);
}

// How many elements of the shard, from this one on, are neighbours in the whole tensor.
TORCH_SSAM_BODY int64_t left_in_run(const Shard& shard, int64_t element) {
  const int64_t run = shard.sizes[shard.dims > 0 ? shard.dims - 1 : 0];
  return run - element % run;
}

// In how many blocks of so many neighbours of the whole tensor a run lies at most, wherever it starts.
TORCH_SSAM_BODY int64_t blocks_of_run(int64_t run, int64_t block) { return (run + block - 2) / block + 1; }

}  // namespace torch_ssam::math
