// The scalar bodies of csrc/math/noise.h, threefry.h, scale.h, rules/sgd.h and diagonal.h against independent
// computations: published known answers (tests/data/), long double formulas with a stated error, and exact small
// integers. The 16-bit types are in test_storage.cpp; that loops over these bodies keep the bits is test_kernels.cpp's
// claim.
#include <gtest/gtest.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <array>
#include <cfloat>
#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "math/diagonal.h"
#include "math/noise.h"
#include "math/reduce.h"
#include "math/rules/sgd.h"
#include "math/scale.h"
#include "math/stored.h"
#include "math/threefry.h"
#include "precision.h"

namespace torch_ssam::math {
namespace {

constexpr long double kHalfPi = 1.57079632679489661923132169163975144L;

// Words at both ends, around every power of two, and a regular walk through the rest.
std::vector<uint32_t> interesting_words(uint32_t walk) {
  std::vector<uint32_t> words;
  for (uint32_t i = 0; i < 2048; ++i) {
    words.push_back(i);
    words.push_back(~i);
  }
  for (int bit = 0; bit < 32; ++bit) {
    for (int d = -70; d <= 70; ++d) words.push_back((1U << bit) + static_cast<uint32_t>(d));
  }
  // sqrt(1/2) 2^k, where the mantissa's interval begins.
  for (int bit = 4; bit < 32; ++bit) {
    for (int d = -300; d <= 300; ++d) words.push_back((3037000500U >> (31 - bit)) + static_cast<uint32_t>(d));
  }
  for (uint32_t i = 0; i < walk; ++i) words.push_back(i * 2654435769U);
  return words;
}

// The number whose logarithm is taken: documented as ((word >> 1) | 1) / 2^31, rounded to 24 bits.
long double radius_argument(uint32_t word) {
  const auto rounded = static_cast<float>(static_cast<double>((word >> 1) | 1U));
  return static_cast<long double>(rounded) / 2147483648.0L;
}

Words4 threefry(const Words4& key, const Words4& counter) {
  return threefry4x32<uint32_t>(make_key_schedule<uint32_t>(key), Words4(counter));
}

TEST(ThreefryTest, ProducesPublishedKnownAnswers) {
  std::ifstream table(std::string(TORCH_SSAM_TEST_DATA) + "/threefry4x32_20.txt");
  ASSERT_TRUE(table) << "no table in " << TORCH_SSAM_TEST_DATA;
  std::string line;
  int vectors = 0;
  while (std::getline(table, line)) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream row(line);
    row >> std::hex;
    std::array<uint32_t, 12> v{};
    for (uint32_t& word : v) ASSERT_TRUE(row >> word) << line;
    const Words4 out = threefry({v[4], v[5], v[6], v[7]}, {v[0], v[1], v[2], v[3]});
    EXPECT_EQ(std::vector<uint32_t>({out.x0, out.x1, out.x2, out.x3}), std::vector<uint32_t>(v.begin() + 8, v.end()));
    ++vectors;
  }
  EXPECT_EQ(vectors, 3);
}

TEST(NoiseTest, StreamSplitsSignedNumbersIntoWords) {
  const NoiseStream s = make_noise_stream(-2, 0x123456789LL, 0xffffffffLL, 7);
  EXPECT_EQ(s.seed_low, 0xfffffffeU);
  EXPECT_EQ(s.seed_high, 0xffffffffU);
  EXPECT_EQ(s.draw_low, 0x23456789U);
  EXPECT_EQ(s.draw_high, 1U);
  EXPECT_EQ(s.place, 0xffffffffU);
  EXPECT_EQ(s.sample, 7U);
}

TEST(NoiseTest, KeyIsSeedPlaceSampleAndCounterIsPositionDraw) {
  const NoiseStream s{1, 2, 3, 4, 5, 6};
  const Words4 words = noise_words(s, 8U, 9U);
  const Words4 expected = threefry({1, 2, 3, 4}, {8, 9, 5, 6});
  EXPECT_EQ(words.x0, expected.x0);
  EXPECT_EQ(words.x1, expected.x1);
  EXPECT_EQ(words.x2, expected.x2);
  EXPECT_EQ(words.x3, expected.x3);
}

TEST(NoiseTest, LogarithmIsRightWithinTwoToTheMinus23) {
  long double worst = 0;
  for (const uint32_t word : interesting_words(1 << 20)) {
    const long double exact = -2.0L * std::log(radius_argument(word));
    const auto value = minus_two_log<float>(word);
    if (exact == 0.0L) {
      ASSERT_EQ(value, 0.0F) << word;
      ASSERT_FALSE(std::signbit(value)) << word;
      continue;
    }
    ASSERT_GT(value, 0.0F) << word;
    worst = std::max(worst, std::fabs(static_cast<long double>(value) - exact) / exact);
  }
  EXPECT_LT(worst, 0x1p-23L);
  RecordProperty("worst_log2", std::to_string(std::log2(static_cast<double>(worst))));
}

TEST(NoiseTest, GaussianPairIsBoxMullerWithinThreeTimesTwoToTheMinus23) {
  const std::vector<uint32_t> words = interesting_words(1 << 19);
  long double worst = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    const uint32_t angle_word = words[i];
    const uint32_t radius_word = words[(i * 7919 + 13) % words.size()];
    const GaussianPair z = gaussian_pair(radius_word, angle_word);
    const long double radius = std::sqrt(-2.0L * std::log(radius_argument(radius_word)));
    const auto odd = static_cast<int32_t>(angle_word | 1U);
    const long double x = static_cast<long double>(static_cast<float>(odd)) / 2147483648.0L;
    const long double sine = radius * std::sin(kHalfPi * x);
    // cos(pi x / 2) as sin(pi (1 - |x|) / 2): the argument is exact, also where the cosine is nearly 0.
    const long double cosine = radius * std::sin(kHalfPi * (1.0L - std::fabs(x))) * (angle_word & 1U ? -1.0L : 1.0L);
    for (const auto& [value, exact] : {std::pair{z.first, cosine}, std::pair{z.second, sine}}) {
      if (exact == 0.0L) {
        ASSERT_EQ(value, 0.0F);
      } else {
        worst = std::max(worst, std::fabs((static_cast<long double>(value) - exact) / exact));
      }
    }
  }
  EXPECT_LT(worst, 3 * 0x1p-23L);
  RecordProperty("worst_log2", std::to_string(std::log2(static_cast<double>(worst))));
}

