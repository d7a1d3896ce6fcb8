// Opens the dispatcher namespace `torch_ssam`, defines the operators that operators.h lists, keeps the backends, and
// has the operators that say which inner loops of the CPU are in use.
#include <utility>

#include "cpu/kernels.h"
#include "operators.h"

namespace torch_ssam {
namespace {

constexpr const Operator* kOperators[] = {
#define TORCH_SSAM_ADDRESS(name) &operators::name,
    TORCH_SSAM_EACH_OPERATOR(TORCH_SSAM_ADDRESS)
#undef TORCH_SSAM_ADDRESS
};

// Filled as libraries are loaded, before any call.
const Backend* backends[2] = {};

std::string cpu_capability() { return cpu::kernels().name; }

void set_cpu_capability(StringArgument argument) {
  const std::string name = take(argument);
  TORCH_SSAM_CHECK(cpu::select_kernels(name.c_str()), "no CPU kernels '", name,
                   "' here; expected plain, avx2 or avx512, and a processor and build that have them.");
}

}  // namespace

Operators register_backend(Device device, const Backend& backend) {
  const Backend* const replaced = std::exchange(backends[static_cast<int>(device)], &backend);
  return {kOperators, std::size(kOperators), replaced};
}

const Backend& backend_of(const Tensor& tensor) {
  return *backends[static_cast<int>(tensor.is_cpu() ? Device::cpu : Device::cuda)];
}

const Backend& cpu_backend() { return *backends[static_cast<int>(Device::cpu)]; }

STABLE_TORCH_LIBRARY(torch_ssam, m) {
  for (const Operator* each : kOperators) m.def(each->schema);
  m.def("cpu_capability() -> str");
  m.def("_set_cpu_capability(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("_set_cpu_capability", TORCH_BOX(&set_cpu_capability));
}

}  // namespace torch_ssam
