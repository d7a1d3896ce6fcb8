// The 16-bit types of csrc/math/storage.h, both ways: every one of the 65,536 values, every tie between neighbours and
// the floats beside it, overflow, underflow and NaN, against a rounding written here in double (scale to the last kept
// bit, round to nearest even, scale back) and, where the compiler has it, its own type.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "math/storage.h"

namespace torch_ssam::math {
namespace {

struct Format {
  int mantissa_bits, exponent_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int smallest_exponent() const { return 1 - bias(); }
  double largest() const { return std::ldexp(2.0 - std::ldexp(1.0, -mantissa_bits), bias()); }
};

template <typename scalar_t>
Format format_of();
template <>
Format format_of<bfloat16_t>() {
  return {7, 8};
}
template <>
Format format_of<float16_t>() {
  return {10, 5};
}

double decode(uint16_t bits, const Format& f) {
  const int exponent = (bits >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1);
  const int mantissa = bits & ((1 << f.mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << f.exponent_bits) - 1) {
    return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  const int implicit = exponent == 0 ? 0 : 1 << f.mantissa_bits;
  return sign * std::ldexp(implicit + mantissa, std::max(exponent, 1) - f.bias() - f.mantissa_bits);
}

double round_to(double value, const Format& f) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), f.smallest_exponent());
  const double rounded =
      std::ldexp(std::nearbyint(std::ldexp(value, f.mantissa_bits - exponent)), exponent - f.mantissa_bits);
  return std::fabs(rounded) > f.largest() ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

template <typename scalar_t>
class StorageTest : public testing::Test {
 protected:
  static constexpr auto from = &Store<scalar_t>::from;
  const Format format = format_of<scalar_t>();

  // Stores `value` and compares the result, and its sign, with the rounding above.
  void expect_rounded(float value) const {
    const auto bits = static_cast<uint16_t>(Store<scalar_t>::from(value));
    const double expected = round_to(value, format);
    ASSERT_EQ(decode(bits, format), expected) << std::hexfloat << value;
    ASSERT_EQ((bits & 0x8000) != 0, std::signbit(value)) << std::hexfloat << value;
  }
};
using Types = testing::Types<bfloat16_t, float16_t>;
TYPED_TEST_SUITE(StorageTest, Types);

TYPED_TEST(StorageTest, LoadsAll65536Values) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float loaded = load_scalar(static_cast<TypeParam>(bits));
    const double expected = decode(static_cast<uint16_t>(bits), this->format);
    ASSERT_EQ(std::signbit(loaded), (bits & 0x8000U) != 0) << bits;
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(loaded)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(loaded), expected) << bits;
    }
  }
}

TYPED_TEST(StorageTest, StoresBackAll65536ValuesUnchanged) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto stored = static_cast<uint16_t>(Store<TypeParam>::from(load_scalar(static_cast<TypeParam>(bits))));
    if (std::isnan(decode(static_cast<uint16_t>(bits), this->format))) {
      ASSERT_TRUE(std::isnan(decode(stored, this->format))) << bits;
      ASSERT_EQ(stored & 0x8000, static_cast<int>(bits & 0x8000U)) << bits;
    } else {
      ASSERT_EQ(stored, bits);
    }
  }
}

TYPED_TEST(StorageTest, RoundsTiesToEvenAndTheirNeighboursToTheNearer) {
  const uint32_t infinity_bits = ((1U << this->format.exponent_bits) - 1U) << this->format.mantissa_bits;
  for (uint32_t bits = 0; bits < infinity_bits; ++bits) {
    const double low = decode(static_cast<uint16_t>(bits), this->format);
    // Above the largest value the tie is where the next value would be, at twice the last step.
    const double high = bits + 1 < infinity_bits ? decode(static_cast<uint16_t>(bits + 1), this->format)
                                                 : 2.0 * low - decode(static_cast<uint16_t>(bits - 1), this->format);
    const auto tie = static_cast<float>(low + (high - low) / 2.0);
    for (const float value : {tie, std::nextafter(tie, 0.0F), std::nextafter(tie, HUGE_VALF)}) {
      this->expect_rounded(value);
      this->expect_rounded(-value);
      if (this->HasFatalFailure()) return;
    }
  }
}

TYPED_TEST(StorageTest, RoundsAWalkThroughAllFloats) {
  for (uint32_t i = 0; i < (1U << 20); ++i) {
    const float value = bits_to_float(i * 2654435769U);
    if (std::isnan(value)) continue;
    this->expect_rounded(value);
    if (this->HasFatalFailure()) return;
  }
}

TYPED_TEST(StorageTest, OverflowGivesInfinityAndNanStaysNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {infinity, std::numeric_limits<float>::max(), 0.0F, -0.0F,
                            std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::min()}) {
    this->expect_rounded(value);
    this->expect_rounded(-value);
  }
  // NaN with every payload bit alone, quiet or not, of either sign: never turned into an infinity.
  for (int bit = 0; bit < 23; ++bit) {
    for (const uint32_t sign : {0U, 0x80000000U}) {
      const auto stored = static_cast<uint16_t>(Store<TypeParam>::from(bits_to_float(sign | 0x7f800000U | 1U << bit)));
      EXPECT_TRUE(std::isnan(decode(stored, this->format))) << bit;
      EXPECT_EQ((stored & 0x8000U) != 0, sign != 0) << bit;
    }
  }
}

#if defined(__FLT16_MANT_DIG__)
#if defined(__aarch64__)
using compilers_half = __fp16;  // g++ 12 has no _Float16 there
#else
using compilers_half = _Float16;
#endif
TEST(Float16Test, AgreesWithTheCompilersOwn) {
  for (uint32_t i = 0; i < (1U << 20); ++i) {
    // Magnitudes from below the smallest subnormal to above the largest number.
    const float value = bits_to_float((0x32000000U + (i * 2654435769U) % 0x16000000U) | (i << 31));
    const auto own = static_cast<compilers_half>(value);
    uint16_t bits = 0;
    std::memcpy(&bits, &own, sizeof(bits));
    ASSERT_EQ(static_cast<uint16_t>(Store<float16_t>::from(value)), bits) << std::hexfloat << value;
    ASSERT_EQ(load_scalar(static_cast<float16_t>(bits)), static_cast<float>(own)) << bits;
  }
}
#endif

}  // namespace
}  // namespace torch_ssam::math