TEST(NoiseTest, GaussianIsNeverDenormalAndNeverBeyondItsLargestValue) {
  std::vector<uint32_t> ends;
  for (uint32_t i = 0; i < 512; ++i) {
    ends.insert(ends.end(), {i, ~i, 0x80000000U + i, 0x7fffffffU - i, 0x40000000U + i, i * 8388617U});
  }
  float largest = 0;
  float smallest = FLT_MAX;
  for (const uint32_t radius_word : ends) {
    for (const uint32_t angle_word : ends) {
      const GaussianPair z = gaussian_pair(radius_word, angle_word);
      for (const float value : {z.first, z.second}) {
        largest = std::max(largest, std::fabs(value));
        if (value != 0.0F) smallest = std::min(smallest, std::fabs(value));
      }
    }
  }
  EXPECT_GT(smallest, 0x1p-60F);  // far above FLT_MIN = 2^-126
  EXPECT_NEAR(largest, std::sqrt(62.0 * std::log(2.0)), 1e-6);
}

TEST(NoiseTest, GaussianIsSymmetricInTheAngle) {
  for (const uint32_t word : interesting_words(1 << 12)) {
    // The lowest bit mirrors the first value only; the negated odd angle mirrors the second only.
    const GaussianPair even = gaussian_pair(12345, word & ~1U);
    const GaussianPair odd = gaussian_pair(12345, word | 1U);
    ASSERT_EQ(even.first, -odd.first);
    ASSERT_EQ(even.second, odd.second);
    const GaussianPair mirrored = gaussian_pair(12345, 0U - (word | 1U));
    ASSERT_EQ(mirrored.first, odd.first);
    ASSERT_EQ(mirrored.second, -odd.second);
  }
}

#if defined(__SSE2__)
TEST(NoiseTest, FlushingDenormalsChangesNoBit) {
  const auto hash = [] {
    uint64_t h = 0;
    for (uint32_t c = 0; c < 4096; ++c) {
      const Words4 w = noise_words({1, 2, 3, 4, 5, 6}, c, 0);
      for (const GaussianPair& z : {gaussian_pair(w.x0, w.x1), gaussian_pair(w.x2, w.x3)}) {
        for (const float v : {z.first, z.second}) h = (h ^ float_to_bits(v)) * 1099511628211ULL;
      }
    }
    return h;
  };
  const uint64_t expected = hash();
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040U);  // flush to zero, denormals are zero
  const uint64_t flushed = hash();
  _mm_setcsr(before);
  EXPECT_EQ(flushed, expected);
}
#endif

