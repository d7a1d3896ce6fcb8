// The formulas of stationary.h. Notation of docs/theory.md, and per layer m_n = E (w + xi)^n: m_2 = a = w^2 + eta^2,
// m_3 = w (w^2 + 3 eta^2), m_4 = w^4 + 6 w^2 eta^2 + 3 eta^4 (Gaussian) or + eta^4 (Rademacher); odd moments agree.
//   g~_i = -2 w* P~_i + 2 w~_i P~_i^2, and for i != j with Q = P~_ij: P~_i = w~_j Q, P~_j = w~_i Q.
// Tests: tests/python/test_theory_stationary.py, tests/cpp/test_theory.cpp.
#include "theory/stationary.h"

#include <cmath>
#include <limits>

#include "theory/numerics.h"
#include "theory/shrinkage.h"

namespace torch_ssam::theory {

namespace {

std::size_t at(std::int64_t n) { return static_cast<std::size_t>(n); }

double kurtosis_of(Distribution distribution) {
  switch (distribution) {
    case Distribution::gaussian:
      return 3.0;
    case Distribution::rademacher:
      return 1.0;
  }
  __builtin_unreachable();
}

// One coordinate's layers and the products of moments over all layers but one or two.
class Moments {
 public:
  Moments(std::int64_t depth, Distribution distribution)
      : kurtosis_(kurtosis_of(distribution)), w_(at(depth)), v_(at(depth)) {}

  void set(std::int64_t l, double w, double noise_std) {
    w_[at(l)] = w;
    v_[at(l)] = noise_std * noise_std;
  }
  double w(std::int64_t l) const { return w_[at(l)]; }
  double v(std::int64_t l) const { return v_[at(l)]; }
  double a(std::int64_t l) const { return w(l) * w(l) + v(l); }

  struct Products {
    double plain = 1;  // prod w
    Gap second;        // prod a - prod w^2
    Gap third;         // prod (w^2 + 3 eta^2) - prod a: of E P~^3 - E P~ E P~^2, over prod w
    Gap fourth;        // prod m_4 - prod a^2
  };
  Products without(std::int64_t i, std::int64_t j) const {
    Products result;
    for (std::int64_t k = 0; k < static_cast<std::int64_t>(w_.size()); ++k) {
      if (k == i || k == j) {
        continue;
      }
      const double square = w(k) * w(k);
      result.plain *= w(k);
      result.second = result.second * Gap{a(k), square, v(k)};
      result.third = result.third * Gap{square + 3 * v(k), a(k), 2 * v(k)};
      result.fourth = result.fourth * fourth_factor(k);
    }
    return result;
  }

  // Var(g~_i) = 4 w*^2 Var(P~) - 8 w* w_i (E P~^3 - E P~ E P~^2) + 4 Var(w~_i P~^2), P~ over all layers but i.
  double variance(std::int64_t i, double target) const {
    const Products others = without(i, i);
    const Gap square = Gap{a(i), w(i) * w(i), v(i)} * others.fourth;
    return 4 * (target * target * others.second.gap - 2 * target * w(i) * others.plain * others.third.gap + square.gap);
  }

  // Cov(g~_i, g~_j), term by term in powers of w*.
  double covariance(std::int64_t i, std::int64_t j, double target) const {
    const Products others = without(i, j);
    const double mixed = 2 * a(i) * a(j) * others.third.gap + (a(i) * v(j) + a(j) * v(i)) * others.second.large;
    const Gap cubes = Gap{w(i) * w(i) + 3 * v(i), a(i), 2 * v(i)} * Gap{w(j) * w(j) + 3 * v(j), a(j), 2 * v(j)};
    return 4 * (w(i) * w(j) * (target * target * others.second.gap + (cubes * others.fourth).gap) -
                target * others.plain * mixed);
  }

 private:
  Gap fourth_factor(std::int64_t k) const {
    const double square = w(k) * w(k);
    const double spread = 4 * square * v(k) + (kurtosis_ - 1) * v(k) * v(k);
    return {a(k) * a(k) + spread, a(k) * a(k), spread};
  }

