// The formulas of loss.h. Notation of docs/theory.md: P_i, P_ij are products of all layers but i (and j), A_i and A_ij
// the same of w^2 + eta^2; u = Sigma (w* - p). Tests: tests/python/test_theory_loss.py, tests/cpp/test_theory.cpp.
#include "theory/loss.h"

namespace torch_ssam::theory {

namespace {

std::size_t at(std::int64_t n) { return static_cast<std::size_t>(n); }

std::vector<double> residual(const Weights& weights, View target) {
  std::vector<double> difference = products(weights);
  for (std::size_t h = 0; h < difference.size(); ++h) {
    difference[h] = target[h] - difference[h];
  }
  return difference;
}

}  // namespace

void for_each_coordinate(const Weights& weights, const std::vector<double>& noise_std,
                         const std::function<void(std::int64_t, const LeaveOut&)>& visit) {
  LeaveOut leave_out(weights.depth());
  for (std::int64_t h = 0; h < weights.features(); ++h) {
    for (std::int64_t l = 0; l < weights.depth(); ++l) {
      leave_out.set(l, noisy_factor(weights(l, h), noise_std[at(l)]));
    }
    leave_out.multiply();
    visit(h, leave_out);
  }
}

std::vector<double> products(const Weights& weights) {
  std::vector<double> result(at(weights.features()), 1.0);
  for (std::int64_t l = 0; l < weights.depth(); ++l) {
    for (std::int64_t h = 0; h < weights.features(); ++h) {
      result[at(h)] *= weights(l, h);
    }
  }
  return result;
}

double loss(const Weights& weights, View target, const Covariance& covariance) {
  check_target(weights, target);
  covariance.check_features(weights.features());
  const std::vector<double> r = residual(weights, target);
  const std::vector<double> u = covariance.apply(r);
  Sum sum;
  for (std::size_t h = 0; h < r.size(); ++h) {
    sum.add(r[h] * u[h]);
  }
  return sum.value();
}

double regularizer(const Weights& weights, const NoiseStd& noise_std, const Covariance& covariance) {
  covariance.check_features(weights.features());
  Sum sum;
  for_each_coordinate(weights, noise_std.per_layer(weights.depth()), [&](std::int64_t h, const LeaveOut& product) {
    sum.add(covariance.diagonal(h) * product.all().second.gap);
  });
  return sum.value();
}

double regularized_loss(const Weights& weights, View target, const NoiseStd& noise_std, const Covariance& covariance) {
  return loss(weights, target, covariance) + regularizer(weights, noise_std, covariance);
}

std::vector<double> coordinate_regularized_loss(const Weights& weights, View target, const NoiseStd& noise_std,
                                                const Covariance& covariance) {
  check_target(weights, target);
  covariance.check_features(weights.features());
  std::vector<double> result(at(weights.features()));
  for_each_coordinate(weights, noise_std.per_layer(weights.depth()), [&](std::int64_t h, const LeaveOut& product) {
    const double r = target[at(h)] - product.all().plain;
    result[at(h)] = covariance.diagonal(h) * (r * r + product.all().second.gap);
  });
  return result;
}

std::vector<double> regularized_gradient(const Weights& weights, View target, const NoiseStd& noise_std,
                                         const Covariance& covariance) {
  check_target(weights, target);
  covariance.check_features(weights.features());
  const std::vector<double> u = covariance.apply(residual(weights, target));
  std::vector<double> gradient(weights.values().size());
  for_each_coordinate(weights, noise_std.per_layer(weights.depth()), [&](std::int64_t h, const LeaveOut& product) {
    for (std::int64_t i = 0; i < weights.depth(); ++i) {
      const NoisyProduct others = product.without(i);
      gradient[at(i * weights.features() + h)] =
          2 * (covariance.diagonal(h) * weights(i, h) * others.second.gap - u[at(h)] * others.plain);
    }
  });
  return gradient;
}

std::vector<double> regularized_hessian(const Weights& weights, View target, const NoiseStd& noise_std,
                                        const Covariance& covariance) {
  check_target(weights, target);
  covariance.check_features(weights.features());
  const std::int64_t depth = weights.depth();
  const std::int64_t features = weights.features();
  const std::vector<double> u = covariance.apply(residual(weights, target));
  const bool full = covariance.is_full();
  std::vector<double> hessian(at(features * depth * depth * (full ? features : 1)), 0.0);
  std::vector<double> partial(full ? weights.values().size() : 0);  // P_i of every coordinate
  const auto entry = [&](std::int64_t i, std::int64_t h, std::int64_t j, std::int64_t k) -> double& {
    return hessian[at(full ? ((i * features + h) * depth + j) * features + k : (h * depth + i) * depth + j)];
  };
  // Within a coordinate: H_ii = 2 Sigma_hh A_i, H_ij = 2 P_ij (Sigma_hh p - u_h) + 4 Sigma_hh w_i w_j (A_ij - P_ij^2).
  for_each_coordinate(weights, noise_std.per_layer(depth), [&](std::int64_t h, const LeaveOut& product) {
    const double variance = covariance.diagonal(h);
    const double p = product.all().plain;
    for (std::int64_t i = 0; i < depth; ++i) {
      entry(i, h, i, h) = 2 * variance * product.without(i).second.large;
      if (full) {
        partial[at(i * features + h)] = product.without(i).plain;
      }
    }
    product.for_each_pair([&](std::int64_t i, std::int64_t j, const NoisyProduct& others) {
      const double value = 2 * others.plain * (variance * p - u[at(h)]) +
                           4 * variance * weights(i, h) * weights(j, h) * others.second.gap;
      entry(i, h, j, h) = value;
      entry(j, h, i, h) = value;
    });
  });
  // Between coordinates: 2 Sigma_hk P_i P_j, each product in its own coordinate.
  for (std::int64_t h = 0; full && h < features; ++h) {
    for (std::int64_t k = 0; k < features; ++k) {
      for (std::int64_t i = 0; h != k && i < depth; ++i) {
        for (std::int64_t j = 0; j < depth; ++j) {
          entry(i, h, j, k) = 2 * covariance(h, k) * partial[at(i * features + h)] * partial[at(j * features + k)];
        }
      }
    }
  }
  return hessian;
}

}  // namespace torch_ssam::theory
