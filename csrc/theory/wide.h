// Wide: positive numbers with about 104 bits and an exponent of their own, for the roots at a threshold.
// There the root moves with the square root of (target / threshold - 1): to give it in full double precision that
// difference must be known to about 1e-31, and (1 + x)^(2L) must neither overflow nor underflow. A number is an
// unevaluated sum of two doubles (Dekker 1971), its leading part in [1/2, 1), times a power of two.
// Needs strict IEEE arithmetic: compile without -ffast-math and with contraction off.
// Tests: tests/cpp/test_theory.cpp, and through the roots tests/python/test_theory_shrinkage.py (mpmath, 60 digits).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace torch_ssam::theory {

struct DoubleDouble {
  double hi = 0;
  double lo = 0;
};

inline DoubleDouble quick_two_sum(double a, double b) {  // |a| >= |b|
  const double s = a + b;
  return {s, b - (s - a)};
}

inline DoubleDouble two_sum(double a, double b) {
  const double s = a + b;
  const double t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

inline DoubleDouble two_product(double a, double b) {
  const double p = a * b;
  return {p, std::fma(a, b, -p)};
}

inline DoubleDouble operator+(DoubleDouble a, DoubleDouble b) {
  const DoubleDouble s = two_sum(a.hi, b.hi);
  const DoubleDouble t = two_sum(a.lo, b.lo);
  const DoubleDouble r = quick_two_sum(s.hi, s.lo + t.hi);
  return quick_two_sum(r.hi, r.lo + t.lo);
}

inline DoubleDouble operator-(DoubleDouble a) { return {-a.hi, -a.lo}; }
inline DoubleDouble operator-(DoubleDouble a, DoubleDouble b) { return a + -b; }

inline DoubleDouble operator*(DoubleDouble a, DoubleDouble b) {
  const DoubleDouble p = two_product(a.hi, b.hi);
  return quick_two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

inline DoubleDouble operator/(DoubleDouble a, DoubleDouble b) {
  const double q1 = a.hi / b.hi;
  DoubleDouble rest = a - b * DoubleDouble{q1, 0};
  const double q2 = rest.hi / b.hi;
  rest = rest - b * DoubleDouble{q2, 0};
  return quick_two_sum(q1, q2) + DoubleDouble{rest.hi / b.hi, 0};
}

// Positive (or zero): mantissa * 2^exponent with mantissa in [1/2, 1).
class Wide {
 public:
  Wide() = default;
  explicit Wide(double value) : Wide(DoubleDouble{value, 0}, 0) {}
  Wide(DoubleDouble value, std::int64_t exponent) : mantissa_(value), exponent_(exponent) {
    if (value.hi == 0) {
      exponent_ = 0;
      return;
    }
    int shift = 0;
    std::frexp(value.hi, &shift);
    mantissa_ = {std::ldexp(value.hi, -shift), std::ldexp(value.lo, -shift)};
    exponent_ += shift;
  }

  bool is_zero() const { return mantissa_.hi == 0; }
  std::int64_t exponent() const { return exponent_; }
  DoubleDouble mantissa() const { return mantissa_; }

  // Nearest double; 0 or infinity where it has none.
  double value() const { return std::ldexp(mantissa_.hi, clamped_exponent()); }

  // Smallest double that is not below this number.
  double rounded_up() const {
    const double nearest = value();
    const bool below = mantissa_.lo > 0 && std::isfinite(nearest);
    return below ? std::nextafter(nearest, std::numeric_limits<double>::infinity()) : nearest;
  }

  // The two doubles themselves, for numbers near 1.
  DoubleDouble parts() const {
    return {std::ldexp(mantissa_.hi, clamped_exponent()), std::ldexp(mantissa_.lo, clamped_exponent())};
  }

  double log() const { return std::log(mantissa_.hi) + static_cast<double>(exponent_) * 0.6931471805599453; }

 private:
  int clamped_exponent() const {
    return static_cast<int>(exponent_ > 5000 ? 5000 : (exponent_ < -5000 ? -5000 : exponent_));
  }

  DoubleDouble mantissa_;
  std::int64_t exponent_ = 0;
};

inline Wide operator*(const Wide& a, const Wide& b) {
  return {a.mantissa() * b.mantissa(), a.exponent() + b.exponent()};
}

inline Wide operator/(const Wide& a, const Wide& b) {
  return {a.mantissa() / b.mantissa(), a.exponent() - b.exponent()};
}

inline Wide operator+(const Wide& a, const Wide& b) {
  const Wide& large = b.is_zero() || (!a.is_zero() && a.exponent() >= b.exponent()) ? a : b;
  const Wide& small = &large == &a ? b : a;
  const std::int64_t shift = small.exponent() - large.exponent();
  if (small.is_zero() || shift < -120) {
    return large;
  }
  const int k = static_cast<int>(shift);
  const DoubleDouble aligned{std::ldexp(small.mantissa().hi, k), std::ldexp(small.mantissa().lo, k)};
  return {large.mantissa() + aligned, large.exponent()};
}

inline Wide power(Wide base, std::int64_t n) {
  Wide result(1.0);
  for (; n > 0; n /= 2) {
    if (n % 2 == 1) {
      result = result * base;
    }
    base = base * base;
  }
  return result;
}

inline Wide square_root(const Wide& a) {
  if (a.is_zero()) {
    return a;
  }
  const std::int64_t half = a.exponent() >= 0 ? a.exponent() / 2 : -((-a.exponent() + 1) / 2);
  const int odd = static_cast<int>(a.exponent() - 2 * half);
  const DoubleDouble m{std::ldexp(a.mantissa().hi, odd), std::ldexp(a.mantissa().lo, odd)};
  const double s = std::sqrt(m.hi);
  const DoubleDouble rest = m - two_product(s, s);
  return {quick_two_sum(s, (rest.hi + rest.lo) / (2 * s)), half};
}

// e^v for any finite v, to the precision of a double.
inline Wide wide_exp(double v) {
  const double n = std::floor(v / 0.6931471805599453);
  return {DoubleDouble{std::exp(v - n * 0.6931471805599453), 0}, static_cast<std::int64_t>(n)};
}

// a / b - 1, to the relative precision of a double while a and b are within a factor of 4.
inline double relative_difference(const Wide& a, const Wide& b) {
  const std::int64_t shift = a.exponent() - b.exponent();
  if (shift < -2 || shift > 2) {
    return (a / b).value() - 1;
  }
  const int k = static_cast<int>(shift);
  const DoubleDouble difference =
      DoubleDouble{std::ldexp(a.mantissa().hi, k), std::ldexp(a.mantissa().lo, k)} - b.mantissa();
  return difference.hi / b.mantissa().hi;
}

// log(a / b), with the same precision when a is near b.
inline double log_ratio(const Wide& a, const Wide& b) {
  const double difference = relative_difference(a, b);
  return difference > -0.5 && difference < 1 ? std::log1p(difference) : a.log() - b.log();
}

}  // namespace torch_ssam::theory
