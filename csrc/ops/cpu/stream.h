// For passes over more memory than the caches hold. Stores that go past the caches ("non-temporal"), for what is only
// written: an ordinary store first reads the line that it will overwrite, so that update_and_perturb moves six words an
// element with these and seven without; where a compiler or processor has none, they are plain stores. And fetching
// ahead: the processor's own prefetching stops at the end of each page of 4 KiB and cannot see past the noise.
// Together 0.83 of the time with Gaussian and 0.68 with Rademacher noise at 32M (Zen 3, two threads).
// Everything here has internal linkage (see csrc/math/portable.h).
// Tests: tests/cpp/test_kernels.cpp (StreamedStoresGiveTheSameBits).
#pragma once

#include <cstdint>

#include "../../math/noise_blocks.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_nontemporal_store)
#define TORCH_SSAM_NONTEMPORAL_STORE 1
#endif
#endif

namespace torch_ssam::cpu {
namespace {

constexpr int64_t kStreamAlignment = sizeof(math::vector_t);

inline __attribute__((always_inline)) void stream_vector(void* target, const void* source) {
  typedef float floats_t __attribute__((vector_size(sizeof(math::vector_t))));
  floats_t values;
  __builtin_memcpy(&values, source, sizeof(values));
#if defined(TORCH_SSAM_NONTEMPORAL_STORE)
  __builtin_nontemporal_store(values, static_cast<floats_t*>(target));
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512(static_cast<float*>(target), values);
#elif defined(__AVX__)
  __builtin_ia32_movntps256(static_cast<float*>(target), values);
#elif defined(__SSE__)
  __builtin_ia32_movntps(static_cast<float*>(target), values);
#else
  __builtin_memcpy(target, &values, sizeof(values));
#endif
}

// One block of 64 elements; target is aligned to kStreamAlignment.
template <typename scalar_t>
inline __attribute__((always_inline)) void stream_block(scalar_t* target, const scalar_t* values) {
  constexpr int64_t kBytes = math::kGaussianBlock * static_cast<int64_t>(sizeof(scalar_t));
  TORCH_SSAM_UNROLL
  for (int64_t at = 0; at < kBytes; at += kStreamAlignment) {
    stream_vector(reinterpret_cast<char*>(target) + at, reinterpret_cast<const char*>(values) + at);
  }
}

inline bool can_stream(const void* target) {
  return reinterpret_cast<uintptr_t>(target) % static_cast<uintptr_t>(kStreamAlignment) == 0;
}

// Asks for the block of 64 elements that lies 1 KiB on, to be read, or to be written too. Beyond the end nothing
// happens.
template <bool kWrites, typename scalar_t>
inline __attribute__((always_inline)) void fetch_ahead(const scalar_t* values) {
  constexpr int64_t kAhead = 1024, kLine = 64;
  constexpr int64_t kBytes = math::kGaussianBlock * static_cast<int64_t>(sizeof(scalar_t));
  TORCH_SSAM_UNROLL
  for (int64_t at = 0; at < kBytes; at += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(values) + kAhead + at, kWrites ? 1 : 0);
  }
}

// Such stores are not ordered with those after them: a thread ends with this before others may read.
inline void end_of_stream() {
#if defined(__SSE__)
  __builtin_ia32_sfence();
#endif
}

}  // namespace
}  // namespace torch_ssam::cpu
