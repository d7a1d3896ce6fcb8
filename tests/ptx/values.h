// Odd values for the operands of tests over translated kernels, and when two results are the same: bit for bit, but a
// NaN is as good as another where odd values were asked for, since processors write NaNs of their own. Guards of
// operands reach the shadow memory. Used by tests/cpp/cuda_host.h.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "launcher.h"
#include "math/storage.h"

namespace torch_ssam::cuda {

using ptx::forbid;

inline bool special_values() {
  static const bool asked = std::getenv("TORCH_SSAM_PTX_VALUES") != nullptr;
  return asked;
}

// One value of eight, as the random number says.
template <typename T>
void maybe_special(T& value, uint32_t random) {
  if (!special_values() || (random >> 9) % 8 != 0) return;
  using bits_t = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  constexpr int kMantissa = sizeof(T) == 8 ? 52 : (sizeof(T) == 4 ? 23 : (std::is_same_v<T, math::float16_t> ? 10 : 7));
  constexpr bits_t kOne = 1, kSign = kOne << (8 * sizeof(T) - 1);
  constexpr bits_t kInfinity = static_cast<bits_t>(kSign - (kOne << kMantissa));
  const auto any = static_cast<bits_t>(random * 0x9e3779b97f4a7c15ULL >> 3);
  const bits_t choices[] = {
      0,  // zero
      1,  // the smallest denormal, any, and the largest
      static_cast<bits_t>(any % (kOne << kMantissa)),
      static_cast<bits_t>((kOne << kMantissa) - 1),
      static_cast<bits_t>(kOne << kMantissa),  // the smallest normal number, and the largest
      static_cast<bits_t>(kInfinity - 1),
      kInfinity,
      static_cast<bits_t>(kInfinity + (kOne << (kMantissa - 1)) + 3),  // NaN, quiet and signalling
      static_cast<bits_t>(kInfinity + 5),
      any,
      any,
      any};
  bits_t bits = choices[(random >> 12) % 12];
  if ((random >> 17) % 2 != 0) bits = static_cast<bits_t>(bits ^ kSign);
  std::memcpy(&value, &bits, sizeof(value));
}

template <typename T>
bool is_nan(const T& value) {
  const auto wide = static_cast<double>(math::load_scalar(value));
  return wide != wide;
}

template <typename T>
bool same_value(const T& got, const T& expected) {
  return std::memcmp(&got, &expected, sizeof(T)) == 0 || (special_values() && is_nan(got) && is_nan(expected));
}

}  // namespace torch_ssam::cuda
