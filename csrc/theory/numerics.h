// Small numerical tools of the closed forms: sums that keep their low bits, u - log(1 + u) and roots without
// cancellation, and differences of products that are never formed as a difference.
// With prod(large) - prod(small) built factor by factor from large - small >= 0, every term is positive: the average
// sharpness of a network with tiny noise keeps all its digits, where prod(w^2 + eta^2) - prod(w^2) would lose them.
// Tests: tests/cpp/test_theory.cpp, tests/python/test_theory_loss.py (mpmath).
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace torch_ssam::theory {

// Neumaier's compensated sum.
class Sum {
 public:
  void add(double value) {
    const double next = sum_ + value;
    compensation_ += std::abs(sum_) >= std::abs(value) ? (sum_ - next) + value : (value - next) + sum_;
    sum_ = next;
  }
  double value() const { return std::isfinite(sum_) ? sum_ + compensation_ : sum_; }

 private:
  double sum_ = 0;
  double compensation_ = 0;
};

// u - log(1 + u) >= 0 for u > -1. Near 0 by log(1 + u) = 2 atanh(r), r = u / (2 + u); no first-order terms are left.
inline double excess_over_log1p(double u) {
  if (u < -0.4 || u > 0.7) {
    return u - std::log1p(u);
  }
  const double r = u / (2 + u);
  const double y = r * r;
  double series = 0;
  for (int k = 16; k >= 1; --k) {
    series = y * (1.0 / (2 * k + 1) + series);
  }
  return r * (u - 2 * series);
}

// x^(1/n) for x >= 0: a Newton step removes what rounding 1/n did to pow.
inline double nth_root(double x, std::int64_t n) {
  if (n == 1 || x == 0 || !std::isfinite(x)) {
    return x;
  }
  if (n == 2) {
    return std::sqrt(x);
  }
  const double root = std::pow(x, 1.0 / static_cast<double>(n));
  const double ratio = std::pow(root, static_cast<double>(n)) / x;
  return std::isfinite(ratio) && ratio > 0 ? root * (1 - (ratio - 1) / static_cast<double>(n)) : root;
}

// Root of an increasing function in [low, high] by Newton's method, with a bisection wherever Newton leaves the bracket
// or gains too little. evaluate(x) returns {value, slope}.
struct ValueAndSlope {
  double value, slope;
};

template <typename Evaluate>
double bracketed_newton(double low, double high, double start, const Evaluate& evaluate) {
  double x = start;
  for (int iteration = 0; iteration < 200 && low < high; ++iteration) {
    const ValueAndSlope f = evaluate(x);
    if (f.value == 0) {
      return x;
    }
    const double width = high - low;
    (f.value < 0 ? low : high) = x;
    double next = x - f.value / f.slope;
    if (std::abs(next - x) <= 1e-16 * std::abs(x)) {
      return next >= low && next <= high ? next : x;
    }
    if (!(next > low && next < high) || (iteration > 20 && high - low > 0.5 * width)) {
      next = low + 0.5 * (high - low);
      if (next <= low || next >= high) {
        return x;
      }
    }
    x = next;
  }
  return x;
}

inline double integer_power(double base, std::int64_t n) { return std::pow(base, static_cast<double>(n)); }

// prod(large), prod(small) and their difference.
struct Gap {
  double large = 1;
  double small = 1;
  double gap = 0;
};

inline Gap operator*(const Gap& a, const Gap& b) {
  return {a.large * b.large, a.small * b.small, a.large * b.gap + a.gap * b.small};
}

// One layer's factors in O_R: w, and w^2 + eta^2 beside w^2.
struct NoisyProduct {
  double plain = 1;  // P = prod w
  Gap second;        // large: A = prod(w^2 + eta^2); small: P^2; gap: A - P^2
};

inline NoisyProduct operator*(const NoisyProduct& a, const NoisyProduct& b) {
  return {a.plain * b.plain, a.second * b.second};
}

inline NoisyProduct noisy_factor(double w, double noise_std) {
  const double noise_variance = noise_std * noise_std;
  return {w, {w * w + noise_variance, w * w, noise_variance}};
}

// Products of the layers of one coordinate with none, one or two of them left out, without a division.
class LeaveOut {
 public:
  explicit LeaveOut(std::int64_t depth) : factors_(size(depth)), before_(size(depth)), after_(size(depth)) {}

  void set(std::int64_t layer, const NoisyProduct& factor) { factors_[size(layer)] = factor; }

  // After all factors are set.
  void multiply() {
    for (std::size_t l = 1; l < factors_.size(); ++l) {
      before_[l] = before_[l - 1] * factors_[l - 1];
      after_[factors_.size() - 1 - l] = factors_[factors_.size() - l] * after_[factors_.size() - l];
    }
  }

  NoisyProduct all() const { return before_.back() * factors_.back(); }
  NoisyProduct without(std::int64_t i) const { return before_[size(i)] * after_[size(i)]; }

  // visit(i, j, product without i and j) for every i < j.
  template <typename Visit>
  void for_each_pair(const Visit& visit) const {
    for (std::size_t i = 0; i < factors_.size(); ++i) {
      NoisyProduct between = before_[i];
      for (std::size_t j = i + 1; j < factors_.size(); ++j) {
        visit(static_cast<std::int64_t>(i), static_cast<std::int64_t>(j), between * after_[j]);
        between = between * factors_[j];
      }
    }
  }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

  std::vector<NoisyProduct> factors_, before_, after_;
};

}  // namespace torch_ssam::theory
