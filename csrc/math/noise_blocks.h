// The noise of 64 elements at a time, for the loops that are compiled once for each instruction set (operators and
// simulator). A WideWord is 16 words in the widest vectors there are, with the operators of uint32_t that threefry.h
// uses. Threefry is one long chain of dependent operations: with the two (AVX2) or four (SSE2) vectors of a bundle side
// by side the processor has something to do while it waits (1.0 -> 0.7 ns an element on AVX2).
// Everything here is inlined and has internal linkage. Tests: tests/cpp/test_kernels.cpp, tests/cpp/test_simulate.cpp.
#pragma once

#include "noise.h"

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
inline __attribute__((always_inline)) void block_words(const NoiseStream& stream, int64_t block, uint32_t* words) {
  const auto first = static_cast<uint64_t>(block) * kLanes;
  const Words<WideWord> w = noise_words(stream, WideWord::counting_from(static_cast<uint32_t>(first)),
                                        WideWord(static_cast<uint32_t>(first >> 32)));
  w.x0.store(words);
  w.x1.store(words + kLanes);
  w.x2.store(words + 2 * kLanes);
  w.x3.store(words + 3 * kLanes);
}

// Values of one block of 64 elements. Rademacher words serve 32 such blocks and are kept between them.
template <Distribution kDistribution>
class NoiseBlocks;

template <>
class NoiseBlocks<Distribution::gaussian> {
 public:
  explicit NoiseBlocks(const NoiseStream& stream) : stream_(stream) {}

  void generate(int64_t block, float* values) {
    alignas(64) uint32_t words[kGaussianBlock];
    block_words(stream_, block, words);
    // Word pairs (0, 1) and (2, 3): two runs of 16 pairs.
    for (int64_t half = 0; half < kGaussianBlock; half += 2 * kLanes) {
      TORCH_SSAM_INDEPENDENT
      for (int64_t lane = half; lane < half + kLanes; ++lane) {
        const GaussianPair z = gaussian_pair(words[lane], words[lane + kLanes]);
        values[lane] = z.first;
        values[lane + kLanes] = z.second;
      }
    }
  }

 private:
  NoiseStream stream_;
};

template <>
class NoiseBlocks<Distribution::rademacher> {
 public:
  explicit NoiseBlocks(const NoiseStream& stream) : stream_(stream) {}

  void generate(int64_t block, float* values) {
    constexpr int64_t kBits = kRademacherBlock / kGaussianBlock;
    const int64_t wide = block / kBits;
    if (wide != current_) {
      block_words(stream_, wide, words_);
      current_ = wide;
    }
    const int bit = static_cast<int>(block % kBits);
    for (int i = 0; i < kGaussianBlock; ++i) values[i] = rademacher(words_[i], bit);
  }

 private:
  NoiseStream stream_;
  int64_t current_ = -1;
  alignas(64) uint32_t words_[kGaussianBlock] = {};
};

}  // namespace
}  // namespace torch_ssam::math
