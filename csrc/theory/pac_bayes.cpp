// The formulas of pac_bayes.h. Notation of docs/theory.md: B = KL + ln(2 sqrt(n) / delta).
// kl_inverse solves for the gap p - q: kl = q h(gap / q) + (1 - q) h(-gap / (1 - q)) with h(u) = u - log(1 + u), two
// terms >= 0, convex and increasing in the gap.
// Tests: tests/python/test_theory_pac_bayes.py, tests/cpp/test_theory.cpp.
#include "theory/pac_bayes.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "theory/numerics.h"

namespace torch_ssam::theory {

namespace {

void check_probability(const char* name, double value) {
  if (!(value >= 0 && value <= 1)) {
    throw bad_input(name, " must lie in [0, 1], got ", value, "; clip or rescale an unbounded loss first");
  }
}

void check_delta(double delta) {
  if (!(delta > 0 && delta < 1)) {
    throw bad_input("delta must lie in (0, 1), got ", delta);
  }
}

// One value, one per weight, or one per block of consecutive weights.
class Blocks {
 public:
  Blocks(const char* name, View values, std::size_t weights) : values_(values) {
    if (values.empty() || (weights % values.size() != 0)) {
      throw bad_input(name, " must hold one value, one per layer or one per weight, got ", values.size(), " for ",
                      weights, " weights");
    }
    block_ = std::max<std::size_t>(1, weights / values.size());
  }
  double operator[](std::size_t i) const { return values_[i / block_]; }

 private:
  View values_;
  std::size_t block_;
};

// (w - w0) / s; in two quotients, of opposite signs, where w - w0 overflows.
double shift_over(double w, double w0, double s) {
  const double shift = w - w0;
  return std::isfinite(shift) ? shift / s : w / s - w0 / s;
}

// 1/2 (eta^2 / s^2 - 1 - ln(eta^2 / s^2)); inf only where it exceeds the doubles.
double kl_of_widths(double eta, double s) {
  const double ratio = eta / s;
  if (ratio < std::numeric_limits<double>::min()) {  // 0 or with few digits left: beside 1, its square is nothing
    return std::log(s) - std::log(eta) - 0.5;
  }
  if (ratio > 1e100) {  // the square may overflow, and then less its logarithm would be nan; 1 and ln are nothing
    return ratio * (0.5 * ratio);
  }
  // eta^2 / s^2 - 1, through (eta - s) so that nearly equal widths keep their digits.
  const double wider = (eta - s) / s * (ratio + 1);
  return 0.5 * (ratio < 0.5 ? wider - 2 * std::log(ratio) : excess_over_log1p(wider));
}

double kl_at_gap(double q, double gap) {
  const double up = q > 0 ? q * excess_over_log1p(gap / q) : gap;
  const double down = q < 1 ? (1 - q) * excess_over_log1p(-gap / (1 - q)) : -gap;
  return up + down;
}

}  // namespace

double gaussian_kl(View weights, View prior, View noise_std, View prior_std) {
  check_finite("weights", weights);
  check_finite("prior", prior);
  for (const double value : noise_std) {
    check_positive("noise_std", value);
  }
  for (const double value : prior_std) {
    check_positive("prior_std", value);
  }
  const Blocks centre("prior", prior, weights.size());
  const Blocks eta("noise_std", noise_std, weights.size());
  const Blocks s("prior_std", prior_std, weights.size());
  Sum sum;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double shift = shift_over(weights[i], centre[i], s[i]);
    sum.add(shift * (0.5 * shift) + kl_of_widths(eta[i], s[i]));  // halved first: the square may overflow alone
  }
  return sum.value();
}

double binary_kl(double q, double p) {
  check_probability("q", q);
  check_probability("p", p);
  if (q == p) {
    return 0;
  }
  if (p == 0 || p == 1) {
    return std::numeric_limits<double>::infinity();
  }
  return kl_at_gap(q, p - q);
}

double kl_inverse(double q, double c) {
  check_probability("q", q);
  if (!(c >= 0)) {
    throw bad_input("c must be a number >= 0, got ", c);
  }
  if (q == 1 || c == 0) {
    return q;
  }
  if (q == 0) {
    return -std::expm1(-c);
  }
  // Upper ends: Pinsker's inequality, and kl >= (1 - q) ln(1 / (1 - p)) - entropy(q).
  const double room = 1 - q;
  const double entropy = -q * std::log(q) - room * std::log1p(-q);
  const double high = std::min(std::sqrt(0.5 * c), -q - std::expm1(-(c + entropy) / room));
  if (!(high > 0) || q + high >= 1) {
    const double rest = std::exp(-(c + entropy) / room);  // p is 1 to within `rest`
    return high > 0 ? std::min(1.0, 1 - rest) : q;
  }
  const double gap = bracketed_newton(0.0, high, high, [&](double trial) {
    const double p = q + trial;
    return ValueAndSlope{kl_at_gap(q, trial) - c, trial / (p * (1 - p))};
  });
  return std::min(1.0, q + gap);
}

BoundKind parse_bound_kind(const std::string& name) {
  if (name == "seeger") {
    return BoundKind::seeger;
  }
  if (name == "maurer") {
    return BoundKind::maurer;
  }
  if (name == "thiemann") {
    return BoundKind::thiemann;
  }
  if (name == "catoni") {
    return BoundKind::catoni;
  }
  throw bad_input("kind must be 'seeger', 'maurer', 'thiemann' or 'catoni', got '", name, "'");
}

double pac_bayes_bound(double empirical_risk, double kl, double n, double delta, BoundKind kind, double catoni_c) {
  check_probability("empirical_risk", empirical_risk);
  check_not_negative("kl", kl);
  check_delta(delta);
  if (!(std::isfinite(n) && n >= 1)) {
    throw bad_input("n must be the number of examples, at least 1, got ", n);
  }
  check_positive("catoni_c", catoni_c);
  const double b = kl + std::log(2 * std::sqrt(n) / delta);
  double bound = 1;
  if (kind == BoundKind::seeger) {
    bound = kl_inverse(empirical_risk, b / n);
  } else if (kind == BoundKind::maurer) {
    bound = empirical_risk + std::sqrt(b / (2 * n));
  } else if (kind == BoundKind::thiemann) {
    const double t = 2 / (std::sqrt(2 * n * empirical_risk / b + 1) + 1);
    bound = empirical_risk / (1 - t / 2) + b / (n * t * (1 - t / 2));
  } else {
    const double exponent = catoni_c * empirical_risk + (kl - std::log(delta)) / n;
    bound = std::expm1(-exponent) / std::expm1(-catoni_c);
  }
  return std::min(1.0, bound);
}

double sampled_risk_bound(double mean_risk, double samples, double delta) {
  check_delta(delta);
  check_positive("samples", samples);
  return kl_inverse(mean_risk, std::log(2 / delta) / samples);
}

double prior_grid_delta(std::int64_t j, double delta) {
  check_delta(delta);
  if (j < 1) {
    throw bad_input("j counts the priors from 1, got ", j);
  }
  const double over = 3.14159265358979323846 * static_cast<double>(j);
  return 6 * delta / (over * over);
}

}  // namespace torch_ssam::theory
