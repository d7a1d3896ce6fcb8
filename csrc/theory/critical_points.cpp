// The critical points of O_R for whole arrays of targets, their Hessians, and the products of correlated coordinates.
// At a balanced point w_l = eta_l y the Hessian is E^2 D^-1 (alpha I + beta 1 1^T) D^-1, D = diag(eta): for equal noise
// one eigenvalue along 1 and L-1 equal ones, known in closed form; for different noise a small symmetric problem.
// Tests: tests/python/test_theory_shrinkage.py, tests/python/test_theory_limit.py.
#include <algorithm>
#include <cmath>
#include <limits>

#include "theory/linear_algebra.h"
#include "theory/shrinkage.h"

namespace torch_ssam::theory {

namespace {

// Hessian in the scaled weights v_l = w_l / eta_l, over common * E^2: `once` along 1, `others` across it.
struct ScaledHessian {
  Wide common;
  double once, others;
};

ScaledHessian scaled_hessian(const ShrinkageMap& map, const Root& root, double target) {
  const auto depth = static_cast<double>(map.depth());
  if (root.exists) {
    return {power(Wide(1.0) + root.x, map.depth() - 2), 2 * depth * root.offset, 4};
  }
  if (map.depth() > 2) {
    return {Wide(1.0), 2, 2};
  }
  Wide noise_product(1.0);
  for (const double eta : map.noise_std()) {
    noise_product = noise_product * Wide(eta);
  }
  const double above = target == 0 ? -1.0 : relative_difference(Wide(std::abs(target)), noise_product);
  return {Wide(1.0), -2 * above, 2 * (above + 2)};
}

// One eigenvalue `once` with the vector 1 / sqrt(L), and `others` with an orthonormal basis across it (Helmert's).
Eigenbasis equal_noise_basis(double once, double others, std::int64_t depth) {
  const auto n = static_cast<std::size_t>(depth);
  const std::size_t place = once <= others ? 0 : n - 1;
  Eigenbasis basis{std::vector<double>(n, others), std::vector<double>(n * n, 0.0)};
  basis.values[place] = once;
  std::size_t k = 0;
  for (std::size_t row = 0; row < n; ++row) {
    double* vector = &basis.vectors[row * n];
    if (row == place) {
      std::fill_n(vector, n, 1 / std::sqrt(static_cast<double>(n)));
      continue;
    }
    ++k;
    const double norm = std::sqrt(static_cast<double>(k) * static_cast<double>(k + 1));
    std::fill_n(vector, k, 1 / norm);
    vector[k] = -static_cast<double>(k) / norm;
  }
  return basis;
}

}  // namespace

Eigenbasis critical_eigenbasis(const ShrinkageMap& map, const Root& root, double target) {
  const ScaledHessian scaled = scaled_hessian(map, root, target);
  const std::vector<double>& eta = map.noise_std();
  const std::size_t n = eta.size();
  Wide square = scaled.common;
  for (const double value : eta) {
    square = square * Wide(value) * Wide(value);
  }
  if (std::all_of(eta.begin(), eta.end(), [&](double value) { return value == eta.front(); })) {
    const double unit = (square / power(Wide(eta.front()), 2)).value();
    return equal_noise_basis(scaled.once * unit, scaled.others * unit, map.depth());
  }
  const double beta = (scaled.once - scaled.others) / static_cast<double>(n);
  std::vector<double> matrix(n * n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      matrix[i * n + j] = (square / (Wide(eta[i]) * Wide(eta[j]))).value() * (beta + (i == j ? scaled.others : 0.0));
    }
  }
  SymmetricEigen eigen = symmetric_eigen(std::move(matrix), map.depth());
  return {std::move(eigen.values), std::move(eigen.vectors)};
}

