// Numbers for the rows of tensors: scales of noise, and Fisher sums. A tensor has one row, or one for each index of
// dimension 0; element i of it, in row-major order, is in row i / length. Tests: test_ops_scale.py, test_ops_errors.py.
#pragma once

#include "../math/scale.h"
#include "tensors.h"

namespace torch_ssam {

struct RowView {
  float* data;
  int64_t rows;
  int64_t length;
  bool repeat = false;  // after the last row comes the first again: element i is in row i / length % rows
};

using RowViews = std::vector<RowView>;

// One contiguous float32 tensor for each of `like`, with as many elements as rows: one, or one for each index of the
// dimension `channel_dim`.
RowViews view_rows(const std::vector<Tensor>& rows, const char* name, const TensorViews& like, const char* like_name,
                   int64_t channel_dim = 0);

math::RowScale check_row_scale(const std::string& kind);
void check_weight_clip(double weight_clip);

// The rows of tensors, without numbers: one for each index of dimension 0.
RowViews rows_of(const TensorViews& views);

}  // namespace torch_ssam
