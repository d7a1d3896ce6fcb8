// The formulas of balancing.h, pair by pair and coordinate by coordinate.
// Notation of docs/theory.md: A_ij and P_ij leave out layers i and j.
// Tests: tests/python/test_theory_balancing.py, tests/cpp/test_theory.cpp.
#include "theory/balancing.h"

#include <cmath>

#include "theory/loss.h"

namespace torch_ssam::theory {

namespace {

// An antisymmetric or symmetric (depth, depth, features) array, filled pair by pair.
class PairArray {
 public:
  PairArray(const Weights& weights, double on_diagonal)
      : depth_(weights.depth()),
        features_(weights.features()),
        values_(static_cast<std::size_t>(depth_ * depth_ * features_), 0.0) {
    for (std::int64_t i = 0; i < depth_; ++i) {
      for (std::int64_t h = 0; h < features_; ++h) {
        at(i, i, h) = on_diagonal;
      }
    }
  }
  double& at(std::int64_t i, std::int64_t j, std::int64_t h) {
    return values_[static_cast<std::size_t>((i * depth_ + j) * features_ + h)];
  }
  void set_both(std::int64_t i, std::int64_t j, std::int64_t h, double value) { at(i, j, h) = at(j, i, h) = value; }
  std::vector<double> take() { return std::move(values_); }

 private:
  std::int64_t depth_, features_;
  std::vector<double> values_;
};

std::vector<double> everywhere(double noise_std, std::int64_t depth) {
  return std::vector<double>(static_cast<std::size_t>(depth), noise_std);
}

}  // namespace

std::vector<double> balance_gaps(const Weights& weights) {
  PairArray gaps(weights, 0.0);
  for (std::int64_t i = 0; i < weights.depth(); ++i) {
    for (std::int64_t j = 0; j < weights.depth(); ++j) {
      for (std::int64_t h = 0; i != j && h < weights.features(); ++h) {
        gaps.at(i, j, h) = (weights(i, h) - weights(j, h)) * (weights(i, h) + weights(j, h));
      }
    }
  }
  return gaps.take();
}

std::vector<double> balancing_rate(const Weights& weights, const NoiseStd& noise_std) {
  const double eta = noise_std.equal("the balancing rate");
  PairArray rate(weights, 0.0);
  for_each_coordinate(weights, everywhere(eta, weights.depth()), [&](std::int64_t h, const LeaveOut& product) {
    product.for_each_pair([&](std::int64_t i, std::int64_t j, const NoisyProduct& others) {
      rate.set_both(i, j, h, 4 * eta * eta * others.second.large);
    });
  });
  return rate.take();
}

double balancing_rate_bound(const NoiseStd& noise_std, std::int64_t depth) {
  check_depth(depth);
  return 4 * integer_power(noise_std.equal("the balancing rate"), 2 * depth - 2);
}

std::vector<double> balancing_factor(const Weights& weights, View target, const NoiseStd& noise_std, double lr) {
  check_target(weights, target);
  check_not_negative("lr", lr);
  const double eta = noise_std.equal("the balancing factor");
  PairArray factor(weights, 1.0);
  for_each_coordinate(weights, everywhere(eta, weights.depth()), [&](std::int64_t h, const LeaveOut& product) {
    product.for_each_pair([&](std::int64_t i, std::int64_t j, const NoisyProduct& others) {
      const double a = others.second.large;
      const double c = target[static_cast<std::size_t>(h)] * others.plain - weights(i, h) * weights(j, h) * a;
      const double kept = 1 - 2 * lr * eta * eta * a;
      factor.set_both(i, j, h, (kept - 2 * lr * c) * (kept + 2 * lr * c));
    });
  });
  return factor.take();
}

}  // namespace torch_ssam::theory
