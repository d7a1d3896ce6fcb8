// A bundle of 16 words in the widest vectors that the instruction set has, with the operators of uint32_t that
// csrc/math/threefry.h uses. Threefry is one long chain of dependent operations: with the two (AVX2) or four (SSE2)
// vectors of a bundle side by side the processor has something to do while it waits (1.0 -> 0.7 ns an element on AVX2).
// Everything here is inlined and has internal linkage. Tests: tests/cpp/test_kernels.cpp.
#pragma once

#include "../../math/noise.h"

namespace torch_ssam::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorLanes = 16;
#elif defined(__AVX2__)
constexpr int kVectorLanes = 8;
#else
constexpr int kVectorLanes = 4;
#endif
constexpr int kVectors = static_cast<int>(math::kLanes) / kVectorLanes;

typedef uint32_t vector_t __attribute__((vector_size(4 * kVectorLanes)));

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

  __attribute__((always_inline)) void store(uint32_t* target) const { __builtin_memcpy(target, part, sizeof(part)); }
};

#define TORCH_SSAM_WIDE_OPERATOR(op, operand_t, operand)                                              \
  inline __attribute__((always_inline)) WideWord operator op(const WideWord& a, const operand_t& b) { \
    WideWord r;                                                                                       \
    TORCH_SSAM_UNROLL                                                                                 \
    for (int i = 0; i < kVectors; ++i) r.part[i] = a.part[i] op operand;                              \
    return r;                                                                                         \
  }
TORCH_SSAM_WIDE_OPERATOR(+, WideWord, b.part[i])
TORCH_SSAM_WIDE_OPERATOR(+, uint32_t, b)
TORCH_SSAM_WIDE_OPERATOR(^, WideWord, b.part[i])
TORCH_SSAM_WIDE_OPERATOR(|, WideWord, b.part[i])
TORCH_SSAM_WIDE_OPERATOR(<<, int, b)
TORCH_SSAM_WIDE_OPERATOR(>>, int, b)
#undef TORCH_SSAM_WIDE_OPERATOR

inline __attribute__((always_inline)) WideWord& operator+=(WideWord& a, const WideWord& b) { return a = a + b; }
inline __attribute__((always_inline)) WideWord& operator+=(WideWord& a, uint32_t b) { return a = a + b; }

// The 64 words of one block of 16 counters: word j of lane l at 16 j + l.
inline __attribute__((always_inline)) void block_words(const math::NoiseStream& stream, int64_t block,
                                                       uint32_t* words) {
  const auto first = static_cast<uint64_t>(block) * math::kLanes;
  const math::Words<WideWord> w = math::noise_words(stream, WideWord::counting_from(static_cast<uint32_t>(first)),
                                                    WideWord(static_cast<uint32_t>(first >> 32)));
  w.x0.store(words);
  w.x1.store(words + math::kLanes);
  w.x2.store(words + 2 * math::kLanes);
  w.x3.store(words + 3 * math::kLanes);
}

}  // namespace
}  // namespace torch_ssam::cpu
