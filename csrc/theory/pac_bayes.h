// PAC-Bayes for a Gaussian posterior N(w, eta^2 I) and prior N(w0, s^2 I): the KL divergence, the inverse of the binary
// KL, and the computable bounds. docs/theory.md, "Certificates" (Seeger-Maurer, Maurer 2004, Thiemann et al. 2017,
// Catoni 2007). The loss lies in [0, 1] and w0, s do not depend on the n examples (s from a grid: prior_grid_delta).
// KLs are written through u - log(1 + u), so close distributions keep their digits.
// Tests: tests/python/test_theory_pac_bayes.py (mpmath, Monte Carlo, SciPy), tests/cpp/test_theory.cpp.
#pragma once

#include <string>

#include "theory/arguments.h"

namespace torch_ssam::theory {

// 1/2 sum [ (w - w0)^2 / s^2 + eta^2 / s^2 - 1 - ln(eta^2 / s^2) ]. prior, noise_std and prior_std hold one value, one
// per weight, or one per layer: m values for n weights serve n / m consecutive weights each. inf where the sum exceeds
// the doubles, never nan.
double gaussian_kl(View weights, View prior, View noise_std, View prior_std);

// kl(q || p) = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)).
double binary_kl(double q, double p);

// Largest p in [q, 1] with kl(q || p) <= c, to the last digit or two.
double kl_inverse(double q, double c);

enum class BoundKind { seeger, maurer, thiemann, catoni };
BoundKind parse_bound_kind(const std::string& name);

// Upper bound on the true risk that holds with probability 1 - delta, at most 1. catoni_c is Catoni's constant, to be
// fixed before the data are seen.
double pac_bayes_bound(double empirical_risk, double kl, double n, double delta, BoundKind kind, double catoni_c = 1.0);

// Upper bound on the posterior's empirical risk from its mean over `samples` draws, with probability 1 - delta:
// kl_inverse(mean, ln(2 / delta) / samples).
double sampled_risk_bound(double mean_risk, double samples, double delta);

// Confidence spent on the j-th prior, j = 1, 2, ...: 6 delta / (pi^2 j^2), which sums to delta.
double prior_grid_delta(std::int64_t j, double delta);

}  // namespace torch_ssam::theory
