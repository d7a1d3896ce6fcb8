// base^exponent for a whole exponent, by squaring: the factors beta^t of bias corrections. The number is kept as the
// sum of two doubles, since each squaring doubles the relative error so far: in double alone beta^1000 would be off by
// hundreds of ulp. The result is right within an ulp, and the same everywhere. Tests: tests/cpp/test_math.cpp.
#pragma once

#include "portable.h"

namespace torch_ssam::math {

struct TwoDoubles {
  double high, low;
};

// a * b, without low * low.
TORCH_SSAM_BODY TwoDoubles multiply(TwoDoubles a, TwoDoubles b) {
  const double product = a.high * b.high;
  const double error = fused_multiply_add(a.high, b.high, -product);
  const double low = fused_multiply_add(a.high, b.low, fused_multiply_add(a.low, b.high, error));
  const double high = product + low;
  return {high, low - (high - product)};
}

// For 0 <= base < 1 and exponent >= 0. Below 2^-500 it is 0: there the errors of products would underflow.
TORCH_SSAM_BODY double power(double base, int64_t exponent) {
  constexpr double kNothing = 0x1p-500;
  TwoDoubles result{1.0, 0.0}, factor{base, 0.0};
  for (; exponent > 0; exponent /= 2) {
    if (factor.high < kNothing) return 0.0;
    if (exponent % 2 != 0) {
      result = multiply(result, factor);
      if (result.high < kNothing) return 0.0;
    }
    factor = multiply(factor, factor);
  }
  return result.high;
}

}  // namespace torch_ssam::math
