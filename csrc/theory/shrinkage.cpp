// The roots of shrinkage.h and what follows from them for one target. Notation of docs/theory.md; E is prod eta_l.
// Newton runs on log[(1 + x)^(L-1) E / (|w*| y^(L-2))] in log y, whose slope is L (x - x0) / (1 + x), x0 = (L-2)/L.
// The critical points of whole arrays, and correlated coordinates, are in critical_points.cpp.
// Tests: tests/python/test_theory_shrinkage.py, tests/cpp/test_theory.cpp.
#include "theory/shrinkage.h"

#include <cmath>

#include "theory/numerics.h"

namespace torch_ssam::theory {

namespace {

Wide wide_integer(std::int64_t n) { return Wide(static_cast<double>(n)); }

// z = 1 - x of the point where the non-zero minimum becomes global: (2 - z)^(L-1) z = 1, z in (0, 1), for L >= 3.
// Concave in log z, so Newton from the left, z = 2^-(L-1), is monotone.
DoubleDouble global_complement(std::int64_t depth) {
  const auto n = static_cast<double>(depth - 1);
  DoubleDouble z{std::ldexp(1.0, static_cast<int>(-std::min<std::int64_t>(depth - 1, 1000))), 0};
  for (int iteration = 0; iteration < 60; ++iteration) {
    const Wide left = power(Wide(DoubleDouble{2, 0} - z, 0), depth - 1) * Wide(z, 0);
    const double step = -log_ratio(left, Wide(1.0)) / (1 - n * z.hi / (2 - z.hi));
    z = z * two_sum(1, std::expm1(step));
    if (std::abs(step) < 1e-12) {
      break;
    }
  }
  return z;
}

}  // namespace

ShrinkageMap::ShrinkageMap(const NoiseStd& noise_std, std::int64_t depth) : depth_(depth), noise_product_(1.0) {
  check_depth(depth);
  noise_std_ = noise_std.per_layer(depth);
  for (const double eta : noise_std_) {
    noise_product_ = noise_product_ * Wide(eta);
  }
  threshold_above_ = power(wide_integer(2 * (depth - 1)), 2 * (depth - 1));
  threshold_below_ = power(wide_integer(depth), depth) * power(wide_integer(depth - 2), depth - 2);
  global_square_ = Wide(1.0);
  if (depth > 2) {
    const DoubleDouble z = global_complement(depth);
    global_square_ = Wide(1.0) / (power(Wide(z, 0), 2) * power(Wide(DoubleDouble{1, 0} - z, 0), depth - 2));
  }
}

double ShrinkageMap::excess(double target) const {
  const Wide size(std::abs(target));
  if (depth_ == 2) {  // no squares: noise_product_ is exact, and the difference keeps every digit
    return relative_difference(size, noise_product_);
  }
  return relative_difference(size * size * threshold_below_, noise_product_ * noise_product_ * threshold_above_);
}

double ShrinkageMap::log_tau(double target) const { return log_ratio(Wide(std::abs(target)), noise_product_); }

Root ShrinkageMap::make_root(const Wide& y) const {
  Root root{true, y, y * y, 0};
  const auto numerator = static_cast<double>(depth_ - 2);
  const auto denominator = static_cast<double>(depth_);
  root.offset = relative_difference(root.x * Wide(denominator), Wide(numerator)) * numerator / denominator;
  return root;
}

Root ShrinkageMap::newton(double target, double log_y) const {
  const Wide size(std::abs(target));
  Root root = make_root(wide_exp(log_y));
  for (int iteration = 0; iteration < 60; ++iteration) {
    const Wide left = power(Wide(1.0) + root.x, depth_ - 1) * noise_product_;
    const double height = log_ratio(left, size * power(root.y, depth_ - 2));
    const bool huge = root.x.exponent() > 200;
    const double slope = static_cast<double>(depth_) * (huge ? 1.0 : root.offset / (1 + root.x.value()));
    if (slope == 0) {
      break;
    }
    const double step = -height / slope;
    root = make_root(root.y * (std::abs(step) < 0.5 ? Wide(two_sum(1, std::expm1(step)), 0) : wide_exp(step)));
    // What is left after this step is about step^2 / slope: far below the last digit of x and of x - x0.
    if (std::abs(step) <= 1e-9 * std::abs(slope)) {
      break;
    }
  }
  return root;
}

Root ShrinkageMap::larger_root(double target) const {
  if (target == 0 || noiseless()) {
    return {};
  }
  const double above = excess(target);
  if (depth_ == 2) {  // x = tau - 1
    if (!(above > 0)) {
      return {};
    }
    const Wide tau = Wide(std::abs(target)) / noise_product_;
    const bool near = above < 4;
    const Wide x = near ? Wide(above) : (tau.exponent() > 200 ? tau : Wide(tau.parts() - DoubleDouble{1, 0}, 0));
    return {true, square_root(x), x, x.value()};
  }
  if (above < 0) {
    return {};
  }
  const auto depth = static_cast<double>(depth_);
  const double x0 = (depth - 2) / depth;
  if (above == 0) {
    const Wide x = wide_integer(depth_ - 2) / wide_integer(depth_);
    return {true, square_root(x), x, 0};
  }
  // Start: the parabola at the double root when near it, else the bound log x <= 2 log(tau) / L.
  const double height = 0.5 * std::log1p(above);
  const double curvature = (depth - 1) * x0 / ((1 + x0) * (1 + x0));
  const bool near = height < 0.1;
  return newton(target, near ? 0.5 * (std::log(x0) + std::sqrt(2 * height / curvature)) : log_tau(target) / depth);
}

Root ShrinkageMap::smaller_root(double target) const {
  if (depth_ == 2 || target == 0 || noiseless()) {
    return {};
  }
  const double above = excess(target);
  if (!(above > 0)) {
    return above == 0 ? larger_root(target) : Root{};
  }
  const auto depth = static_cast<double>(depth_);
  const double x0 = (depth - 2) / depth;
  const double height = 0.5 * std::log1p(above);
  const double curvature = (depth - 1) * x0 / ((1 + x0) * (1 + x0));
  const bool near = height < 0.1;  // else the bound log x >= -2 log(tau) / (L-2)
  return newton(target,
                near ? 0.5 * (std::log(x0) - std::sqrt(2 * height / curvature)) : -log_tau(target) / (depth - 2));
}

double ShrinkageMap::factor(double target) const {
  if (noiseless()) {
    return target == 0 ? 0.0 : 1.0;
  }
  const Root root = larger_root(target);
  if (!root.exists) {
    return 0.0;
  }
  // lambda = (x / (1 + x))^((L-1)/L), which needs no L-th root of the target.
  const double share = (root.x / (Wide(1.0) + root.x)).value();
  return depth_ == 2 ? std::sqrt(share) : share / nth_root(share, depth_);
}

double ShrinkageMap::product(double target) const {
  if (noiseless()) {
    return target;
  }
  const Root root = larger_root(target);
  if (!root.exists) {
    return 0.0;
  }
  const Wide share = root.x / (Wide(1.0) + root.x);
  return std::copysign((Wide(std::abs(target)) * power(share, depth_ - 1)).value(), target);
}

bool ShrinkageMap::minimum_is_global(double target) const {
  if (target == 0 || noiseless()) {
    return false;
  }
  if (depth_ == 2) {
    return excess(target) > 0;
  }
  const Wide size(std::abs(target));
  return relative_difference(size * size, noise_product_ * noise_product_ * global_square_) > 0;
}

double ShrinkageMap::existence_threshold() const {
  return (noise_product_ * square_root(threshold_above_ / threshold_below_)).rounded_up();
}

double ShrinkageMap::global_threshold() const { return (noise_product_ * square_root(global_square_)).rounded_up(); }

std::vector<double> shrinkage_factor(View target, const NoiseStd& noise_std, std::int64_t depth) {
  check_finite("target", target);
  const ShrinkageMap map(noise_std, depth);
  std::vector<double> result;
  result.reserve(target.size());
  for (const double value : target) {
    result.push_back(map.factor(value));
  }
  return result;
}

double existence_threshold(const NoiseStd& noise_std, std::int64_t depth) {
  return ShrinkageMap(noise_std, depth).existence_threshold();
}

double global_threshold(const NoiseStd& noise_std, std::int64_t depth) {
  return ShrinkageMap(noise_std, depth).global_threshold();
}

}  // namespace torch_ssam::theory
