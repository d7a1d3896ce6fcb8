// CPU loops of the operators in ../scale.h.
#include "../scale.h"

#include "norms.h"

namespace torch_ssam::cpu {
namespace {

void row_scales_cpu(std::vector<Tensor> row_scales, std::vector<Tensor> weights, std::vector<Tensor> fisher,
                    double fisher_factor) {
  const RowScalesArgs args = check_row_scales(row_scales, weights, fisher, fisher_factor);
  for_each_row_sum(args.weights, args.row_scales, [&](size_t t, int64_t row, double sum) {
    const double f = args.fisher.empty() ? 0.0 : static_cast<double>(args.fisher[t].data[row]);
    args.row_scales[t].data[row] = math::row_scale(sum, f, fisher_factor);
  });
}

void row_fisher_cpu(std::vector<Tensor> fisher, std::vector<Tensor> grads, double decay) {
  const RowFisherArgs args = check_row_fisher(fisher, grads, decay);
  for_each_row_sum(args.grads, args.fisher, [&](size_t t, int64_t row, double sum) {
    float& f = args.fisher[t].data[row];
    f = math::row_fisher(f, sum, decay);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CPU, m) {
  m.impl("row_scales_", TORCH_BOX(&row_scales_cpu));
  m.impl("row_fisher_", TORCH_BOX(&row_fisher_cpu));
}

// Sparse tensors reach the same checks, which say what to do instead.
STABLE_TORCH_LIBRARY_IMPL(torch_ssam, SparseCPU, m) {
  m.impl("row_scales_", TORCH_BOX(&row_scales_cpu));
  m.impl("row_fisher_", TORCH_BOX(&row_fisher_cpu));
}

}  // namespace torch_ssam::cpu
