// Where the elements of a part of a tensor lie in the whole one, for the kernels that make noise: it is the noise of
// those elements. A run of neighbours, which a shard along dimension 0 is, costs nothing: its pointers count from where
// the whole tensor would start, and its first element has the index that it has there. What is not one run, or is
// strided, goes to the kernels of one lane a thread with a map (table.h). Nothing here needs CUDA or PyTorch.
// Tests: test_cuda_shards_on_host.cpp, test_cuda.py.
#pragma once

#include "table.h"

namespace torch_ssam::cuda {

// The pointer to what lies so many elements before; there may be nothing.
template <typename T>
T* before(T* data, int64_t elements, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(data) - static_cast<uintptr_t>(elements * bytes));
}

// Rows counted from the whole tensor's first element. False where the run starts inside a row, and has another.
inline bool count_rows_from(RowScales& rows, int64_t origin, int64_t numel) {
  const int64_t length = RowScales::length(rows);
  const int64_t count = RowScales::rows(rows);
  if (count == 0 && numel <= length) {
    if (origin + numel >= int64_t{1} << RowScales::kLengthBits) return false;
    rows = RowScales(rows.row_scales, origin + numel);
    return true;
  }
  const int64_t row = origin / length;
  if (origin % length != 0 || (count != 0 && row % count != 0)) return false;
  if (count == 0) rows.row_scales = before(rows.row_scales, row, sizeof(float));
  return true;
}
template <typename More>
bool count_rows_from(More&, int64_t, int64_t) {
  return true;  // it has none
}

// `bytes` are those of an element of each operand. The tensor keeps a pointer to the shard.
template <typename TensorType>
void place_in_whole(TensorType& tensor, const math::Shard& shard,
                    const std::array<int64_t, TensorType::kOperands>& bytes) {
  if (tensor.numel == 0 || (shard.one_run() && shard.origin == 0)) return;
  const bool run = shard.one_run() && tensor.contiguous();
  if (!run || !count_rows_from(static_cast<typename TensorType::More&>(tensor), shard.origin, tensor.numel)) {
    tensor.runs = &shard;
    return;
  }
  tensor.first = shard.origin;
  for (size_t k = 0; k < bytes.size(); ++k) {
    if (tensor.data[k] != nullptr) tensor.data[k] = before(tensor.data[k], shard.origin, bytes[k]);
  }
}

}  // namespace torch_ssam::cuda
