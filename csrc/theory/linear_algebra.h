// The two eigenvalue problems of the theory: a small dense symmetric matrix in full (Jacobi rotations, which keep
// small eigenvalues accurate), and the largest eigenvalue of a covariance (Householder, then Sturm counts, so that a
// step-size guarantee never rests on an eigenvalue approached from below).
// Tests: tests/cpp/test_theory.cpp, tests/python/test_theory_step_size.py (numpy.linalg).
#pragma once

#include <cstdint>
#include <vector>

#include "theory/arguments.h"

namespace torch_ssam::theory {

struct SymmetricEigen {
  std::vector<double> values;   // ascending
  std::vector<double> vectors;  // rows, orthonormal
};

SymmetricEigen symmetric_eigen(std::vector<double> matrix, std::int64_t n);

double largest_eigenvalue(std::vector<double> matrix, std::int64_t n);

}  // namespace torch_ssam::theory
