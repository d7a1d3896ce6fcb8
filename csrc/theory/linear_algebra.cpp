// Cyclic Jacobi for small matrices; Householder tridiagonalisation with bisection on Sturm counts for one eigenvalue.
// Tests: tests/cpp/test_theory.cpp, tests/python/test_theory_step_size.py.
#include "theory/linear_algebra.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace torch_ssam::theory {

SymmetricEigen symmetric_eigen(std::vector<double> matrix, std::int64_t n) {
  const auto size = static_cast<std::size_t>(n);
  std::vector<double> rows(size * size, 0.0);
  for (std::size_t i = 0; i < size; ++i) {
    rows[i * size + i] = 1;
  }
  const auto a = [&](std::size_t i, std::size_t j) -> double& { return matrix[i * size + j]; };
  for (int sweep = 0; sweep < 60; ++sweep) {
    bool rotated = false;
    for (std::size_t p = 0; p < size; ++p) {
      for (std::size_t q = p + 1; q < size; ++q) {
        if (std::abs(a(p, q)) <= 1e-18 * std::sqrt(std::abs(a(p, p))) * std::sqrt(std::abs(a(q, q))) || a(p, q) == 0) {
          continue;
        }
        rotated = true;
        // The rotation that makes a(p, q) zero, by its tangent.
        const double theta = (a(q, q) - a(p, p)) / (2 * a(p, q));
        const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(1.0, theta));
        const double c = 1 / std::hypot(1.0, t);
        const double s = t * c;
        for (std::size_t k = 0; k < size; ++k) {
          const double kp = a(k, p);
          const double kq = a(k, q);
          a(k, p) = c * kp - s * kq;
          a(k, q) = s * kp + c * kq;
        }
        for (std::size_t k = 0; k < size; ++k) {
          const double pk = a(p, k);
          const double qk = a(q, k);
          a(p, k) = c * pk - s * qk;
          a(q, k) = s * pk + c * qk;
          const double vp = rows[p * size + k];
          const double vq = rows[q * size + k];
          rows[p * size + k] = c * vp - s * vq;
          rows[q * size + k] = s * vp + c * vq;
        }
        a(p, q) = a(q, p) = 0;
      }
    }
    if (!rotated) {
      break;
    }
  }
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return a(i, i) < a(j, j); });
  SymmetricEigen result{std::vector<double>(size), std::vector<double>(size * size)};
  for (std::size_t i = 0; i < size; ++i) {
    result.values[i] = a(order[i], order[i]);
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(order[i] * size), size,
                result.vectors.begin() + static_cast<std::ptrdiff_t>(i * size));
  }
  return result;
}

double largest_eigenvalue(std::vector<double> matrix, std::int64_t n) {
  const auto size = static_cast<std::size_t>(n);
  std::vector<double> diagonal(size), below(size, 0.0), v(size), p(size);
  const auto a = [&](std::size_t i, std::size_t j) -> double& { return matrix[i * size + j]; };
  // Householder: reflect column k below its diagonal onto one entry, the rest of the matrix with it.
  for (std::size_t k = 0; k < size; ++k) {
    diagonal[k] = a(k, k);
    double norm = 0;
    for (std::size_t i = k + 1; i < size; ++i) {
      norm = std::hypot(norm, a(i, k));
    }
    if (norm == 0) {
      continue;
    }
    const double alpha = -std::copysign(norm, a(k + 1, k));
    below[k + 1] = alpha;
    double square = 0;
    for (std::size_t i = k + 1; i < size; ++i) {
      v[i] = a(i, k) - (i == k + 1 ? alpha : 0.0);
      square += v[i] * v[i];
    }
    double inner = 0;
    for (std::size_t i = k + 1; i < size; ++i) {
      p[i] = 0;
      for (std::size_t j = k + 1; j < size; ++j) {
        p[i] += a(i, j) * v[j];
      }
      p[i] *= 2 / square;
      inner += p[i] * v[i];
    }
    for (std::size_t i = k + 1; i < size; ++i) {
      p[i] -= inner / square * v[i];
    }
    for (std::size_t i = k + 1; i < size; ++i) {
      for (std::size_t j = k + 1; j < size; ++j) {
        a(i, j) -= v[i] * p[j] + p[i] * v[j];
      }
    }
  }
  // Bisection between Gershgorin's bounds; all eigenvalues lie below x iff every pivot of T - x is negative.
  double low = -std::numeric_limits<double>::infinity();
  double high = low;
  for (std::size_t i = 0; i < size; ++i) {
    low = std::max(low, diagonal[i]);
    high = std::max(high, diagonal[i] + std::abs(below[i]) + (i + 1 < size ? std::abs(below[i + 1]) : 0.0));
  }
  const auto all_below = [&](double x) {
    double pivot = 1;
    for (std::size_t i = 0; i < size; ++i) {
      pivot = diagonal[i] - x - below[i] * below[i] / pivot;
      if (!(pivot < 0)) {
        return false;
      }
    }
    return true;
  };
  for (double middle = 0.5 * (low + high); middle > low && middle < high; middle = 0.5 * (low + high)) {
    (all_below(middle) ? high : low) = middle;
  }
  return high;
}

}  // namespace torch_ssam::theory
