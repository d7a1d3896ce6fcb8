// The noise of 64 elements at a time, for the loops that are compiled once for each instruction set (operators and
// simulator). Everything here is inlined and has internal linkage. Tests: tests/cpp/test_kernels.cpp,
// tests/cpp/test_simulate.cpp.
#pragma once

#include "wide_vectors.h"

namespace torch_ssam::math {
namespace {

// The 64 words of one block of 16 counters: word j of lane l is lane l of the j-th WideWord. The key is spread over the
// lanes once for many blocks (Threefry alone: 204 -> 138 cycles a block on Zen 3).
class BlockWords {
 public:
  explicit BlockWords(const NoiseStream& stream) : stream_(stream), key_(noise_key<SpreadWord>(stream)) {}

  __attribute__((always_inline)) Words<WideWord> generate(int64_t block) const {
    const auto first = static_cast<uint64_t>(block) * kLanes;
    return noise_words(key_, stream_, WideWord::counting_from(static_cast<uint32_t>(first)),
                       WideWord(static_cast<uint32_t>(first >> 32)));
  }

  // The same in memory: word j of lane l at 16 j + l.
  __attribute__((always_inline)) void generate(int64_t block, uint32_t* words) const {
    const Words<WideWord> w = generate(block);
    w.x0.store(words);
    w.x1.store(words + kLanes);
    w.x2.store(words + 2 * kLanes);
    w.x3.store(words + 3 * kLanes);
  }

 private:
  NoiseStream stream_;
  KeySchedule<SpreadWord> key_;
};

// body<distribution>(), which is then known when the body is compiled.
template <typename Body>
inline __attribute__((always_inline)) void with_distribution(Distribution distribution, Body body) {
  switch (distribution) {
    case Distribution::gaussian:
      return body.template operator()<Distribution::gaussian>();
    case Distribution::rademacher:
      return body.template operator()<Distribution::rademacher>();
  }
  __builtin_unreachable();
}

// Values of one block of 64 elements. Rademacher words serve 32 such blocks and are kept between them.
template <Distribution kDistribution>
class NoiseBlocks;

template <>
class NoiseBlocks<Distribution::gaussian> {
 public:
  explicit NoiseBlocks(const NoiseStream& stream) : words_(stream) {}

  void generate(int64_t block, float* values) {
    const Words<WideWord> w = words_.generate(block);
    const PairOf<WideFloat> a = gaussian_pair<WideFloat>(w.x0, w.x1);
    a.first.store(values);
    a.second.store(values + kLanes);
    const PairOf<WideFloat> b = gaussian_pair<WideFloat>(w.x2, w.x3);
    b.first.store(values + 2 * kLanes);
    b.second.store(values + 3 * kLanes);
  }

 private:
  BlockWords words_;
};

template <>
class NoiseBlocks<Distribution::rademacher> {
 public:
  explicit NoiseBlocks(const NoiseStream& stream) : words_of_(stream) {}

  void generate(int64_t block, float* values) {
    constexpr int64_t kBits = kRademacherBlock / kGaussianBlock;
    const int64_t wide = block / kBits;
    if (wide != current_) {
      words_of_.generate(wide, words_);
      current_ = wide;
    }
    const int bit = static_cast<int>(block % kBits);
    for (int i = 0; i < kGaussianBlock; ++i) values[i] = rademacher(words_[i], bit);
  }

 private:
  BlockWords words_of_;
  int64_t current_ = -1;
  alignas(64) uint32_t words_[kGaussianBlock] = {};
};

}  // namespace
}  // namespace torch_ssam::math
