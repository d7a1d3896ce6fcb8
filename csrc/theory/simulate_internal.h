// What the parts of the simulator share: options after their checks, expanded to what the loops read.
// Tests: tests/cpp/test_simulate.cpp.
#pragma once

#include <vector>

#include "theory/simulate.h"

namespace torch_ssam::theory {

class SimulateSetup {
 public:
  explicit SimulateSetup(const SimulateOptions& options);  // throws std::invalid_argument

  const SimulateOptions& options;
  std::int64_t features = 0, depth = 0, replicates = 0;
  std::int64_t record_every = 1;
  Covariance sigma;              // the identity where there are data
  std::vector<double> variance;  // Sigma_hh
  bool full_covariance = false;
  std::vector<double> data_covariance;  // X^T X / n where a target came with the data and it is quick to compute
  bool coupled = false;                 // a coordinate's step needs the other coordinates
  std::int64_t examples = 0;            // 0: no data
  std::vector<std::int64_t> records;    // steps that are recorded
  bool same_start = false;              // for every replicate

  double noise_std(std::int64_t layer, std::int64_t h) const { return pick(options.noise_std, 0, layer, h); }
  double init(std::int64_t replicate, std::int64_t layer, std::int64_t h) const {
    return pick(options.init, replicate, layer, h);
  }
  double target(std::int64_t h) const { return examples > 0 ? 0.0 : options.target[static_cast<std::size_t>(h)]; }
  bool has_target() const { return !options.target.empty(); }

  // Sigma (w* - p), with data mean of (y - x p) x; and the loss, from products of one replicate.
  std::vector<double> pull(View product) const;
  double loss(View weights, View product) const;

 private:
  std::vector<double> second_moment() const;
  double pick(const std::vector<double>& values, std::int64_t replicate, std::int64_t layer, std::int64_t h) const;
};

// Sums over the last steps, each taken on its own: per replicate and coordinate, over the layers.
struct Increments {
  std::vector<double> lagged;         // sum of delta_k delta_(k+1)
  std::vector<double> first, second;  // sum of delta_k^2 in the two halves
};
inline constexpr std::int64_t kIncrementWindow = 64;

// The bound of step_size.h at a replicate's start, NaN where it is not defined or would take too long to compute.
double initial_step_size_bound(const SimulateSetup& setup, std::int64_t replicate);

// Fills loss, product and balance_gap of one (record, replicate), and the failure signatures of one replicate.
void measure_record(const SimulateSetup& setup, std::size_t record, std::int64_t replicate, SimulationResult& result);
void diagnose_replicate(const SimulateSetup& setup, const Increments& increments, std::int64_t replicate,
                        SimulationResult& result);

}  // namespace torch_ssam::theory
