// The simulator's inner loops, compiled once for each instruction set like csrc/ops/cpu/kernels.cpp.
// A kernel advances a group of elements (replicate * features + coordinate) by some steps. State is a structure of
// arrays: one row a layer, elements contiguous, rows padded with zeros to `stride`.
// Where a coordinate's gradient needs the others (full covariance, data, projection) a group is whole replicates.
// Tests: tests/cpp/test_simulate.cpp compares the variants bit for bit and looks at their symbols.
#pragma once

#include <cstdint>

#include "../math/noise.h"

namespace torch_ssam::theory {

struct SimulateGroup {
  std::int64_t depth, count, stride;
  std::int64_t first_element;
  std::int64_t seed;
  math::Distribution distribution;
  bool expected, harmonic;
  double lr;
  const double* noise_std;  // (depth, stride)
  const double* target;     // (stride); with data not read
  const double* variance;   // Sigma_hh, (stride)
  std::int64_t features;
  const double* covariance;  // (features, features), or null
  const double* inputs;      // (examples, features), or null
  const double* labels;
  std::int64_t examples, batch_size;  // 0: every example once
  double radius;                      // 0: no projection
};

struct SimulateKernels {
  const char* name;
  // weights (depth, stride) from step `first_step` to first_step + steps; scratch has simulate_scratch() values.
  void (*advance)(const SimulateGroup& group, std::int64_t first_step, std::int64_t steps, double* weights,
                  double* scratch);
  // The noise of a group of one block and nothing else, depth * 64 values, overwritten at every step: what the time of
  // advance() is compared with (benchmarks/simulate.py).
  void (*noise_alone)(const SimulateGroup& group, std::int64_t first_step, std::int64_t steps, float* values);
};

constexpr std::int64_t simulate_scratch(std::int64_t depth, std::int64_t stride) { return (3 * depth + 5) * stride; }

// The place of the words that choose mini-batches: no layer can have it.
inline constexpr std::int64_t kBatchPlace = 0xffffffff;

// Null where the build has no such variant.
const SimulateKernels* simulate_kernels_avx512();
const SimulateKernels* simulate_kernels_avx2();
const SimulateKernels* simulate_kernels_plain();

// The best the processor has, or the one that TORCH_SSAM_CPU_CAPABILITY names, read once.
const SimulateKernels& simulate_kernels();
const SimulateKernels* simulate_kernels_named(const char* name);  // null where the processor or the build lacks it

}  // namespace torch_ssam::theory
