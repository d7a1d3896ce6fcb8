// The checks of arguments.h and the few accessors that are more than an index.
// Each message names the argument as Python and C++ callers know it.
// Tests: tests/cpp/test_theory.cpp, tests/python/test_theory_arguments.py.
#include "theory/arguments.h"

#include <algorithm>
#include <cmath>

namespace torch_ssam::theory {

void check_finite(const char* name, View values) {
  const auto bad = std::find_if(values.begin(), values.end(), [](double v) { return !std::isfinite(v); });
  if (bad != values.end()) {
    throw bad_input(name, " must be finite, got ", *bad, " at flat index ", bad - values.begin(),
                    "; remove or replace what is not finite");
  }
}

void check_positive(const char* name, double value) {
  if (!(std::isfinite(value) && value > 0)) {
    throw bad_input(name, " must be a finite number > 0, got ", value);
  }
}

void check_not_negative(const char* name, double value) {
  if (!(std::isfinite(value) && value >= 0)) {
    throw bad_input(name, " must be a finite number >= 0, got ", value);
  }
}

void check_depth(std::int64_t depth) {
  if (depth < 2) {
    throw bad_input("depth must be at least 2, got ", depth, "; a network of one layer has nothing to balance");
  }
}

Weights::Weights(View values, std::int64_t depth) : data_(values.data()), depth_(depth), features_(0) {
  if (depth < 1) {
    throw bad_input("weights must have at least one layer, got depth ", depth, "; pass shape (depth, features)");
  }
  const auto size = static_cast<std::int64_t>(values.size());
  if (size % depth != 0) {
    throw bad_input("weights must have depth * features values, got ", size, " for depth ", depth);
  }
  features_ = size / depth;
  check_finite("weights", values);
}

void check_target(const Weights& weights, View target) {
  if (static_cast<std::int64_t>(target.size()) != weights.features()) {
    throw bad_input("target must have one value per coordinate, got ", target.size(), " values for weights of ",
                    weights.features(), " coordinates");
  }
  check_finite("target", target);
}

NoiseStd::NoiseStd(double everywhere) : NoiseStd(View(&everywhere, 1)) {}

NoiseStd::NoiseStd(View per_layer) : values_(per_layer.begin(), per_layer.end()) {
  if (values_.empty()) {
    throw bad_input("noise_std must be a number or one number per layer, got no numbers");
  }
  for (const double value : values_) {
    check_not_negative("noise_std", value);
  }
}

std::vector<double> NoiseStd::per_layer(std::int64_t depth) const {
  if (depth < 1) {
    throw bad_input("depth must be at least 1, got ", depth);
  }
  if (values_.size() == 1) {
    return std::vector<double>(static_cast<std::size_t>(depth), values_.front());
  }
  if (static_cast<std::int64_t>(values_.size()) != depth) {
    throw bad_input("noise_std must be a number or one number per layer, got ", values_.size(), " numbers for depth ",
                    depth);
  }
  return values_;
}

std::vector<double> NoiseStd::positive_per_layer(std::int64_t depth) const {
  for (const double value : values_) {
    check_positive("noise_std", value);
  }
  return per_layer(depth);
}

double NoiseStd::equal(const char* what) const {
  const double first = values_.front();
  if (std::any_of(values_.begin(), values_.end(), [first](double v) { return v != first; })) {
    throw bad_input(what, " is defined for the same noise_std in every layer, got ", values_.size(),
                    " different ones; pass one number");
  }
  return first;
}

Covariance::Covariance(View values, std::int64_t features) : values_(values), features_(features) {
  const auto size = static_cast<std::int64_t>(values.size());
  if (features < 1 || (size != features && size != features * features)) {
    throw bad_input("covariance must have shape (features, features), or (features,) for its diagonal, got ", size,
                    " values for ", features, " coordinates");
  }
  full_ = features > 1 && size == features * features;
  check_finite("covariance", values);
  for (std::int64_t h = 0; h < features; ++h) {
    if (diagonal(h) < 0) {
      throw bad_input("covariance must have variances >= 0 on its diagonal, got ", diagonal(h), " for coordinate ", h);
    }
  }
  // Symmetric and, entry by entry, no larger than the variances allow; both up to rounding of the caller's sums.
  for (std::int64_t h = 0; full_ && h < features; ++h) {
    for (std::int64_t k = 0; k < h; ++k) {
      const double here = (*this)(h, k);
      const double there = (*this)(k, h);
      const double scale = std::sqrt(diagonal(h)) * std::sqrt(diagonal(k));
      if (std::abs(here - there) > 1e-9 * scale) {
        throw bad_input("covariance must be symmetric, got ", here, " at (", h, ", ", k, ") and ", there,
                        " at the mirrored place; pass (C + C.T) / 2");
      }
      if (std::abs(here) > scale * (1 + 1e-9)) {
        throw bad_input("covariance must be positive semidefinite, got ", here, " at (", h, ", ", k,
                        "), more than sqrt(C[h, h] * C[k, k]) = ", scale);
      }
    }
  }
  if (full_) check_semidefinite();
}

// Every pivot of the Cholesky factorisation of the correlations is >= 0, up to rounding of the caller's sums. A pivot
// within rounding of 0 is taken as 0; what that leaves in the rest only makes it larger, so no semidefinite matrix is
// refused. features^3 / 6 multiplications.
void Covariance::check_semidefinite() const {
  constexpr double kRounding = 1e-9;
  const auto n = static_cast<std::size_t>(features_);
  std::vector<double> factor(n * n, 0.0);  // rows of L
  for (std::size_t h = 0; h < n; ++h) {
    double* row = &factor[h * n];
    for (std::size_t k = 0; k <= h; ++k) {
      const double* other = &factor[k * n];
      double sums[4] = {};  // four at a time: one alone would wait for each addition
      for (std::size_t i = 0; i < k; ++i) sums[i % 4] += row[i] * other[i];
      const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      if (k < h) {
        row[k] = other[k] > 0 ? (correlation(h, k) - sum) / other[k] : 0.0;
        continue;
      }
      const double pivot = (diagonal(static_cast<std::int64_t>(h)) > 0 ? 1.0 : 0.0) - sum;
      if (pivot < -kRounding) {
        throw bad_input("covariance must be positive semidefinite, got one whose correlations of the first ", h + 1,
                        " coordinates have a negative eigenvalue; compute it as X.T @ X / n, or add to its diagonal");
      }
      row[k] = pivot > kRounding ? std::sqrt(pivot) : 0.0;
    }
  }
}

double Covariance::correlation(std::size_t h, std::size_t k) const {
  const auto row = static_cast<std::int64_t>(h);
  const auto column = static_cast<std::int64_t>(k);
  const double scale = std::sqrt(diagonal(row)) * std::sqrt(diagonal(column));
  return scale > 0 ? (*this)(row, column) / scale : 0.0;
}

void Covariance::check_features(std::int64_t features) const {
  if (!is_identity() && features_ != features) {
    throw bad_input("covariance must cover the coordinates of the weights, got ", features_, " for ", features);
  }
}

double Covariance::operator()(std::int64_t h, std::int64_t k) const {
  if (full_) {
    return values_[static_cast<std::size_t>(h * features_ + k)];
  }
  return h == k ? diagonal(h) : 0.0;
}

double Covariance::diagonal(std::int64_t h) const {
  if (is_identity()) {
    return 1.0;
  }
  return values_[static_cast<std::size_t>(full_ ? h * features_ + h : h)];
}

std::vector<double> Covariance::apply(View vector) const {
  std::vector<double> result(vector.begin(), vector.end());
  for (std::size_t h = 0; h < vector.size() && !is_identity(); ++h) {
    if (!full_) {
      result[h] *= values_[h];
      continue;
    }
    double sum = 0;
    for (std::size_t k = 0; k < vector.size(); ++k) {
      sum += values_[h * vector.size() + k] * vector[k];
    }
    result[h] = sum;
  }
  return result;
}

void Covariance::check_positive_diagonal(const char* what) const {
  for (std::int64_t h = 0; h < features_; ++h) {
    if (!(diagonal(h) > 0)) {
      throw bad_input(what, " needs variances > 0 on the diagonal of covariance, got ", diagonal(h), " for coordinate ",
                      h, "; leave out coordinates that the data never move");
    }
  }
}

Distribution parse_distribution(const std::string& name) {
  if (name == "gaussian") {
    return Distribution::gaussian;
  }
  if (name == "rademacher") {
    return Distribution::rademacher;
  }
  throw bad_input("distribution must be 'gaussian' or 'rademacher', got '", name, "'");
}

}  // namespace torch_ssam::theory
