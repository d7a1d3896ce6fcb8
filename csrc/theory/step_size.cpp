// The bounds of step_size.h. Notation of docs/theory.md: O_0 is the current O_R, kappa = lambda_max(Sigma) / min_h
// Sigma_hh. Norms and products are formed through scaled or wide numbers, so that 1e8 targets and 1e-8 noise stay in
// range. Tests: tests/python/test_theory_step_size.py, tests/cpp/test_theory.cpp.
#include "theory/step_size.h"

#include <algorithm>
#include <cmath>

#include "theory/linear_algebra.h"
#include "theory/loss.h"
#include "theory/shrinkage.h"

namespace torch_ssam::theory {

namespace {

double euclidean_norm(View values) {
  double largest = 0;
  for (const double value : values) {
    largest = std::max(largest, std::abs(value));
  }
  Sum sum;
  for (const double value : values) {
    sum.add(largest > 0 ? (value / largest) * (value / largest) : 0.0);
  }
  return largest * std::sqrt(sum.value());
}

// N_l = prod_{k!=l} eta_k.
std::vector<Wide> other_noise(const std::vector<double>& noise_std) {
  std::vector<Wide> result(noise_std.size(), Wide(1.0));
  for (std::size_t l = 0; l < noise_std.size(); ++l) {
    for (std::size_t k = 0; k < noise_std.size(); ++k) {
      result[l] = k == l ? result[l] : result[l] * Wide(noise_std[k]);
    }
  }
  return result;
}

double correlated_bound(const Weights& weights, View target, const NoiseStd& noise_std, const Covariance& covariance,
                        double smallest_noise) {
  const std::int64_t features = weights.features();
  std::vector<double> matrix(static_cast<std::size_t>(features * features));
  double smallest_variance = covariance.diagonal(0);
  for (std::int64_t h = 0; h < features; ++h) {
    smallest_variance = std::min(smallest_variance, covariance.diagonal(h));
    for (std::int64_t k = 0; k < features; ++k) {
      matrix[static_cast<std::size_t>(h * features + k)] = covariance(h, k);
    }
  }
  const auto depth = static_cast<double>(weights.depth());
  const double kappa = largest_eigenvalue(std::move(matrix), features) / smallest_variance;
  return (depth + kappa + std::hypot(depth + kappa, depth - 1)) *
         regularized_loss(weights, target, noise_std, covariance) / smallest_noise / smallest_noise;
}

}  // namespace

double smoothness_bound(const Weights& weights, View target, const NoiseStd& noise_std, const Covariance& covariance,
                        SmoothnessBound kind) {
  check_target(weights, target);
  covariance.check_features(weights.features());
  const std::vector<double> eta = noise_std.positive_per_layer(weights.depth());
  const double smallest = *std::min_element(eta.begin(), eta.end());
  if (covariance.is_full()) {
    covariance.check_positive_diagonal("step_size_bound");
    if (kind == SmoothnessBound::known_target) {
      throw bad_input(
          "the sharper step size needs coordinates that are not coupled, got a full covariance; "
          "pass sharp=False or the diagonal alone");
    }
    return correlated_bound(weights, target, noise_std, covariance, smallest);
  }
  const auto depth = static_cast<double>(weights.depth());
  const std::vector<double> values = coordinate_regularized_loss(weights, target, noise_std);
  double largest = 0;
  for (std::size_t h = 0; h < values.size(); ++h) {
    double bound = (depth + std::hypot(depth, depth - 1)) * values[h];
    if (kind == SmoothnessBound::known_target) {
      const double size = std::abs(target[h]);
      const double q = size + std::sqrt(values[h]);
      bound = (depth + 1) * q * q + 2 * (depth - 1) * size * q;
    }
    largest = std::max(largest, covariance.diagonal(static_cast<std::int64_t>(h)) * bound);
  }
  return largest / smallest / smallest;
}

double step_size_bound(const Weights& weights, View target, const NoiseStd& noise_std, const Covariance& covariance,
                       SmoothnessBound kind) {
  return 2 / smoothness_bound(weights, target, noise_std, covariance, kind);
}

double projection_radius(View target, const NoiseStd& noise_std, std::int64_t depth) {
  check_depth(depth);
  check_finite("target", target);
  double factor = 1;
  for (const Wide& others : other_noise(noise_std.positive_per_layer(depth))) {
    factor = std::max(factor, (Wide(std::sqrt(static_cast<double>(depth))) / (Wide(2.0) * others)).value());
  }
  return factor * euclidean_norm(target);
}

double critical_radius(View target, const NoiseStd& noise_std, std::int64_t depth) {
  check_finite("target", target);
  const ShrinkageMap map(noise_std, depth);
  const double noise_norm = euclidean_norm(noise_std.positive_per_layer(depth));
  std::vector<double> sizes;
  for (const double value : target) {
    const double log_tau = value == 0 ? -1.0 : map.log_tau(value);
    sizes.push_back(log_tau > 0 ? noise_norm * std::sqrt(std::expm1(2 * log_tau / static_cast<double>(depth))) : 0.0);
  }
  return euclidean_norm(sizes);
}

std::vector<double> coordinate_bounds(View target, const NoiseStd& noise_std, std::int64_t depth) {
  check_depth(depth);
  check_finite("target", target);
  const std::vector<double> eta = noise_std.positive_per_layer(depth);
  const std::vector<Wide> others = other_noise(eta);
  std::vector<double> bounds;
  bounds.reserve(eta.size() * target.size());
  for (std::size_t l = 0; l < eta.size(); ++l) {
    const Wide divisor = power(Wide(2.0), depth - 1) * others[l];
    for (const double value : target) {
      bounds.push_back(std::max(eta[l], (Wide(std::abs(value)) / divisor).value()));
    }
  }
  return bounds;
}

}  // namespace torch_ssam::theory
