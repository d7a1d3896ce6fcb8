// Threefry4x32 with 20 rounds (J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): four 32-bit words from a 128-bit key and a 128-bit counter, with additions, rotations and xor only, so the
// same words everywhere and no state. Passes BigCrush with 20 rounds; 12 are the fewest known to. A word is a uint32_t,
// or a bundle of them with the same operators (wide_vectors.h), which keeps several counters in flight.
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

// What is added to the words before the first round and after every fourth: the words of the key in turn, the last one
// with the number of the injection. The same for all counters, so that wide words are spread over their lanes once.
template <typename word_t>
struct KeySchedule {
  word_t added[6][4];
};

template <typename word_t>
TORCH_SSAM_BODY KeySchedule<word_t> make_key_schedule(const Words4& key) {
  const uint32_t k[5] = {key.x0, key.x1, key.x2, key.x3, 0x1bd11bdaU ^ key.x0 ^ key.x1 ^ key.x2 ^ key.x3};
  KeySchedule<word_t> schedule;
  TORCH_SSAM_UNROLL
  for (int number = 0; number < 6; ++number) {
    TORCH_SSAM_UNROLL
    for (int i = 0; i < 4; ++i) {
      schedule.added[number][i] = word_t(k[(number + i) % 5] + static_cast<uint32_t>(i == 3 ? number : 0));
    }
  }
  return schedule;
}

template <typename word_t, typename added_t>
TORCH_SSAM_BODY void threefry_inject(Words<word_t>& w, const added_t (&added)[4]) {
  w.x0 += added[0];
  w.x1 += added[1];
  w.x2 += added[2];
  w.x3 += added[3];
}

template <typename word_t, typename added_t>
TORCH_SSAM_BODY Words<word_t> threefry4x32(const KeySchedule<added_t>& key, Words<word_t>&& counter) {
  Words<word_t> w = counter;
  threefry_inject(w, key.added[0]);

  threefry_two_rounds(w, 10, 26, 11, 21);
  threefry_two_rounds(w, 13, 27, 23, 5);
  threefry_inject(w, key.added[1]);
  threefry_two_rounds(w, 6, 20, 17, 11);
  threefry_two_rounds(w, 25, 10, 18, 20);
  threefry_inject(w, key.added[2]);
  threefry_two_rounds(w, 10, 26, 11, 21);
  threefry_two_rounds(w, 13, 27, 23, 5);
  threefry_inject(w, key.added[3]);
  threefry_two_rounds(w, 6, 20, 17, 11);
  threefry_two_rounds(w, 25, 10, 18, 20);
  threefry_inject(w, key.added[4]);
  threefry_two_rounds(w, 10, 26, 11, 21);
  threefry_two_rounds(w, 13, 27, 23, 5);
  threefry_inject(w, key.added[5]);
  return w;
}

}  // namespace torch_ssam::math
