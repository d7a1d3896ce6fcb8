// For passes over more memory than the caches hold. Stores that go past the caches ("non-temporal"), for what is only
// written: an ordinary store first reads the line that it will overwrite, so that update_and_perturb moves six words an
// element with these and seven without; where a compiler or processor has none, they are plain stores. And fetching
// ahead: the processor's own prefetching stops at the end of each page of 4 KiB and cannot see past the noise.
// Together 0.83 of the time with Gaussian and 0.68 with Rademacher noise at 32M; restoring takes 0.63 of memcpy's
// (Zen 3, two threads). Everything here has internal linkage (see csrc/math/portable.h).
// Tests: tests/cpp/test_kernels.cpp (Streamed, StreamCopy), test_ops_update.py (beyond_the_caches).
#pragma once

#include <cstdint>

#include "../../../math/wide_vectors.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_nontemporal_store)
#define TORCH_SSAM_NONTEMPORAL_STORE 1
#endif
#endif

namespace torch_ssam::cpu {
namespace {

constexpr int64_t kCacheLine = 64;

inline __attribute__((always_inline)) void stream_vector(void* target, const void* source) {
  typedef float floats_t __attribute__((vector_size(sizeof(math::vector_t)), may_alias));
  floats_t values;
  __builtin_memcpy(&values, source, sizeof(values));
#if defined(TORCH_SSAM_NONTEMPORAL_STORE)
  __builtin_nontemporal_store(values, static_cast<floats_t*>(target));
#elif defined(__AVX512F__)
  _mm512_stream_ps(static_cast<float*>(target), values);
#elif defined(__AVX2__)
  _mm256_stream_ps(static_cast<float*>(target), values);
#elif defined(__SSE2__)
  _mm_stream_ps(static_cast<float*>(target), values);
#else
  __builtin_memcpy(target, &values, sizeof(values));
#endif
}

// Whole lines only: a line that is stored in two parts goes to memory twice.
inline bool can_stream(const void* target) { return reinterpret_cast<uintptr_t>(target) % kCacheLine == 0; }

template <int64_t kBytes>
inline __attribute__((always_inline)) void stream_block(void* target, const void* source) {
  static_assert(kBytes % kCacheLine == 0);
  constexpr int64_t kStep = sizeof(math::vector_t);
  TORCH_SSAM_UNROLL
  for (int64_t at = 0; at < kBytes; at += kStep) {
    stream_vector(static_cast<char*>(target) + at, static_cast<const char*>(source) + at);
  }
}

// Asks for memory, for the second-level cache; beyond its end nothing happens.
template <int64_t kBytes>
inline __attribute__((always_inline)) void fetch(const void* memory) {
  TORCH_SSAM_UNROLL
  for (int64_t at = 0; at < kBytes; at += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(memory) + at), 0, 2);
  }
}

// Asks for what lies 1 KiB on; beyond the end of memory nothing happens.
template <int64_t kBytes>
inline __attribute__((always_inline)) void fetch_ahead(const void* memory) {
  constexpr int64_t kAhead = 1024;
  TORCH_SSAM_UNROLL
  for (int64_t at = 0; at < kBytes; at += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(memory) + kAhead + at));
  }
}

// On x86 such stores are not ordered with those after them: a thread ends with this before others may read. Elsewhere
// the barriers that hand memory to other threads order them too.
inline void end_of_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace torch_ssam::cpu