  double kurtosis_;
  std::vector<double> w_, v_;
};

std::vector<double> covariance_matrix(const Moments& moments, std::int64_t depth, double target) {
  std::vector<double> matrix(at(depth * depth));
  for (std::int64_t i = 0; i < depth; ++i) {
    matrix[at(i * depth + i)] = moments.variance(i, target);
    for (std::int64_t j = 0; j < i; ++j) {
      matrix[at(i * depth + j)] = matrix[at(j * depth + i)] = moments.covariance(i, j, target);
    }
  }
  return matrix;
}

// V M V^T of small square matrices.
std::vector<double> conjugate(const std::vector<double>& v, const std::vector<double>& m, std::size_t n) {
  std::vector<double> half(n * n, 0.0), result(n * n, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < n; ++k) {
      for (std::size_t j = 0; j < n; ++j) {
        half[i * n + j] += v[i * n + k] * m[k * n + j];
      }
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      for (std::size_t k = 0; k < n; ++k) {
        result[i * n + j] += half[i * n + k] * v[j * n + k];
      }
    }
  }
  return result;
}

// In H's eigenvectors, C_ab = lr S_ab / (h_a + h_b - lr h_a h_b).
std::vector<double> solve_lyapunov(const Eigenbasis& basis, const std::vector<double>& s, double lr) {
  const std::size_t n = basis.values.size();
  std::vector<double> c = conjugate(basis.vectors, s, n);
  std::vector<double> transposed(n * n);
  for (std::size_t a = 0; a < n; ++a) {
    for (std::size_t b = 0; b < n; ++b) {
      const double ha = basis.values[a];
      const double hb = basis.values[b];
      c[a * n + b] *= lr / (ha + hb - lr * ha * hb);
      transposed[b * n + a] = basis.vectors[a * n + b];
    }
  }
  return conjugate(transposed, c, n);
}

}  // namespace

std::vector<double> gradient_covariance(const Weights& weights, View target, const NoiseStd& noise_std,
                                        Distribution distribution) {
  check_target(weights, target);
  const std::vector<double> eta = noise_std.per_layer(weights.depth());
  Moments moments(weights.depth(), distribution);
  std::vector<double> result;
  result.reserve(target.size() * eta.size() * eta.size());
  for (std::int64_t h = 0; h < weights.features(); ++h) {
    for (std::int64_t l = 0; l < weights.depth(); ++l) {
      moments.set(l, weights(l, h), eta[at(l)]);
    }
    const std::vector<double> block = covariance_matrix(moments, weights.depth(), target[at(h)]);
    result.insert(result.end(), block.begin(), block.end());
  }
  return result;
}

std::vector<double> gradient_variance(const Weights& weights, View target, const NoiseStd& noise_std,
                                      Distribution distribution) {
  check_target(weights, target);
  const std::vector<double> eta = noise_std.per_layer(weights.depth());
  Moments moments(weights.depth(), distribution);
  std::vector<double> result(weights.values().size());
  for (std::int64_t h = 0; h < weights.features(); ++h) {
    for (std::int64_t l = 0; l < weights.depth(); ++l) {
      moments.set(l, weights(l, h), eta[at(l)]);
    }
    for (std::int64_t l = 0; l < weights.depth(); ++l) {
      result[at(l * weights.features() + h)] = moments.variance(l, target[at(h)]);
    }
  }
  return result;
}

std::vector<double> stationary_covariance(View target, const NoiseStd& noise_std, double lr, std::int64_t depth,
                                          Distribution distribution) {
  check_finite("target", target);
  check_positive("lr", lr);
  const std::vector<double> eta = noise_std.positive_per_layer(depth);
  const ShrinkageMap map(noise_std, depth);
  Moments moments(depth, distribution);
  std::vector<double> result;
  result.reserve(target.size() * eta.size() * eta.size());
  for (std::size_t h = 0; h < target.size(); ++h) {
    const Root root = map.larger_root(target[h]);
    const Eigenbasis basis = critical_eigenbasis(map, root, target[h]);
    if (lr * basis.values.back() >= 2) {
      throw bad_input("lr must be below 2 / (largest eigenvalue of the Hessian) for a stationary law, got ", lr,
                      "; coordinate ", h, " allows less than ", 2 / basis.values.back());
    }
    std::vector<double> block(eta.size() * eta.size(), std::numeric_limits<double>::infinity());
    if (basis.values.front() > 0) {
      for (std::int64_t l = 0; l < depth; ++l) {
        moments.set(l, root.exists ? (root.y * Wide(eta[at(l)])).value() : 0.0, eta[at(l)]);
      }
      block = solve_lyapunov(basis, covariance_matrix(moments, depth, std::abs(target[h])), lr);
      for (std::size_t l = 1; target[h] < 0 && l < eta.size(); ++l) {  // the first layer's sign is the target's
        block[l] = -block[l];
        block[l * eta.size()] = -block[l * eta.size()];
      }
    }
    result.insert(result.end(), block.begin(), block.end());
  }
  return result;
}

}  // namespace torch_ssam::theory
