// What is stored (scalar_t: double, float, bfloat16, float16) and what is computed in (opmath_t: double or float).
// Own 16-bit types with integer conversions, because those of PyTorch are inline functions with external linkage
// (see portable.h) and because the integer form gives one rounding (to nearest, ties to even) in every build,
// whatever the flush-to-zero mode of the thread. Tests: every one of the 65,536 values, and ties, in test_storage.cpp.
#pragma once

#include "portable.h"

namespace torch_ssam::math {

// Dtypes that loops are compiled for, and pairs of them: how clean weights and a rule's buffers are stored (master) and
// how parameters, gradients and activations are (model). They differ only where 16-bit parameters have float clean
// weights; the pairs of a dtype with itself come first, in the order of the dtypes.
enum class Dtype : int { f64 = 0, f32, bf16, f16, count };
enum class DtypePair : int { f64 = 0, f32, bf16, f16, f32_bf16, f32_f16, count };
inline constexpr int kDtypes = static_cast<int>(Dtype::count);
inline constexpr int kDtypePairs = static_cast<int>(DtypePair::count);

constexpr Dtype master_of(DtypePair pair) {
  return pair == DtypePair::f32_bf16 || pair == DtypePair::f32_f16 ? Dtype::f32 : static_cast<Dtype>(pair);
}

// Enumerations rather than structs: distinct types that compilers still vectorise as plain 16-bit integers.
enum class bfloat16_t : uint16_t {};
enum class float16_t : uint16_t {};

template <typename scalar_t>
struct opmath {
  using type = float;
};
template <>
struct opmath<double> {
  using type = double;
};
template <typename scalar_t>
using opmath_t = typename opmath<scalar_t>::type;

TORCH_SSAM_BODY double load_scalar(double stored) { return stored; }
TORCH_SSAM_BODY float load_scalar(float stored) { return stored; }

TORCH_SSAM_BODY float load_scalar(bfloat16_t stored) { return bits_to_float(static_cast<uint32_t>(stored) << 16); }

TORCH_SSAM_BODY float load_scalar(float16_t stored) {
  const auto half = static_cast<uint32_t>(stored);
  const uint32_t sign = (half & 0x8000U) << 16;
  const uint32_t magnitude = half & 0x7fffU;
  // Normal numbers: move the fields and rebias the exponent (127 - 15); infinities and NaN need twice that.
  const uint32_t rebias = magnitude >= 0x7c00U ? 2U * (112U << 23) : 112U << 23;
  const uint32_t normal = (magnitude << 13) + rebias;
  // Subnormals are integer multiples of 2^-24, exact in float.
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24F;
  return bits_to_float(sign | (magnitude < 0x0400U ? float_to_bits(subnormal) : normal));
}

template <typename scalar_t>
struct Store;

template <>
struct Store<double> {
  TORCH_SSAM_BODY double from(double value) { return value; }
};

template <>
struct Store<float> {
  TORCH_SSAM_BODY float from(float value) { return value; }
};

template <>
struct Store<bfloat16_t> {
  TORCH_SSAM_BODY bfloat16_t from(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x0040U;
    return static_cast<bfloat16_t>((bits & 0x7fffffffU) > 0x7f800000U ? quiet_nan : rounded);
  }
};

template <>
struct Store<float16_t> {
  TORCH_SSAM_BODY float16_t from(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000U;
    const uint32_t magnitude = bits & 0x7fffffffU;
    // Normal results: rebias, then round to nearest even on the 13 bits that fall away.
    const uint32_t normal = (magnitude - (112U << 23) + 0x0fffU + ((magnitude >> 13) & 1U)) >> 13;
    // Subnormal results: adding 0.5 puts the last kept bit at 2^-24 and lets the addition do the rounding.
    const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5F) - 0x3f000000U;
    const uint32_t special = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
    uint32_t half = magnitude < (113U << 23) ? subnormal : normal;
    half = magnitude >= 0x47800000U ? special : half;
    return static_cast<float16_t>(sign | half);
  }
};

}  // namespace torch_ssam::math