CriticalPoints critical_points(View target, const NoiseStd& noise_std, std::int64_t depth) {
  check_finite("target", target);
  noise_std.positive_per_layer(depth);
  const ShrinkageMap map(noise_std, depth);
  const auto layers = static_cast<std::size_t>(depth);
  const std::size_t features = target.size();
  const std::vector<double> missing(layers * features, std::numeric_limits<double>::quiet_NaN());
  CriticalPoints points{missing, missing, missing, missing, missing, {}, {}};
  for (std::size_t h = 0; h < features; ++h) {
    const auto fill = [&](const Root& root, std::vector<double>* weights, std::vector<double>& eigenvalues) {
      const Eigenbasis basis = critical_eigenbasis(map, root, target[h]);
      for (std::size_t l = 0; l < layers; ++l) {
        eigenvalues[l * features + h] = basis.values[l];
        if (weights != nullptr) {
          const double size = (root.y * Wide(map.noise_std()[l])).value();
          (*weights)[l * features + h] = l == 0 && target[h] < 0 ? -size : size;
        }
      }
    };
    const Root larger = map.larger_root(target[h]);
    const Root smaller = map.smaller_root(target[h]);
    if (larger.exists) {
      fill(larger, &points.minimum, points.minimum_eigenvalues);
    }
    if (smaller.exists) {
      fill(smaller, &points.saddle, points.saddle_eigenvalues);
    }
    fill(Root{}, nullptr, points.zero_eigenvalues);
    points.minimum_is_global.push_back(map.minimum_is_global(target[h]) ? 1 : 0);
    points.zero_is_minimum.push_back(depth > 2 || !larger.exists ? 1 : 0);
  }
  return points;
}

std::vector<double> limit_product(View target, const NoiseStd& noise_std, std::int64_t depth,
                                  const Covariance& covariance) {
  check_finite("target", target);
  const auto features = static_cast<std::int64_t>(target.size());
  covariance.check_features(features);
  covariance.check_positive_diagonal("limit_product");
  const ShrinkageMap map(noise_std, depth);
  std::vector<double> p(target.begin(), target.end());
  if (!covariance.is_full()) {  // coordinates do not meet
    std::transform(p.begin(), p.end(), p.begin(), [&](double value) { return map.product(value); });
    return p;
  }
  // Rounding of one right-hand side: eps times the largest target, through the heaviest row of Sigma over its diagonal.
  double largest_target = 0;
  double heaviest_row = 1;
  for (std::int64_t h = 0; h < features; ++h) {
    largest_target = std::max(largest_target, std::abs(target[static_cast<std::size_t>(h)]));
    double row = 0;
    for (std::int64_t k = 0; k < features; ++k) {
      row += std::abs(covariance(h, k));
    }
    heaviest_row = std::max(heaviest_row, row / covariance.diagonal(h));
  }
  const double tolerance = 4 * std::numeric_limits<double>::epsilon() * largest_target * heaviest_row;
  std::vector<bool> collapsed(p.size(), false);
  std::vector<double> residual(p.size());
  constexpr int kSweeps = 20000;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    std::transform(target.begin(), target.end(), p.begin(), residual.begin(), std::minus<>());
    std::vector<double> u = covariance.apply(residual);
    double largest_change = 0;
    for (std::size_t h = 0; h < p.size(); ++h) {
      if (collapsed[h]) {
        continue;
      }
      const auto row = static_cast<std::int64_t>(h);
      double next = map.product(p[h] + u[h] / covariance.diagonal(row));
      if (depth > 2 && next * p[h] <= 0) {
        next = 0;
        collapsed[h] = true;
      }
      const double change = next - p[h];
      for (std::size_t k = 0; change != 0 && k < p.size(); ++k) {
        u[k] -= covariance(static_cast<std::int64_t>(k), row) * change;
      }
      p[h] = next;
      largest_change = std::max(largest_change, std::abs(change));
    }
    if (largest_change <= tolerance) {
      return p;
    }
  }
  throw std::runtime_error(
      "limit_product: the coordinates did not settle in 20000 sweeps; the covariance is too close "
      "to singular, add a small multiple of its diagonal");
}

}  // namespace torch_ssam::theory