TEST(NoiseTest, RademacherBitSetMeansMinusOne) {
  for (int k = 0; k < 32; ++k) {
    EXPECT_EQ(rademacher(1U << k, k), -1.0F);
    EXPECT_EQ(rademacher(~(1U << k), k), 1.0F);
  }
}

TEST(NoiseTest, PerturbElementRoundsOnce) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 10000; ++i) {
    const float clean = normal(random), std_f = 0.01F * std::fabs(normal(random)), z = normal(random);
    // The exact value of std z + w fits in 64 bits of a long double here, so one cast is one rounding.
    const long double exact = static_cast<long double>(std_f) * z + clean;
    EXPECT_EQ(perturb_element(clean, std_f, z), static_cast<float>(exact));
    EXPECT_EQ(perturb_element(static_cast<double>(clean), static_cast<double>(std_f), z), static_cast<double>(exact));
  }
}

// --- the update, against torch.optim.SGD's formulas in long double.

using Kind = Sgd::Kind;

struct Hyper {
  double lr, momentum, dampening, weight_decay;
  bool maximize, first_step;
};

template <typename real_t>
Sgd::Params<real_t> params_of(const Hyper& h) {
  return {static_cast<real_t>(h.lr),
          static_cast<real_t>(h.momentum),
          static_cast<real_t>(h.first_step ? 0.0 : h.momentum),
          static_cast<real_t>(h.first_step ? 1.0 : 1.0 - h.dampening),
          static_cast<real_t>(h.weight_decay),
          static_cast<real_t>(h.maximize ? -1.0 : 1.0)};
}

// Computes in long double from the rounded parameters, and the size of the terms, which scales the error.
struct Reference {
  long double weight, buffer, size, buffer_size;
};

template <Kind kKind, typename real_t>
Reference reference_update(real_t clean, real_t grad, real_t buffer, const Sgd::Params<real_t>& p, bool first) {
  long double g = grad;
  if (p.sign < 0) g = -g;
  const long double decay = static_cast<long double>(p.weight_decay) * clean;
  long double magnitude = std::fabs(g) + std::fabs(decay);
  g += decay;
  long double v = buffer;
  long double v_size = 0;
  if (kKind != Kind::plain) {
    v = first ? g : static_cast<long double>(p.momentum) * buffer + static_cast<long double>(p.grad_factor) * g;
    v_size = first ? magnitude : std::fabs(p.momentum * buffer) + std::fabs(p.grad_factor) * magnitude;
    if (kKind == Kind::nesterov) {
      g += static_cast<long double>(p.momentum) * v;
      magnitude += p.momentum * v_size;
    } else {
      g = v;
      magnitude = v_size;
    }
  }
  return {clean - static_cast<long double>(p.lr) * g, v, std::fabs(static_cast<long double>(clean)) + p.lr * magnitude,
          v_size};
}

template <typename real_t, Kind kKind>
void expect_reference_update(uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const long double ulp = std::numeric_limits<real_t>::epsilon();
  for (const bool first_step : {false, true}) {
    for (const bool maximize : {false, true}) {
      for (const double weight_decay : {0.0, 0.1}) {
        const Hyper h{0.3, 0.9, kKind == Kind::nesterov ? 0.0 : 0.25, weight_decay, maximize, first_step};
        const auto p = params_of<real_t>(h);
        for (int i = 0; i < 2000; ++i) {
          const auto clean = static_cast<real_t>(normal(random));
          const auto grad = static_cast<real_t>(normal(random));
          const auto start = static_cast<real_t>(normal(random));
          real_t buffers[] = {start};
          const real_t& buffer = buffers[0];
          const real_t updated = Sgd::update_element<kKind>(clean, grad, buffers, p);
          const Reference r = reference_update<kKind>(clean, grad, start, p, first_step);
          ASSERT_LE(std::fabs(updated - r.weight), 1.5L * ulp * r.size);
          if (kKind == Kind::plain) {
            ASSERT_EQ(buffer, start);
          } else {
            ASSERT_LE(std::fabs(buffer - r.buffer), 1.5L * ulp * r.buffer_size);
          }
          ASSERT_NE(updated, clean);
        }
      }
    }
  }
}

