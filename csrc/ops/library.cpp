// Opens the dispatcher namespace `torch_ssam` and defines the operators that say which inner loops are in use.
// The other operators are defined beside their checks: perturb.cpp, scale.cpp, update.cpp, diagonal.cpp.
#include "cpu/kernels.h"
#include "tensors.h"

namespace torch_ssam {
namespace {

std::string cpu_capability() { return cpu::kernels().name; }

void set_cpu_capability(StringArgument argument) {
  const std::string name = take(argument);
  TORCH_SSAM_CHECK(cpu::select_kernels(name.c_str()), "no CPU kernels '", name,
                   "' here; expected plain, avx2 or avx512, and a processor and build that have them.");
}

}  // namespace

STABLE_TORCH_LIBRARY(torch_ssam, m) {
  m.def("cpu_capability() -> str");
  m.def("_set_cpu_capability(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("_set_cpu_capability", TORCH_BOX(&set_cpu_capability));
}

}  // namespace torch_ssam
