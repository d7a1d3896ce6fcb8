// Chooses the simulator's inner loops, once; csrc/math/instruction_sets.h has the rule.
// Tests: tests/cpp/test_simulate.cpp, tests/python/test_simulate*.py.
#include "math/instruction_sets.h"
#include "theory/simulate.h"
#include "theory/simulate_kernels.h"

namespace torch_ssam::theory {

#if !defined(TORCH_SSAM_X86_VARIANTS)
const SimulateKernels* simulate_kernels_avx512() { return nullptr; }
const SimulateKernels* simulate_kernels_avx2() { return nullptr; }
#endif

namespace {

constexpr math::Variants<SimulateKernels> kBuilt = {simulate_kernels_plain, simulate_kernels_avx2,
                                                    simulate_kernels_avx512};

}  // namespace

const SimulateKernels* simulate_kernels_named(const char* name) { return math::usable_variant(kBuilt, name); }

const SimulateKernels& simulate_kernels() {
  static const SimulateKernels* const chosen = math::chosen_variant(kBuilt, "torch_ssam's simulator");
  return *chosen;
}

const char* simulate_capability() { return simulate_kernels().name; }

}  // namespace torch_ssam::theory
