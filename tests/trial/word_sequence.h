// The raw Threefry words of the noise contract as one long sequence, for test suites of random bits: the words of a
// tensor in the order of its elements, or those of one counter over many neighbouring streams (where a weak cipher
// would show first), or what a small network takes over its training. Used by noise_words.cpp and noise_crush.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "math/noise_blocks.h"

namespace torch_ssam::trial {

class WordSequence {
 public:
  static constexpr const char* kOrders = "elements, draws, places, samples, seeds, training";

  explicit WordSequence(const char* order) : order_(order) {}

  bool known() const {
    for (const char* name : {"elements", "draws", "places", "samples", "seeds", "training"}) {
      if (std::strcmp(order_, name) == 0) return true;
    }
    return false;
  }

  uint32_t next() {
    if (position_ == kSize) refill();
    return words_[position_++];
  }

 private:
  static constexpr size_t kSize = static_cast<size_t>(math::kGaussianBlock);

  void refill() {
    position_ = 0;
    if (order_[0] == 'e') {  // elements 64 t, ... of one tensor
      math::BlockWords(math::make_noise_stream(kSeed, 3, 0, 0)).generate(time_++, words_);
    } else if (order_[0] == 't') {  // a draw after a draw: five places of 64 elements, two samples
      const int64_t place = time_ % 5, sample = time_ / 5 % 2, draw = time_ / 10;
      math::BlockWords(math::make_noise_stream(kSeed, draw, place, sample)).generate(0, words_);
      ++time_;
    } else {  // the four words of counter 0 of each stream in turn
      for (size_t i = 0; i < kSize; i += 4, ++time_) {
        const int64_t t = time_;
        const char* o = order_;
        const bool draws = o[0] == 'd', places = o[0] == 'p', samples = o[0] == 's' && o[1] == 'a';
        const bool seeds = !draws && !places && !samples;
        const auto stream = math::make_noise_stream(seeds ? t : kSeed, draws ? t : 3, places ? t : 0, samples ? t : 0);
        const math::Words4 w = math::noise_words(stream, 0U, 0U);
        words_[i] = w.x0;
        words_[i + 1] = w.x1;
        words_[i + 2] = w.x2;
        words_[i + 3] = w.x3;
      }
    }
  }

  static constexpr int64_t kSeed = 7;
  const char* order_;
  int64_t time_ = 0;
  size_t position_ = kSize;
  uint32_t words_[kSize] = {};
};

// The suites look at a word's high bits most; Rademacher noise takes all of them alike.
inline uint32_t reversed_bits(uint32_t w) {
  w = ((w >> 1) & 0x55555555U) | ((w & 0x55555555U) << 1);
  w = ((w >> 2) & 0x33333333U) | ((w & 0x33333333U) << 2);
  w = ((w >> 4) & 0x0f0f0f0fU) | ((w & 0x0f0f0f0fU) << 4);
  return __builtin_bswap32(w);
}

}  // namespace torch_ssam::trial
