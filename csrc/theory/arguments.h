// What the functions of the theory take: layers as a (depth, features) array, noise levels, covariances, targets.
// Plain views over doubles, so any C++ program can call them. Every precondition on a value is checked here, once:
// a bad one throws std::invalid_argument that says what came, what was expected, and what to do.
// Notation of docs/theory.md: depth is L, features is d, noise_std is eta, covariance is Sigma.
// Tests: tests/cpp/test_theory.cpp, tests/python/test_theory_arguments.py.
#pragma once

#include <cstdint>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace torch_ssam::theory {

using View = std::span<const double>;

template <typename... Parts>
std::invalid_argument bad_input(const Parts&... parts) {
  std::ostringstream message;
  message.precision(17);
  (message << ... << parts);
  return std::invalid_argument(message.str());
}

// Layers w_1..w_L of a diagonal network: `values` is row-major (depth, features) and outlives the view.
class Weights {
 public:
  Weights(View values, std::int64_t depth);

  std::int64_t depth() const { return depth_; }
  std::int64_t features() const { return features_; }
  double operator()(std::int64_t layer, std::int64_t feature) const { return data_[layer * features_ + feature]; }
  View values() const { return {data_, static_cast<std::size_t>(depth_ * features_)}; }

 private:
  const double* data_;
  std::int64_t depth_;
  std::int64_t features_;
};

// Standard deviation of the noise: one number, or one per layer.
class NoiseStd {
 public:
  NoiseStd(double everywhere);
  explicit NoiseStd(View per_layer);

  std::vector<double> per_layer(std::int64_t depth) const;           // eta_1..eta_L
  std::vector<double> positive_per_layer(std::int64_t depth) const;  // the same, none of them 0
  double equal(const char* what) const;                              // the one eta; throws where layers differ

 private:
  std::vector<double> values_;
};

// Sigma = E x x^T: the identity (whitened data) unless told; its diagonal (features,) or all of it (features,
// features).
class Covariance {
 public:
  Covariance() = default;
  Covariance(View values, std::int64_t features);

  bool is_identity() const { return features_ == 0; }
  bool is_full() const { return full_; }
  void check_features(std::int64_t features) const;
  double diagonal(std::int64_t h) const;
  double operator()(std::int64_t h, std::int64_t k) const;
  std::vector<double> apply(View vector) const;  // Sigma v
  void check_positive_diagonal(const char* what) const;

 private:
  double correlation(std::size_t h, std::size_t k) const;
  void check_semidefinite() const;

  View values_;
  std::int64_t features_ = 0;
  bool full_ = false;
};

enum class Distribution { gaussian, rademacher };
Distribution parse_distribution(const std::string& name);

void check_depth(std::int64_t depth);  // theory of stationary points: depth >= 2
void check_finite(const char* name, View values);
void check_target(const Weights& weights, View target);
void check_positive(const char* name, double value);
void check_not_negative(const char* name, double value);

}  // namespace torch_ssam::theory
