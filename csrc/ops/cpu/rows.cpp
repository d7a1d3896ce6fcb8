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

}  // namespace torch_ssam::cpu
