// The S-SAM recursion W_{k+1} = W_k - lr_k grad O(W_k + xi_k) on diagonal networks, for many replicates at once, and
// gradient descent on O_R (`expected`), at full machine speed. docs/theory.md and docs/simulator.md.
// Noise of layer l, replicate r, coordinate h at step k is that of docs/noise.md with draw k, place l, sample 0 and
// element r * features + h: what SSAM draws for a list of `depth` float64 parameters of shape (replicates, features).
// So results depend on the seed alone, and replicate r on nothing but its number. docs/simulator.md has the rest.
// Tests: tests/cpp/test_simulate.cpp, tests/python/test_simulate*.py.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "theory/arguments.h"

namespace torch_ssam::theory {

struct SimulateOptions {
  std::int64_t depth = 2;
  std::vector<double> target;     // w*, one per coordinate; with data: what diagnosis compares with, may be empty
  std::vector<double> noise_std;  // 1, depth, or depth * features values
  double lr = 0.01;
  std::int64_t steps = 1000;
  std::vector<double> init = {1.0};  // 1, depth, depth * features, or replicates * depth * features values
  std::int64_t replicates = 1;
  std::int64_t seed = 0;
  std::vector<double> covariance;  // empty (whitened), features, or features * features values
  Distribution distribution = Distribution::gaussian;
  bool harmonic_lr = false;       // lr_k = lr / (k + 1)
  std::optional<double> radius;   // after each step the stacked weights are projected onto this ball
  bool expected = false;          // gradient descent on O_R
  std::int64_t record_every = 0;  // steps between records; 0: about 100 records
  std::int64_t threads = 0;       // 0: one per processor
  // Data instead of a covariance: (examples, features) row-major and one label each. The loss is the mean squared
  // error; batch_size examples are drawn with replacement at every step, or all are used where it is 0. Not copied.
  View inputs, labels;
  std::int64_t batch_size = 0;
  // Called from the calling thread about ten times a second; what it throws stops the simulation and is passed on.
  std::function<void(std::int64_t steps_done, std::int64_t steps)> progress;
};

// Weights are (records, replicates, depth, features); NaN from the step on at which a replicate diverged.
struct SimulationResult {
  std::vector<std::int64_t> steps;  // of each record: 0, record_every, ..., the last
  std::vector<double> weights;
  std::vector<double> loss;         // O at the clean weights, (records, replicates)
  std::vector<double> product;      // (records, replicates, features)
  std::vector<double> balance_gap;  // max over coordinates and layers of |w_i^2 - w_j^2|, (records, replicates)
  // Failure signatures, one per replicate; docs/simulator.md has the rules.
  std::vector<std::int64_t> diverged_at;  // first step with weights that are not finite, else -1
  std::vector<unsigned char> collapsed, oscillating, unbalanced;
  std::vector<double> step_size_bound;    // of gradient descent on O_R at the initial weights; NaN where not defined
  std::vector<std::string> explanations;  // empty where nothing failed
};

SimulationResult simulate(const SimulateOptions& options);

// Generates the noise that a simulation would, on the calling thread, and nothing else: the limit beside which its
// speed is measured. Returns the sum of the last values, so that they are computed.
double simulate_noise_alone(const SimulateOptions& options);

// The compiled variant in use: plain, avx2 or avx512 (TORCH_SSAM_CPU_CAPABILITY forces one). All give the same bits.
const char* simulate_capability();

}  // namespace torch_ssam::theory
