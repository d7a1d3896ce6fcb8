// Chooses the table of inner loops: once, by csrc/math/instruction_sets.h, and again where a test asks for one by name.
// All give the same bits, so the choice is about speed alone. Tests: tests/cpp/test_kernels.cpp,
// tests/python/test_variants.py (which forces each).
#include <atomic>

#include "../../math/instruction_sets.h"
#include "kernels.h"

namespace torch_ssam::cpu {

#if !defined(TORCH_SSAM_X86_VARIANTS)
const Kernels* kernels_avx512() { return nullptr; }
const Kernels* kernels_avx2() { return nullptr; }
#endif

namespace {

constexpr math::Variants<Kernels> kBuilt = {kernels_plain, kernels_avx2, kernels_avx512};

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{math::chosen_variant(kBuilt, "torch_ssam")};
  return table;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

bool select_kernels(const char* name) {
  const Kernels* table = math::usable_variant(kBuilt, name);
  if (table != nullptr) current().store(table, std::memory_order_relaxed);
  return table != nullptr;
}

}  // namespace torch_ssam::cpu
