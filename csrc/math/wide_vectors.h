// 16 words, or 16 floats, in the widest vectors there are, with the operators that threefry.h and noise.h use. Both are
// long chains of dependent operations: with the two (AVX2) or four (SSE2) vectors of a bundle side by side the
// processor has something to do while it waits, and words stay in registers on their way. For the loops that are
// compiled once for each instruction set; everything here is inlined and has internal linkage. Tests:
// tests/cpp/test_kernels.cpp.
#pragma once

#include "noise.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define TORCH_SSAM_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define TORCH_SSAM_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace torch_ssam::math {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorLanes = 16;
#elif defined(__AVX2__)
constexpr int kVectorLanes = 8;
#else
constexpr int kVectorLanes = 4;
#endif
constexpr int kVectors = static_cast<int>(kLanes) / kVectorLanes;

typedef uint32_t vector_t __attribute__((vector_size(4 * kVectorLanes)));
typedef int32_t signed_vector_t __attribute__((vector_size(4 * kVectorLanes)));
typedef float float_vector_t __attribute__((vector_size(4 * kVectorLanes)));

struct WideWord {
  vector_t part[kVectors];

  WideWord() = default;
  __attribute__((always_inline)) explicit WideWord(uint32_t value) {
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kVectors; ++i) part[i] = vector_t{} + value;
  }

  // first, first + 1, ..., first + 15
  __attribute__((always_inline)) static WideWord counting_from(uint32_t first) {
    WideWord w;
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      vector_t lanes{};
      for (int l = 0; l < kVectorLanes; ++l) lanes[l] = static_cast<uint32_t>(i * kVectorLanes + l);
      w.part[i] = lanes + first;
    }
    return w;
  }

  __attribute__((always_inline)) void store(uint32_t* target) const {
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kVectors; ++i) __builtin_memcpy(target + i * kVectorLanes, &part[i], sizeof(vector_t));
  }
};

struct WideFloat {
  float_vector_t part[kVectors];

  WideFloat() = default;
  __attribute__((always_inline)) explicit WideFloat(float value) {  // -0 becomes 0
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kVectors; ++i) part[i] = float_vector_t{} + value;
  }

  __attribute__((always_inline)) void store(float* target) const {
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kVectors; ++i) __builtin_memcpy(target + i * kVectorLanes, &part[i], sizeof(vector_t));
  }
};

// Returns a bundle whose every vector i is `expression`.
#define TORCH_SSAM_WIDE(result_t, expression)                     \
  result_t result;                                                \
  TORCH_SSAM_UNROLL                                               \
  for (int i = 0; i < kVectors; ++i) result.part[i] = expression; \
  return result
#define TORCH_SSAM_INLINE inline __attribute__((always_inline))

TORCH_SSAM_INLINE WideWord operator+(const WideWord& a, const WideWord& b) {
  TORCH_SSAM_WIDE(WideWord, a.part[i] + b.part[i]);
}
TORCH_SSAM_INLINE WideWord operator^(const WideWord& a, const WideWord& b) {
  TORCH_SSAM_WIDE(WideWord, a.part[i] ^ b.part[i]);
}
TORCH_SSAM_INLINE WideWord operator|(const WideWord& a, const WideWord& b) {
  TORCH_SSAM_WIDE(WideWord, a.part[i] | b.part[i]);
}
TORCH_SSAM_INLINE WideWord operator+(const WideWord& a, uint32_t b) { TORCH_SSAM_WIDE(WideWord, a.part[i] + b); }
TORCH_SSAM_INLINE WideWord operator-(const WideWord& a, uint32_t b) { TORCH_SSAM_WIDE(WideWord, a.part[i] - b); }
TORCH_SSAM_INLINE WideWord operator&(const WideWord& a, uint32_t b) { TORCH_SSAM_WIDE(WideWord, a.part[i] & b); }
TORCH_SSAM_INLINE WideWord operator|(const WideWord& a, uint32_t b) { TORCH_SSAM_WIDE(WideWord, a.part[i] | b); }
TORCH_SSAM_INLINE WideWord operator<<(const WideWord& a, int b) { TORCH_SSAM_WIDE(WideWord, a.part[i] << b); }
TORCH_SSAM_INLINE WideWord operator>>(const WideWord& a, int b) { TORCH_SSAM_WIDE(WideWord, a.part[i] >> b); }
TORCH_SSAM_INLINE WideWord& operator+=(WideWord& a, const WideWord& b) { return a = a + b; }

