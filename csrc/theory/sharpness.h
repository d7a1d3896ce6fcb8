// Sharpness of a diagonal network: average (what noise adds), the Hessian's trace, their minima over factorisations of
// a given product, and the worst case over a ball. docs/theory.md, "What S-SAM minimises": [CLS] Lemma 3.2 and (D).
// The worst case has no closed form for several coordinates: projected ascent from the gradient, from the best single
// coordinates (where the closed one-coordinate form is exact), and from random directions.
// Tests: tests/python/test_theory_sharpness.py (mpmath, SciPy's SLSQP, grids), tests/cpp/test_theory.cpp.
#pragma once

#include <vector>

#include "theory/arguments.h"

namespace torch_ssam::theory {

// S_avg(W) = E O(W + xi) - O(W), which is the regularizer.
double average_sharpness(const Weights& weights, const NoiseStd& noise_std, const Covariance& covariance = {});

// Tr Hess O(W) = 2 sum_h Sigma_hh sum_i P_i^2.
double hessian_trace(const Weights& weights, const Covariance& covariance = {});

// sum_h [ (|p|^(2/L) + eta^2)^L - p^2 ], the infimum of S_avg over weights with these products; with per-layer noise
// eta is the geometric mean (attained where |w_l| / eta_l is the same in every layer).
double minimal_average_sharpness(View product, const NoiseStd& noise_std, std::int64_t depth);

// 2 L sum_h |p|^(2(L-1)/L).
double minimal_hessian_trace(View product, std::int64_t depth);

// Largest |prod (w_i + xi_i)| over |xi| <= radius, one coordinate: prod (|w_i| + sqrt(w_i^2 + 4c)) / 2, with c >= 0 the
// root of sum ((sqrt(w_i^2 + 4c) - |w_i|) / 2)^2 = radius^2. `shift`, if given, receives the |xi_i| that attain it.
double largest_product(View layers, double radius, std::vector<double>* shift = nullptr);

// S_max(W, radius) = max over |xi| <= radius of O(W + xi) - O(W). The value found is attained, so a lower bound; with
// `restarts` random directions beside the deterministic starts it is the maximum in every case the tests could check.
double worst_case_sharpness(const Weights& weights, View target, double radius, std::int64_t restarts = 8,
                            std::uint64_t seed = 0);

}  // namespace torch_ssam::theory
