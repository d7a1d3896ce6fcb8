// The operators in ../scale.h on a GPU: checked like on the CPU, then refused, until they have kernels.
#include "../scale.h"
#include "launch.h"

namespace torch_ssam::cuda {
namespace {

void row_scales_cuda(std::vector<Tensor> row_scales, std::vector<Tensor> weights, std::vector<Tensor> fisher,
                     double fisher_factor) {
  check_row_scales(row_scales, weights, fisher, fisher_factor);
  refuse_scaled_noise();
}

void row_fisher_cuda(std::vector<Tensor> fisher, std::vector<Tensor> grads, double decay) {
  check_row_fisher(fisher, grads, decay);
  refuse_scaled_noise();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CUDA, m) {
  m.impl("row_scales_", TORCH_BOX(&row_scales_cuda));
  m.impl("row_fisher_", TORCH_BOX(&row_fisher_cuda));
}

// Sparse tensors reach the same checks, which say what to do instead.
STABLE_TORCH_LIBRARY_IMPL(torch_ssam, SparseCUDA, m) {
  m.impl("row_scales_", TORCH_BOX(&row_scales_cuda));
  m.impl("row_fisher_", TORCH_BOX(&row_fisher_cuda));
}

}  // namespace torch_ssam::cuda
