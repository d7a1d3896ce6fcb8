// The loss of a diagonal network, what noise adds to it, and the derivatives of their sum, at any weights.
// docs/theory.md, "What S-SAM minimises" and "Data that are not whitened": [CLS] (O, R, O_R) and (D).
// A full covariance couples coordinates in the loss; only its diagonal enters the regulariser. Derivatives are written
// through the residual w* - p and A_i - P_i^2, which are small where the textbook terms cancel.
// Tests: tests/python/test_theory_loss.py (enumerated +-eta noise, autograd, mpmath), tests/cpp/test_theory.cpp.
#pragma once

#include <functional>
#include <vector>

#include "theory/arguments.h"
#include "theory/numerics.h"

namespace torch_ssam::theory {

// O(W) = (w* - p)^T Sigma (w* - p).
double loss(const Weights& weights, View target, const Covariance& covariance = {});

// R(W) = sum_h Sigma_hh [ prod_l (w_lh^2 + eta_l^2) - p_h^2 ], which is the average sharpness S_avg.
double regularizer(const Weights& weights, const NoiseStd& noise_std, const Covariance& covariance = {});

// O_R(W) = O(W) + R(W) = E O(W + xi).
double regularized_loss(const Weights& weights, View target, const NoiseStd& noise_std,
                        const Covariance& covariance = {});

// The terms of O_R that belong to one coordinate, (w*_h - p_h)^2 Sigma_hh + R_h, for every h.
std::vector<double> coordinate_regularized_loss(const Weights& weights, View target, const NoiseStd& noise_std,
                                                const Covariance& covariance = {});

// g_ih = -2 [Sigma (w* - p)]_h P_i + 2 Sigma_hh w_i (A_i - P_i^2), shape (depth, features).
std::vector<double> regularized_gradient(const Weights& weights, View target, const NoiseStd& noise_std,
                                         const Covariance& covariance = {});

// Hessian of O_R. Identity or diagonal covariance: the blocks of the coordinates, shape (features, depth, depth).
// Full covariance: all of it, shape (depth, features, depth, features).
std::vector<double> regularized_hessian(const Weights& weights, View target, const NoiseStd& noise_std,
                                        const Covariance& covariance = {});

// Products p_h over the layers, shape (features,).
std::vector<double> products(const Weights& weights);

// Calls visit(h, products of coordinate h) for every coordinate; the one walk over weights that all formulas share.
void for_each_coordinate(const Weights& weights, const std::vector<double>& noise_std,
                         const std::function<void(std::int64_t, const LeaveOut&)>& visit);

}  // namespace torch_ssam::theory
