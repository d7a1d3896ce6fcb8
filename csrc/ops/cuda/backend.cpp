// The CUDA backend's table, registered for CUDA's dispatch keys when this library is loaded.
#include "../operators.h"
#include "launches.h"

namespace torch_ssam {
namespace {

constexpr Backend kBackend{cuda::perturb,          cuda::restore,           cuda::follow,      cuda::advance,
                           cuda::update,           /*update_rows=*/nullptr, cuda::add_squares, cuda::project,
                           cuda::row_scales,       cuda::row_fisher,        cuda::clip_rows,   cuda::diagonal,
                           cuda::diagonal_backward};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CUDA, m) { implement_operators(m, Device::cuda, kBackend); }
STABLE_TORCH_LIBRARY_IMPL(torch_ssam, SparseCUDA, m) { implement_operators(m, Device::cuda, kBackend); }

}  // namespace torch_ssam
