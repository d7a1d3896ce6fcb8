// Threefry4x32 with 20 rounds (J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): four 32-bit words from a 128-bit key and a 128-bit counter, with additions, rotations and xor only, so the
// same words everywhere and no state. Passes BigCrush with 20 rounds; 12 are the fewest known to. A word is a uint32_t,
// or a bundle of them with the same operators (noise_blocks.h), which keeps several counters in flight.
// Tests: Random123's published known answers in tests/cpp/test_math.cpp and tests/python/test_noise_contract.py.
#pragma once

#include "portable.h"

namespace torch_ssam::math {

template <typename word_t>
struct Words {
  word_t x0, x1, x2, x3;
};
using Words4 = Words<uint32_t>;

template <typename word_t>
TORCH_SSAM_BODY word_t rotate_left(word_t value, int count) {
  return (value << count) | (value >> (32 - count));
}

// Two rounds: words are mixed as (0,1), (2,3), then crosswise as (0,3), (2,1).
template <typename word_t>
TORCH_SSAM_BODY void threefry_two_rounds(Words<word_t>& w, int a0, int a1, int b0, int b1) {
  w.x0 += w.x1;
  w.x2 += w.x3;
  w.x1 = rotate_left(w.x1, a0) ^ w.x0;
  w.x3 = rotate_left(w.x3, a1) ^ w.x2;

  w.x0 += w.x3;
  w.x2 += w.x1;
  w.x3 = rotate_left(w.x3, b0) ^ w.x0;
  w.x1 = rotate_left(w.x1, b1) ^ w.x2;
}

// Key injection after every fourth round; the last word also takes the number of the injection.
template <typename word_t>
TORCH_SSAM_BODY void threefry_inject(Words<word_t>& w, uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                     uint32_t number) {
  w.x0 += a;
  w.x1 += b;
  w.x2 += c;
  w.x3 += d + number;
}

template <typename word_t>
TORCH_SSAM_BODY Words<word_t> threefry4x32(const Words4& key, Words<word_t>&& counter) {
  const uint32_t k0 = key.x0, k1 = key.x1, k2 = key.x2, k3 = key.x3;
  const uint32_t k4 = 0x1bd11bdaU ^ k0 ^ k1 ^ k2 ^ k3;
  Words<word_t> w = counter;
  threefry_inject(w, k0, k1, k2, k3, 0);

  threefry_two_rounds(w, 10, 26, 11, 21);
  threefry_two_rounds(w, 13, 27, 23, 5);
  threefry_inject(w, k1, k2, k3, k4, 1);
  threefry_two_rounds(w, 6, 20, 17, 11);
  threefry_two_rounds(w, 25, 10, 18, 20);
  threefry_inject(w, k2, k3, k4, k0, 2);
  threefry_two_rounds(w, 10, 26, 11, 21);
  threefry_two_rounds(w, 13, 27, 23, 5);
  threefry_inject(w, k3, k4, k0, k1, 3);
  threefry_two_rounds(w, 6, 20, 17, 11);
  threefry_two_rounds(w, 25, 10, 18, 20);
  threefry_inject(w, k4, k0, k1, k2, 4);
  threefry_two_rounds(w, 10, 26, 11, 21);
  threefry_two_rounds(w, 13, 27, 23, 5);
  threefry_inject(w, k0, k1, k2, k3, 5);
  return w;
}

TORCH_SSAM_BODY Words4 threefry4x32(const Words4& key, const Words4& counter) {
  return threefry4x32<uint32_t>(key, Words4(counter));
}

}  // namespace torch_ssam::math
