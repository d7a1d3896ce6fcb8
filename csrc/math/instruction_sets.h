// Which of the loops' compiled variants (plain, avx2, avx512) this processor can run, and which one the environment
// variable TORCH_SSAM_CPU_CAPABILITY asks for. Operators and simulator are separate libraries, of which a program may
// have one, so each keeps its own table; the rule is here. For the files that choose, never for the variants
// themselves: those may hold nothing but their loops (portable.h). Tests: tests/cpp/test_linkage.cpp,
// tests/cpp/test_simulate.cpp, tests/python/test_variants.py.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace torch_ssam::math {

// The functions that give a variant's table, null where the build has none. They are compiled with the variant, so they
// are called on a processor that has it only.
template <typename Table>
struct Variants {
  const Table* (*plain)();
  const Table* (*avx2)();
  const Table* (*avx512)();
};

// The table of that name; null where the build or the processor lacks it, or there is no such name.
template <typename Table>
const Table* usable_variant(const Variants<Table>& built, const char* name) {
#if defined(TORCH_SSAM_X86_VARIANTS)
  // What -march=x86-64-v4 and -v3 of CMakeLists.txt let the compiler emit.
  if (std::strcmp(name, "avx512") == 0) {
    const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    return has ? built.avx512() : nullptr;
  }
  if (std::strcmp(name, "avx2") == 0) {
    const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    return has ? built.avx2() : nullptr;
  }
#endif
  return std::strcmp(name, "plain") == 0 ? built.plain() : nullptr;
}

// The best there is, or the one that the environment names; `who` says it where that one cannot be had.
template <typename Table>
const Table* chosen_variant(const Variants<Table>& built, const char* who) {
  const Table* best = built.plain();
  for (const char* name : {"avx2", "avx512"}) {
    if (const Table* table = usable_variant(built, name)) best = table;
  }
  const char* wanted = std::getenv("TORCH_SSAM_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return best;
  if (const Table* table = usable_variant(built, wanted)) return table;
  std::fprintf(stderr,
               "%s: TORCH_SSAM_CPU_CAPABILITY=%s is not one of plain, avx2, avx512 or this processor lacks it; "
               "using %s.\n",
               who, wanted, best->name);
  return best;
}

}  // namespace torch_ssam::math
