// CPU loops of the operators in ../rows.cpp.
#include "loops.h"
#include "pieces.h"

namespace torch_ssam::cpu {

void row_scales(const RowScalesCall& call) {
  if (call.kind == math::RowScale::absmax) {
    return for_each_row(
        math::LargestMagnitude(), call.weights, call.row_scales,
        [&](size_t t, int64_t row, double largest) { call.row_scales[t].data[row] = math::row_range(largest); });
  }
  for_each_row(math::SumOfSquares(), call.weights, call.row_scales, [&](size_t t, int64_t row, double sum) {
    const double f = call.fisher.empty() ? 0.0 : static_cast<double>(call.fisher[t].data[row]);
    call.row_scales[t].data[row] = math::row_scale(sum, f, call.fisher_factor);
  });
}

void row_fisher(const RowFisherCall& call) {
  for_each_row(math::SumOfSquares(), call.grads, call.fisher, [&](size_t t, int64_t row, double sum) {
    float& f = call.fisher[t].data[row];
    f = math::row_fisher(f, sum, call.decay);
  });
}

void clip_rows(const ClipRowsCall& call) {
  std::vector<std::vector<double>> limits;
  limits.reserve(call.rows.size());
  for (const RowView& row : call.rows) limits.emplace_back(static_cast<size_t>(row.rows));
  for_each_row(math::SumOfSquares(), call.weights, call.rows, [&](size_t t, int64_t row, double sum) {
    limits[t][static_cast<size_t>(row)] = math::row_limit(sum, call.rows[t].length, call.weight_clip);
  });
  const Kernels& k = kernels();
  const std::array<Operand, 1> operands{Operand{&call.weights, Access::read_write}};
  for_each_segment(call.weights, operands, 4 * kGrain, [&](size_t t, Span span, const std::array<void*, 1>& p) {
    const ScalarType dtype = call.weights[t].dtype;
    for_each_row_in(span, call.rows[t].length, [&](int64_t row, int64_t done, int64_t count) {
      char* weights = static_cast<char*>(p[0]) + done * static_cast<int64_t>(bytes_of(dtype));
      k.clip[static_cast<int>(dtype_of(dtype))](limits[t][static_cast<size_t>(row)], weights, count);
    });
  });
}

}  // namespace torch_ssam::cpu
