// Chooses the simulator's inner loops, by the names and the environment variable of csrc/ops/cpu/capability.cpp; apart
// from it because theory and operators are separate libraries, of which a program may have one.
// Tests: tests/cpp/test_simulate.cpp, tests/python/test_simulate*.py.
#include <cstdlib>
#include <cstring>

#include "theory/simulate.h"
#include "theory/simulate_kernels.h"

namespace torch_ssam::theory {

#if !defined(TORCH_SSAM_X86_VARIANTS)
const SimulateKernels* simulate_kernels_avx512() { return nullptr; }
const SimulateKernels* simulate_kernels_avx2() { return nullptr; }
#endif

const SimulateKernels* simulate_kernels_named(const char* name) {
#if defined(TORCH_SSAM_X86_VARIANTS)
  // GCC's names of the levels that CMakeLists.txt compiles for.
  if (std::strcmp(name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")
               ? simulate_kernels_avx512()
               : nullptr;
  }
  if (std::strcmp(name, "avx2") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")
               ? simulate_kernels_avx2()
               : nullptr;
  }
#endif
  return std::strcmp(name, "plain") == 0 ? simulate_kernels_plain() : nullptr;
}

const SimulateKernels& simulate_kernels() {
  static const SimulateKernels* const chosen = [] {
    const char* wanted = std::getenv("TORCH_SSAM_CPU_CAPABILITY");
    for (const char* name : {wanted != nullptr ? wanted : "", "avx512", "avx2"}) {
      if (const SimulateKernels* table = simulate_kernels_named(name)) return table;
    }
    return simulate_kernels_plain();
  }();
  return *chosen;
}

const char* simulate_capability() { return simulate_kernels().name; }

}  // namespace torch_ssam::theory
