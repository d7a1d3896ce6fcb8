// Chooses the table of inner loops: once, from what the processor has, or by the name in the environment variable
// TORCH_SSAM_CPU_CAPABILITY (plain, avx2, avx512). All give the same bits, so the choice is about speed alone.
// Tests: tests/cpp/test_kernels.cpp, tests/python/test_variants.py (which forces each).
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace torch_ssam::cpu {

#if !defined(TORCH_SSAM_X86_VARIANTS)
const Kernels* kernels_avx512() { return nullptr; }
const Kernels* kernels_avx2() { return nullptr; }
#endif

namespace {

const Kernels* usable(const char* name) {
#if defined(TORCH_SSAM_X86_VARIANTS)
  if (std::strcmp(name, "avx512") == 0) {
    const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    return has ? kernels_avx512() : nullptr;
  }
  if (std::strcmp(name, "avx2") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")
               ? kernels_avx2()
               : nullptr;
  }
#endif
  return std::strcmp(name, "plain") == 0 ? kernels_plain() : nullptr;
}

const Kernels* best() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* table = usable(name)) return table;
  }
  return kernels_plain();
}

const Kernels* initial() {
  const char* wanted = std::getenv("TORCH_SSAM_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return best();
  if (const Kernels* table = usable(wanted)) return table;
  std::fprintf(stderr,
               "torch_ssam: TORCH_SSAM_CPU_CAPABILITY=%s is not one of plain, avx2, avx512 or this processor lacks it; "
               "using %s.\n",
               wanted, best()->name);
  return best();
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{initial()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

bool select_kernels(const char* name) {
  const Kernels* table = usable(name);
  if (table != nullptr) current().store(table, std::memory_order_relaxed);
  return table != nullptr;
}

}  // namespace torch_ssam::cpu
