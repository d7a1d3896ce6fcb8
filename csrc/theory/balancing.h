// How noise balances the layers: the gaps w_i^2 - w_j^2, the rate at which the gradient flow of O_R closes them, and
// the exact factor of one step of gradient descent. docs/theory.md, "The layers balance": [CLS] Theorem 3.1a and (D).
// These laws need the same noise_std in every layer; with different ones no gap obeys an equation of its own.
// Tests: tests/python/test_theory_balancing.py (SciPy's ODE solver, steps of descent), tests/cpp/test_theory.cpp.
#pragma once

#include <vector>

#include "theory/arguments.h"

namespace torch_ssam::theory {

// w_i^2 - w_j^2, shape (depth, depth, features).
std::vector<double> balance_gaps(const Weights& weights);

// 4 eta^2 A_ij, shape (depth, depth, features); 0 where i = j: d/dt gap = -rate gap along the gradient flow of O_R.
std::vector<double> balancing_rate(const Weights& weights, const NoiseStd& noise_std);

// 4 eta^(2L-2), below every rate.
double balancing_rate_bound(const NoiseStd& noise_std, std::int64_t depth);

// (1 - 2 lr eta^2 A_ij)^2 - (2 lr c)^2, c = w* P_ij - w_i w_j A_ij, shape (depth, depth, features); 1 where i = j:
// what one step of gradient descent on O_R multiplies the gap by.
std::vector<double> balancing_factor(const Weights& weights, View target, const NoiseStd& noise_std, double lr);

}  // namespace torch_ssam::theory
