// The CPU's table, registered for the CPU's dispatch keys.
#include "../operators.h"
#include "loops.h"

namespace torch_ssam {
namespace {

constexpr Backend kBackend{
    cpu::perturb,           cpu::restore, cpu::follow,     cpu::advance,    cpu::update,    cpu::update_rows,
    cpu::add_squares,       cpu::project, cpu::row_scales, cpu::row_fisher, cpu::clip_rows, cpu::diagonal,
    cpu::diagonal_backward,
    /*takes_memory=*/true};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CPU, m) { implement_operators(m, Device::cpu, kBackend); }
STABLE_TORCH_LIBRARY_IMPL(torch_ssam, SparseCPU, m) { implement_operators(m, Device::cpu, kBackend); }

}  // namespace torch_ssam
