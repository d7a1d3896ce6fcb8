// The noise contract (docs/noise.md) as scalar functions: element i of a tensor gets a value that depends on
// (seed, draw, place of the tensor, i, sample) and on nothing else.
//   key     = (seed low, seed high, place, sample)          counter = (c low, c high, draw low, draw high)
//   Gaussian:   64 elements a block; i = 64 b + 16 j + l is output word j of counter c = 16 b + l
//   Rademacher: 2048 elements a block; i = 2048 b + 64 k + 16 j + l is bit k of output word j of counter c = 16 b + l
// Only +, *, fma, sqrt and integer operations, in a fixed order: the same bits on every machine. Box-Muller on words
// (0, 1) and (2, 3); polynomials from tools/fit_noise_polynomials.py. The largest |value| is sqrt(62 ln 2) = 6.56 and
// none is denormal. Tests: test_math.cpp, test_noise_contract.py; the statistics on trial are in docs/noise.md.
#pragma once

#include "threefry.h"

namespace torch_ssam::math {

// Whatever asks which it is has a switch without a default: a new one does not compile where it is not served.
enum class Distribution : int { gaussian = 0, rademacher = 1 };

inline constexpr int64_t kLanes = 16;                             // counters a block
inline constexpr int64_t kGaussianBlock = 4 * kLanes;             // elements a block, one word each
inline constexpr int64_t kRademacherBlock = 32 * kGaussianBlock;  // elements a block, one bit each

// Everything but the element's index. Plain words, so that it passes to a kernel by value.
struct NoiseStream {
  uint32_t seed_low, seed_high, place, sample, draw_low, draw_high;
};

TORCH_SSAM_BODY NoiseStream make_noise_stream(int64_t seed, int64_t draw, int64_t place, int64_t sample) {
  const auto s = static_cast<uint64_t>(seed);
  const auto d = static_cast<uint64_t>(draw);
  return {static_cast<uint32_t>(s),      static_cast<uint32_t>(s >> 32), static_cast<uint32_t>(place),
          static_cast<uint32_t>(sample), static_cast<uint32_t>(d),       static_cast<uint32_t>(d >> 32)};
}

// The draw `by` draws on; draws wrap at 2^64.
TORCH_SSAM_BODY int64_t later_draw(int64_t draw, int64_t by) {
  return static_cast<int64_t>(static_cast<uint64_t>(draw) + static_cast<uint64_t>(by));
}

// The part of the key that a stream fixes, in words as wide as are needed.
template <typename word_t>
TORCH_SSAM_BODY KeySchedule<word_t> noise_key(const NoiseStream& stream) {
  return make_key_schedule<word_t>(Words4{stream.seed_low, stream.seed_high, stream.place, stream.sample});
}

// The four words of one counter (or of a bundle), given as two halves so that lanes need no 64-bit integers.
template <typename word_t, typename key_word_t>
TORCH_SSAM_BODY Words<word_t> noise_words(const KeySchedule<key_word_t>& key, const NoiseStream& stream,
                                          word_t counter_low, word_t counter_high) {
  return threefry4x32<word_t>(key, {counter_low, counter_high, word_t(stream.draw_low), word_t(stream.draw_high)});
}
TORCH_SSAM_BODY Words4 noise_words(const NoiseStream& stream, uint32_t counter_low, uint32_t counter_high) {
  return noise_words<uint32_t>(noise_key<uint32_t>(stream), stream, counter_low, counter_high);
}

// -2 ln(u) for u = ((word >> 1) | 1) / 2^31, in (0, 1]: exponent and mantissa apart, f in [sqrt(1/2), sqrt(2)),
// -2 ln f = -2 t + t^2 P(t) with t = f - 1, relative error below 2^-23. Integer operations and additions where they
// give the bits of a multiplication: the units that multiply are a CPU's busiest here. word_t and
// float_t are uint32_t and float, or bundles of them with the same operators (wide_vectors.h).
template <typename float_t, typename word_t>
TORCH_SSAM_BODY float_t minus_two_log(const word_t& word) {
  const float_t scaled_u = signed_to_float((word >> 1) | 1U);    // u 2^31, rounded to 24 bits
  const word_t shifted = float_to_bits(scaled_u) - 0x4eb504f3U;  // bits of 2^31 sqrt(1/2)
  const float_t exponent = signed_to_float(shift_right_signed(shifted, 23));
  const float_t t = bits_to_float((shifted & 0x007fffffU) + 0x3f3504f3U) - 1.0F;

  float_t p = float_t(0x1.37a546p-3F);
  p = fused_multiply_add(p, t, -0x1.08b288p-2F);
  p = fused_multiply_add(p, t, 0x1.0f4146p-2F);
  p = fused_multiply_add(p, t, -0x1.2254bep-2F);
  p = fused_multiply_add(p, t, 0x1.5424f2p-2F);
  p = fused_multiply_add(p, t, -0x1.99a544p-2F);
  p = fused_multiply_add(p, t, 0x1.000438p-1F);
  p = fused_multiply_add(p, t, -0x1.55554ep-1F);
  p = fused_multiply_add(p, t, 0x1.fffff8p-1F);
  const float_t mantissa_part = fused_multiply_add(t * t, p, -(t + t));
  return fused_multiply_add(exponent, float_t(-0x1.62e430p+0F), mantissa_part);  // -2 ln 2
}

template <typename float_t>
struct PairOf {
  float_t first, second;
};
using GaussianPair = PairOf<float>;

// Box-Muller. The angle is pi x / 2 with x in [-1, 1] from the word's 32 bits, which covers the right half circle; the
// word's lowest bit (not used by x, which takes it as 1) mirrors the cosine to the left half.
template <typename float_t, typename word_t>
TORCH_SSAM_BODY PairOf<float_t> gaussian_pair(const word_t& radius_word, const word_t& angle_word) {
  const float_t radius = square_root(minus_two_log<float_t>(radius_word));
  const float_t odd = signed_to_float(angle_word | 1U);
  const float_t x = bits_to_float(float_to_bits(odd) - (31U << 23));  // odd 2^-31; it is never 0
  const float_t z = x * x;

  float_t s = float_t(0x1.4701dep-13F);
  s = fused_multiply_add(s, z, -0x1.32e974p-8F);
  s = fused_multiply_add(s, z, 0x1.466f3ep-4F);
  s = fused_multiply_add(s, z, -0x1.4abbf0p-1F);
  s = fused_multiply_add(s, z, 0x1.921fb6p+0F);

  float_t c = float_t(0x1.8bd856p-16F);
  c = fused_multiply_add(c, z, -0x1.d4786ep-11F);
  c = fused_multiply_add(c, z, 0x1.472a76p-6F);
  c = fused_multiply_add(c, z, -0x1.de9e60p-3F);
  c = fused_multiply_add(c, z, 1.0F);
  const float_t cosine = fused_multiply_add(-x, x, 1.0F) * c;

  const float_t first = radius * cosine;
  return {bits_to_float(float_to_bits(first) ^ (angle_word << 31)), radius * (x * s)};
}
TORCH_SSAM_BODY GaussianPair gaussian_pair(uint32_t radius_word, uint32_t angle_word) {
  return gaussian_pair<float>(radius_word, angle_word);
}

// +1 or -1 from bit k of a word: a set bit is -1.
TORCH_SSAM_BODY float rademacher(uint32_t word, int k) {
  return bits_to_float(0x3f800000U | ((word << (31 - k)) & 0x80000000U));
}

// The block of 16 counters that serves a block of 64 elements: a word, or a bit of one, is an element's.
TORCH_SSAM_BODY int64_t counter_block(Distribution distribution, int64_t block) {
  switch (distribution) {
    case Distribution::gaussian:
      return block;
    case Distribution::rademacher:
      return block / (kRademacherBlock / kGaussianBlock);
  }
  __builtin_unreachable();
}

// The contract in one function: the noise of one element, at the price of a whole counter. For places where neighbours
// cannot share one; everything else makes several elements at a time.
TORCH_SSAM_BODY float element_noise(const NoiseStream& stream, Distribution distribution, int64_t element) {
  const int64_t block = element / kGaussianBlock;
  const auto counter = static_cast<uint64_t>(counter_block(distribution, block) * kLanes + element % kLanes);
  const Words4 w = noise_words(stream, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32));
  const int64_t j = element % kGaussianBlock / kLanes;
  switch (distribution) {
    case Distribution::gaussian: {
      const GaussianPair pair = j < 2 ? gaussian_pair(w.x0, w.x1) : gaussian_pair(w.x2, w.x3);
      return j % 2 == 0 ? pair.first : pair.second;
    }
    case Distribution::rademacher: {
      const uint32_t word = j < 2 ? (j == 0 ? w.x0 : w.x1) : (j == 2 ? w.x2 : w.x3);
      return rademacher(word, static_cast<int>(block % (kRademacherBlock / kGaussianBlock)));
    }
  }
  __builtin_unreachable();
}

// What every perturbation computes: one rounding in opmath_t, one more to the stored type.
TORCH_SSAM_BODY float perturb_element(float clean, float noise_std, float noise) {
  return fused_multiply_add(noise_std, noise, clean);
}
TORCH_SSAM_BODY double perturb_element(double clean, double noise_std, float noise) {
  return fused_multiply_add(noise_std, static_cast<double>(noise), clean);
}
TORCH_SSAM_BODY double perturb_element(double clean, double noise_std, double scaled_noise) {
  return fused_multiply_add(noise_std, scaled_noise, clean);
}

}  // namespace torch_ssam::math
