// Operators that make the scales of noise by rows. A tensor has one row, or one for each index of dimension 0.
//   row_scales_  row_scales <- |w_r|_2 / sqrt(1 + fisher_factor F_r); without `fisher` F is 0
//   row_fisher_  fisher <- decay fisher + sum over the row of grad^2
// Sums have the one order of csrc/math/reduce.h, pieces counted from the start of each row. Tests: test_ops_scale.py.
#pragma once

#include "../math/scale.h"
#include "tensors.h"

namespace torch_ssam {

// Numbers of a tensor's rows, float32; element i of the tensor, in row-major order, is in row i / length.
struct RowView {
  float* data;
  int64_t rows;
  int64_t length;
};

using RowViews = std::vector<RowView>;

// One contiguous float32 tensor for each of `like`, with as many elements as rows.
TORCH_SSAM_EXPORT RowViews view_rows(const std::vector<Tensor>& rows, const char* name, const TensorViews& like,
                                     const char* like_name);

TORCH_SSAM_EXPORT math::Scale parse_scale(const std::string& name);

struct RowScalesArgs {
  TensorViews weights;
  RowViews row_scales;
  RowViews fisher;  // or empty
};

TORCH_SSAM_EXPORT RowScalesArgs check_row_scales(const std::vector<Tensor>& row_scales,
                                                 const std::vector<Tensor>& weights, const std::vector<Tensor>& fisher,
                                                 double fisher_factor);

struct RowFisherArgs {
  TensorViews grads;
  RowViews fisher;
};

TORCH_SSAM_EXPORT RowFisherArgs check_row_fisher(const std::vector<Tensor>& fisher, const std::vector<Tensor>& grads,
                                                 double decay);

}  // namespace torch_ssam
