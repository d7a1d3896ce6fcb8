// Where S-SAM ends: the shrinkage-thresholding map, its two thresholds, and all critical points of O_R.
// docs/theory.md, "Small coefficients vanish": [CLS] Theorem 3.1b and (D), with per-layer noise by w_l = eta_l y.
// All of it is one equation in y = |w_l| / eta_l and tau = |w*| / prod eta_l:  (1 + y^2)^(L-1) = tau y^(L-2).
// log of (left / right) is convex in log y, so Newton's method from outside a root runs to it monotonically; it is
// evaluated in Wide arithmetic, so a root has full double precision also when tau is the threshold's next double.
// Tests: tests/python/test_theory_shrinkage.py (mpmath at 60 digits, autograd), tests/cpp/test_theory.cpp.
#pragma once

#include <vector>

#include "theory/arguments.h"
#include "theory/wide.h"

namespace torch_ssam::theory {

// A positive root: y, x = y^2, and x - (L-2)/L, which decides the curvature and is small near the threshold.
struct Root {
  bool exists = false;
  Wide y, x;
  double offset = 0;
};

// The equation above for one noise level and depth, its thresholds computed once.
class ShrinkageMap {
 public:
  ShrinkageMap(const NoiseStd& noise_std, std::int64_t depth);

  std::int64_t depth() const { return depth_; }
  const std::vector<double>& noise_std() const { return noise_std_; }
  bool noiseless() const { return noise_product_.is_zero(); }

  Root larger_root(double target) const;   // the minimum
  Root smaller_root(double target) const;  // the saddle; none for L = 2

  double factor(double target) const;           // lambda in [0, 1); 0 below the threshold; 1 without noise
  double product(double target) const;          // sign(w*) lambda^L |w*|
  bool minimum_is_global(double target) const;  // O_R there is below O_R(0)
  double existence_threshold() const;
  double global_threshold() const;
  double log_tau(double target) const;  // log(|w*| / prod eta_l), precise near 0

 private:
  double excess(double target) const;  // (tau / threshold)^2 - 1
  Root newton(double target, double log_y) const;
  Root make_root(const Wide& y) const;

  std::int64_t depth_;
  std::vector<double> noise_std_;
  Wide noise_product_;                      // prod eta_l
  Wide threshold_above_, threshold_below_;  // threshold of tau^2 as an exact fraction
  Wide global_square_;                      // square of tau at the global threshold
};

// lambda of every target.
std::vector<double> shrinkage_factor(View target, const NoiseStd& noise_std, std::int64_t depth);

// The product at the minimum that S-SAM tends to from a large start with the right signs. With a full covariance the
// products solve p_h = T(w*_h + sum_{k!=h} Sigma_hk (w*_k - p_k) / Sigma_hh), found by cyclic sweeps from p = w*. For
// L = 2 that is the weighted LASSO. For L >= 3 a coordinate that falls to 0 on the way stays there, as it does under
// the dynamics, where 0 is always a local minimum. Throws std::runtime_error where the sweeps do not settle.
std::vector<double> limit_product(View target, const NoiseStd& noise_std, std::int64_t depth,
                                  const Covariance& covariance = {});

// Smallest double at or above which there are non-zero critical points (L = 2: above which): eta^L (2(L-1)/L)^(L/2)
// (2(L-1)/(L-2))^((L-2)/2).
double existence_threshold(const NoiseStd& noise_std, std::int64_t depth);

// Smallest double at or above the target where the non-zero minimum becomes the global one.
double global_threshold(const NoiseStd& noise_std, std::int64_t depth);

// The balanced critical points of every target, as weights (depth, features) whose first layer has the target's sign;
// NaN where there is none. Flipping the signs of an even number of layers gives the others.
struct CriticalPoints {
  std::vector<double> minimum, saddle;
  // Hessian eigenvalues there and at 0, ascending, shape (depth, features).
  std::vector<double> minimum_eigenvalues, saddle_eigenvalues, zero_eigenvalues;
  std::vector<unsigned char> minimum_is_global, zero_is_minimum;
};
CriticalPoints critical_points(View target, const NoiseStd& noise_std, std::int64_t depth);

// The Hessian of O_R at a balanced critical point with non-negative weights, for target |w*|, as eigenvalues and
// orthonormal eigenvectors (rows). `root` that does not exist stands for W = 0.
struct Eigenbasis {
  std::vector<double> values;   // (depth,), ascending
  std::vector<double> vectors;  // (depth, depth)
};
Eigenbasis critical_eigenbasis(const ShrinkageMap& map, const Root& root, double target);

}  // namespace torch_ssam::theory