template <typename real_t>
class UpdateTest : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(UpdateTest, Reals);

constexpr const char* kNoFiner = "NOT TESTED here: long double is no finer than double, as under valgrind";

TYPED_TEST(UpdateTest, FollowsLongDoubleWithinThreeHalvesUlpOfItsTerms) {
  if (!long_double_is_finer<TypeParam>()) GTEST_SKIP() << kNoFiner;
  expect_reference_update<TypeParam, Kind::plain>(1);
  expect_reference_update<TypeParam, Kind::heavy_ball>(3);
  expect_reference_update<TypeParam, Kind::nesterov>(5);
}

TYPED_TEST(UpdateTest, IsExactOnSmallDyadicNumbers) {
  // g = 3 + 0.25 * 2 = 3.5; v = 0.5 * 8 + 0.75 * 3.5 = 6.625; w = 2 - 0.5 * 6.625.
  TypeParam buffer[] = {8};
  const auto p = params_of<TypeParam>({0.5, 0.5, 0.25, 0.25, false, false});
  const TypeParam updated = Sgd::update_element<Kind::heavy_ball>(TypeParam(2), TypeParam(3), buffer, p);
  EXPECT_EQ(buffer[0], TypeParam(6.625));
  EXPECT_EQ(updated, TypeParam(-1.3125));
  // Nesterov, ascent: g = -3; v = 0.5 * 8 - 3 = 1; g + 0.5 v = -2.5; w = 2 + 1.25.
  buffer[0] = 8;
  const auto q = params_of<TypeParam>({0.5, 0.5, 0.0, 0.0, true, false});
  EXPECT_EQ(Sgd::update_element<Kind::nesterov>(TypeParam(2), TypeParam(3), buffer, q), TypeParam(3.25));
  EXPECT_EQ(buffer[0], TypeParam(1));
}

TYPED_TEST(UpdateTest, WithoutWeightDecayAnInfiniteWeightStaysInfinite) {
  TypeParam buffer[] = {0};
  const auto p = params_of<TypeParam>({0.5, 0.0, 0.0, 0.0, false, false});
  const auto infinity = std::numeric_limits<TypeParam>::infinity();
  EXPECT_EQ(Sgd::update_element<Kind::plain>(infinity, TypeParam(1), buffer, p), infinity);
}

// --- the scales of noise.

TEST(ScaleTest, RowScaleIsTheNormOverTheRootOfOnePlusFisher) {
  // Pythagorean numbers: 3-4-12-84 has the norm 85; 1 + 0.25 * 32 = 9.
  EXPECT_EQ(row_scale(3.0 * 3 + 4 * 4 + 12 * 12 + 84 * 84, 0.0, 7.0), 85.0F);
  EXPECT_EQ(row_scale(7225.0, 1e30, 0.0), 85.0F);
  EXPECT_EQ(row_scale(81.0, 32.0, 0.25), 3.0F);
  EXPECT_EQ(row_scale(0.0, 5.0, 1.0), 0.0F);
  std::mt19937 random(7);
  std::uniform_real_distribution<double> exponent(-60, 60);
  for (int i = 0; i < 20000; ++i) {
    const double sum = std::exp2(exponent(random)), fisher = std::exp2(exponent(random));
    const double factor = std::exp2(exponent(random) / 4);
    const long double exact =
        std::sqrt(static_cast<long double>(sum)) / std::sqrt(1.0L + static_cast<long double>(factor) * fisher);
    // Rounded to float once, after double roundings that are far below its ulp.
    ASSERT_LE(std::fabs(row_scale(sum, fisher, factor) - exact), 0x1.0001p-24L * exact);
  }
}

TEST(ScaleTest, FisherForgetsAndTakesTheSquareIn) {
  EXPECT_EQ(row_fisher(8.0F, 5.0, 0.75), 11.0F);
  EXPECT_EQ(row_fisher(8.0F, 5.0, 0.0), 5.0F);
  EXPECT_EQ(row_fisher(8.0F, 5.0, 1.0), 13.0F);
  std::mt19937 random(8);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int i = 0; i < 20000; ++i) {
    const auto before = static_cast<float>(100 * uniform(random));
    const double square = uniform(random), decay = uniform(random);
    const long double exact = static_cast<long double>(decay) * before + square;
    ASSERT_LE(std::fabs(row_fisher(before, square, decay) - exact), 0x1.0001p-24L * exact);
  }
}

