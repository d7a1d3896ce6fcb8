// What the noise does to a step, and where constant steps settle: covariance of the noisy gradient, and the stationary
// covariance of the linearised recursion. docs/theory.md, "Noise of the gradient, and constant steps" (D), whitened
// data. Beyond docs/theory.md: the covariance between layers i and j, Rademacher noise, per-layer noise. Every entry is
// built from differences of products without cancellation, because the variance is of order eta^2 beside moments of
// order 1. Tests: tests/python/test_theory_stationary.py (enumerated signs, Gauss-Hermite, SciPy),
// tests/cpp/test_theory.cpp.
#pragma once

#include <vector>

#include "theory/arguments.h"

namespace torch_ssam::theory {

// S_ij = Cov(g~_i, g~_j) of g~ = grad O(W + xi), shape (features, depth, depth); coordinates are independent.
std::vector<double> gradient_covariance(const Weights& weights, View target, const NoiseStd& noise_std,
                                        Distribution distribution = Distribution::gaussian);

// Its diagonal as an array like the weights, E[g~_i^2] - g_i^2, shape (depth, features).
std::vector<double> gradient_variance(const Weights& weights, View target, const NoiseStd& noise_std,
                                      Distribution distribution = Distribution::gaussian);

// C = (I - lr H) C (I - lr H) + lr^2 S at the minimum that S-SAM tends to, shape (features, depth, depth), for the
// signs of critical_points. Infinite where H is singular, exactly at a threshold. Throws where lr H has an eigenvalue
// of 2 or more: no stationary law.
std::vector<double> stationary_covariance(View target, const NoiseStd& noise_std, double lr, std::int64_t depth,
                                          Distribution distribution = Distribution::gaussian);

}  // namespace torch_ssam::theory