TORCH_SSAM_INLINE WideFloat operator+(const WideFloat& a, const WideFloat& b) {
  TORCH_SSAM_WIDE(WideFloat, a.part[i] + b.part[i]);
}
TORCH_SSAM_INLINE WideFloat operator*(const WideFloat& a, const WideFloat& b) {
  TORCH_SSAM_WIDE(WideFloat, a.part[i] * b.part[i]);
}
TORCH_SSAM_INLINE WideFloat operator-(const WideFloat& a, float b) { TORCH_SSAM_WIDE(WideFloat, a.part[i] - b); }
TORCH_SSAM_INLINE WideFloat operator-(const WideFloat& a) { TORCH_SSAM_WIDE(WideFloat, -a.part[i]); }

TORCH_SSAM_INLINE WideFloat bits_to_float(const WideWord& a) { TORCH_SSAM_WIDE(WideFloat, (float_vector_t)a.part[i]); }
TORCH_SSAM_INLINE WideWord float_to_bits(const WideFloat& a) { TORCH_SSAM_WIDE(WideWord, (vector_t)a.part[i]); }
TORCH_SSAM_INLINE WideFloat signed_to_float(const WideWord& a) {
  TORCH_SSAM_WIDE(WideFloat, __builtin_convertvector((signed_vector_t)a.part[i], float_vector_t));
}
TORCH_SSAM_INLINE WideWord shift_right_signed(const WideWord& a, int b) {
  TORCH_SSAM_WIDE(WideWord, (vector_t)((signed_vector_t)a.part[i] >> b));
}

TORCH_SSAM_INLINE float_vector_t fused_multiply_add(float_vector_t a, float_vector_t b, float_vector_t c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  for (int l = 0; l < kVectorLanes; ++l) a[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return a;
#endif
}
TORCH_SSAM_INLINE float_vector_t square_root(float_vector_t a) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(0xffff, a);  // g++ 12 warns of the header of the plain one
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(a);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(a);
#else
  for (int l = 0; l < kVectorLanes; ++l) a[l] = __builtin_sqrtf(a[l]);
  return a;
#endif
}
TORCH_SSAM_INLINE WideFloat fused_multiply_add(const WideFloat& a, const WideFloat& b, const WideFloat& c) {
  TORCH_SSAM_WIDE(WideFloat, fused_multiply_add(a.part[i], b.part[i], c.part[i]));
}
TORCH_SSAM_INLINE WideFloat fused_multiply_add(const WideFloat& a, const WideFloat& b, float c) {
  TORCH_SSAM_WIDE(WideFloat, fused_multiply_add(a.part[i], b.part[i], float_vector_t{} + c));
}
TORCH_SSAM_INLINE WideFloat square_root(const WideFloat& a) { TORCH_SSAM_WIDE(WideFloat, square_root(a.part[i])); }
#undef TORCH_SSAM_INLINE
#undef TORCH_SSAM_WIDE

// One word in every lane of one vector: what all counters share.
struct SpreadWord {
  vector_t part;

  SpreadWord() = default;
  __attribute__((always_inline)) explicit SpreadWord(uint32_t value) : part(vector_t{} + value) {}
};
inline __attribute__((always_inline)) WideWord& operator+=(WideWord& a, const SpreadWord& b) {
  TORCH_SSAM_UNROLL
  for (int i = 0; i < kVectors; ++i) a.part[i] += b.part;
  return a;
}

}  // namespace
}  // namespace torch_ssam::math