TYPED_TEST(UpdateTest, ElementScaleIsTheAbsoluteValuePlusAHundredth) {
  if (!long_double_is_finer<TypeParam>()) GTEST_SKIP() << kNoFiner;
  const long double hundredth = static_cast<TypeParam>(0.01L);
  const long double half_ulp = std::numeric_limits<TypeParam>::epsilon() / 2;
  EXPECT_EQ(element_scale(TypeParam(0)), static_cast<TypeParam>(0.01L));
  EXPECT_EQ(element_scale(TypeParam(-0.0)), static_cast<TypeParam>(0.01L));
  std::mt19937 random(9);
  std::normal_distribution<double> normal;
  for (int i = 0; i < 20000; ++i) {
    const auto w = static_cast<TypeParam>(normal(random) * 0.1);
    const auto z = static_cast<float>(normal(random));
    const long double exact = std::fabs(static_cast<long double>(w)) + hundredth;
    const TypeParam scale = element_scale(w);
    ASSERT_LE(std::fabs(scale - exact), half_ulp * 1.0001L * exact);
    ASSERT_EQ(scale, element_scale(-w));
    const TypeParam scaled = scale_noise(z, scale);
    ASSERT_LE(std::fabs(scaled - static_cast<long double>(z) * scale), half_ulp * std::fabs(scaled) * 1.0001L);
    // clean + noise, and the noise alone, each one rounding of std * scaled.
    const TypeParam noisy = perturb_stored_by_element<TypeParam>(w, TypeParam(0.3), z, false);
    const TypeParam alone = perturb_stored_by_element<TypeParam>(w, TypeParam(0.3), z, true);
    const long double noise = static_cast<long double>(TypeParam(0.3)) * scaled;
    ASSERT_LE(std::fabs(alone - noise), half_ulp * 1.0001L * std::fabs(noise));
    ASSERT_LE(std::fabs(noisy - (w + noise)), half_ulp * 1.0001L * std::fabs(w + noise) + 0x1p-62L * std::fabs(w));
    ASSERT_EQ(perturb_stored<TypeParam>(TypeParam(0), TypeParam(0.3), z), static_cast<TypeParam>(TypeParam(0.3) * z));
  }
}

TEST(ScaleTest, ARowHasAPieceForEveryFourThousandNinetySixElements) {
  const std::array<std::array<int64_t, 2>, 7> cases{
      {{0, 0}, {1, 1}, {4095, 1}, {4096, 1}, {4097, 2}, {8192, 2}, {int64_t{1} << 40, int64_t{1} << 28}}};
  for (const auto& [count, pieces] : cases) EXPECT_EQ(norm_pieces(count), pieces) << count;
}

// --- the diagonal product.

TYPED_TEST(UpdateTest, DiagonalGradientIsExactOnSmallIntegersWithAnyZeros) {
  // Every combination of {-2, 0, 3} in four layers: P_i against a product written out.
  const TypeParam values[] = {-2, 0, 3};
  for (int code = 0; code < 81; ++code) {
    std::array<TypeParam, 4> w{};
    for (int l = 0, c = code; l < 4; ++l, c /= 3) w[static_cast<size_t>(l)] = values[c % 3];
    const TypeParam accumulated =
        diagonal_accumulate(diagonal_accumulate(TypeParam(0), TypeParam(5), TypeParam(-2)), TypeParam(3), TypeParam(7));
    ASSERT_EQ(accumulated, TypeParam(11));
    for (size_t i = 0; i < 4; ++i) {
      TypeParam prefix = 1, suffix = 1, others = 1;
      for (size_t l = 0; l < i; ++l) prefix = diagonal_extend(prefix, w[l]);
      for (size_t l = 3; l > i; --l) suffix = diagonal_extend(suffix, w[l]);
      for (size_t l = 0; l < 4; ++l) others *= l == i ? TypeParam(1) : w[l];
      ASSERT_EQ(diagonal_layer_gradient(prefix, suffix, accumulated), TypeParam(11) * others);
    }
  }
}

}  // namespace
}  // namespace torch_ssam::math
