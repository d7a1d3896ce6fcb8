// Step sizes with a guarantee of descent on O_R, and the regions that hold its iterates and critical points.
// docs/theory.md, "Step sizes and radii" (D; the form of [CLS] Theorems 4.2 and 4.4). Guarantees are for the expected
// gradient, gradient descent on O_R: a stochastic step of S-SAM has no monotone guarantee.
// Per-layer noise: with N_i = prod_{k!=i} eta_k the same proofs give the forms documented below.
// Tests: tests/python/test_theory_step_size.py (Hessians by autograd, descent, SciPy), tests/cpp/test_theory.cpp.
#pragma once

#include <vector>

#include "theory/arguments.h"

namespace torch_ssam::theory {

// Which M bounds the Hessian on the sublevel set of the current O_R.
enum class SmoothnessBound {
  general,       // M = (L + sqrt(L^2 + (L-1)^2)) O_R / eta^2, any covariance (its form of docs/theory.md)
  known_target,  // M_1 = [(L+1) q^2 + 2 (L-1) |w*| q] / eta^2, q = |w*| + sqrt(O_R): sharper, coordinates not coupled
};

// M with |Hess O_R| <= M wherever O_R <= O_R(weights). Coordinates that are not coupled count one by one (maximum).
double smoothness_bound(const Weights& weights, View target, const NoiseStd& noise_std,
                        const Covariance& covariance = {}, SmoothnessBound kind = SmoothnessBound::general);

// 2 / M: below it every step of gradient descent decreases O_R; alpha = (1 - delta) 2 / M by delta alpha |grad|^2.
double step_size_bound(const Weights& weights, View target, const NoiseStd& noise_std,
                       const Covariance& covariance = {}, SmoothnessBound kind = SmoothnessBound::general);

// max(1, sqrt(L) / (2 min_i N_i)) |w*|_2: beyond sqrt(L) |w*|_2 / (2 min_i N_i), <grad O_R, W> >= 0.
double projection_radius(View target, const NoiseStd& noise_std, std::int64_t depth);

// r with r^2 = sum_l eta_l^2 sum_h (tau_h^(2/L) - 1)_+, which holds all critical points;
// for equal noise r^2 = L sum_h (|w*_h|^(2/L) - eta^2)_+.
double critical_radius(View target, const NoiseStd& noise_std, std::int64_t depth);

// |w_l| <= max(eta_l, |w*| / (2^(L-1) N_l)), shape (depth, features): a box with inward gradient on every face.
std::vector<double> coordinate_bounds(View target, const NoiseStd& noise_std, std::int64_t depth);

}  // namespace torch_ssam::theory
