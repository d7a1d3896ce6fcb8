// p-values, and the law that the Gaussian noise promises (docs/noise.md). All tests are two-sided.
// Tests: tests/cpp/test_trial_statistics.cpp, against printed tables and exact identities.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace torch_ssam::trial {

inline double normal_cdf(double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); }

// P(|Z| >= |z|)
inline double normal_p(double z) { return std::erfc(std::fabs(z) / std::sqrt(2.0)); }

// Regularised incomplete gamma functions P(a, x) and Q(a, x) = 1 - P: the series below x = a + 1, the continued
// fraction (modified Lentz) above, so that the smaller of the two keeps its digits.
struct Gamma {
  double lower, upper;
};
inline Gamma incomplete_gamma(double a, double x) {
  if (x <= 0.0) return {0.0, 1.0};
  const double scale = std::exp(a * std::log(x) - x - std::lgamma(a));
  if (x < a + 1.0) {
    double term = 1.0 / a, sum = term;
    for (double n = a + 1.0; term > sum * 1e-17; n += 1.0) sum += term *= x / n;
    return {scale * sum, 1.0 - scale * sum};
  }
  constexpr double kTiny = 1e-300;
  double b = x + 1.0 - a, c = 1.0 / kTiny, d = 1.0 / b, h = d;
  for (int i = 1; i < 1000000; ++i) {
    const double an = -i * (i - a);
    b += 2.0;
    d = an * d + b;
    c = b + an / c;
    d = 1.0 / (std::fabs(d) < kTiny ? kTiny : d);
    c = std::fabs(c) < kTiny ? kTiny : c;
    h *= d * c;
    if (std::fabs(d * c - 1.0) < 1e-15) break;
  }
  return {1.0 - scale * h, scale * h};
}

inline double two_sided(double lower, double upper) { return std::min(1.0, 2.0 * std::min(lower, upper)); }

inline double chi_square_p(double chi_square, double degrees) {
  const Gamma g = incomplete_gamma(degrees / 2, chi_square / 2);
  return two_sided(g.lower, g.upper);
}

inline double poisson_p(uint64_t count, double expected) {
  const auto k = static_cast<double>(count);
  return two_sided(incomplete_gamma(k + 1, expected).upper, count == 0 ? 1.0 : incomplete_gamma(k, expected).lower);
}

// Kolmogorov's limit law: P(sqrt(n) D >= x).
inline double kolmogorov_p(double x) {
  if (x < 0.2) return 1.0;
  double sum = 0, sign = 1;
  for (int k = 1; k <= 100; ++k, sign = -sign) sum += sign * std::exp(-2.0 * k * k * x * x);
  return std::min(1.0, std::max(0.0, 2.0 * sum));
}

// P(|Z| > bound) under the promised law, for bound >= 3.2: the radius takes the 2^30 values sqrt(-2 ln u), u = 1/2^31,
// 3/2^31, ..., each alike, so nothing lies beyond sqrt(62 ln 2); the angle's 2^31 values count as a continuum. Within
// 3 in 10^8 the promised law is the normal one below (the rounding of u to 24 bits near 1).
inline double promised_two_sided_tail(double bound) {
  double sum = 0;
  for (double odd = 1;; odd += 2) {
    const double radius = std::sqrt(-2.0 * std::log(odd * 0x1p-31));
    if (radius <= bound) break;
    sum += std::acos(bound / radius);
  }
  return sum * 2.0 / std::acos(-1.0) * 0x1p-30;
}

struct ChiSquare {
  double value = 0;
  int terms = 0;
  void add(double count, double expected) {
    value += (count - expected) * (count - expected) / expected;
    ++terms;
  }
};

// All tests of a run, and the verdict: each is held to alpha / (their number), so that a perfect generator fails the
// whole with a probability of at most alpha, whatever the dependence between them (Bonferroni).
class Verdict {
 public:
  // Whose tests the next ones are, for the report.
  void set_law(const char* law) { law_ = law; }

  // A statistic in standard errors.
  void add_normal(std::string name, double z) { add(std::move(name), "z", z, normal_p(z)); }
  // `count` values of this mean and variance, by their sum.
  void add_sum(std::string name, double sum, double count, double mean, double variance) {
    add_normal(std::move(name), (sum - count * mean) / std::sqrt(count * variance));
  }
  void add_chi_square(std::string name, const ChiSquare& c) {
    const int degrees = c.terms - 1;
    add(name + ", " + std::to_string(degrees) + " degrees of freedom", "chi2", c.value, chi_square_p(c.value, degrees));
  }
  void add(std::string name, const char* symbol, double statistic, double p) {
    tests_.push_back({law_, std::move(name), symbol, statistic, p});
  }

  double threshold(double alpha) const { return alpha / static_cast<double>(tests_.size()); }

  bool rejects(const std::string& prefix, double alpha) const {
    return std::any_of(tests_.begin(), tests_.end(),
                       [&](const Test& t) { return t.name.rfind(prefix, 0) == 0 && !(t.p >= threshold(alpha)); });
  }

  // Prints every test, and returns how many are rejected. A p-value that is no number counts as rejected.
  int report(double alpha) const {
    int rejected = 0;
    for (const Test& t : tests_) {
      const bool fails = !(t.p >= threshold(alpha));
      rejected += fails;
      std::printf("%s %-4s = %14.6f  p = %-10.4g %s: %s\n", fails ? "REJECTED" : "ok      ", t.symbol, t.statistic, t.p,
                  t.law, t.name.c_str());
    }
    double smallest = 1;
    for (const Test& t : tests_) smallest = std::min(smallest, t.p);
    std::printf(
        "\n%zu tests, smallest p = %.3g; each is rejected below %.3g, so that a perfect generator fails this "
        "program with probability %g at most.\n%d rejected.\n",
        tests_.size(), smallest, threshold(alpha), alpha, rejected);
    return rejected;
  }

 private:
  struct Test {
    const char* law;
    std::string name;
    const char* symbol;
    double statistic, p;
  };
  const char* law_ = "";
  std::vector<Test> tests_;
};

}  // namespace torch_ssam::trial
