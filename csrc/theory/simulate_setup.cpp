// The checks of the simulator's options, each once, and what follows from them before the first step.
// A bad option throws std::invalid_argument that says what came, what was expected, and what to do.
// Tests: tests/python/test_simulate*.py, tests/cpp/test_simulate.cpp.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "theory/loss.h"
#include "theory/numerics.h"
#include "theory/simulate_internal.h"

namespace torch_ssam::theory {

namespace {

constexpr double kQuickWork = 1e9;  // multiplications spent on diagnosis alone

std::size_t index(std::int64_t n) { return static_cast<std::size_t>(n); }

void check_count(const char* name, std::int64_t value, std::int64_t low) {
  if (value < low) throw bad_input(name, " must be an integer >= ", low, ", got ", value);
}

void check_data(const SimulateOptions& o, std::int64_t features, std::int64_t examples) {
  if (examples < 1 || static_cast<std::int64_t>(o.inputs.size()) != examples * features) {
    throw bad_input("data must be inputs (examples, features) with one label each, got ", o.inputs.size(),
                    " inputs for ", examples, " labels and ", features, " coordinates");
  }
  if (examples > std::int64_t{1} << 32) {
    throw bad_input("data can hold at most 2^32 examples, got ", examples);
  }
  check_finite("data inputs", o.inputs);
  check_finite("data labels", o.labels);
  if (!o.covariance.empty()) {
    throw bad_input("covariance and data exclude each other: with data the covariance is that of the inputs");
  }
}

// Weights and their products, for every record.
void check_memory(double values) {
  const double bytes = 8.0 * values;
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  if (bytes > memory) {
    throw bad_input("the records would take ", bytes / 1e9, " GB and the machine has ", memory / 1e9,
                    " GB; raise record_every, or simulate fewer replicates at a time");
  }
}

}  // namespace

SimulateSetup::SimulateSetup(const SimulateOptions& o) : options(o) {
  depth = o.depth;
  replicates = o.replicates;
  check_depth(depth);
  check_count("replicates", replicates, 1);
  check_count("steps", o.steps, 0);
  check_count("threads", o.threads, 0);
  check_count("record_every", o.record_every, 0);
  check_count("batch_size", o.batch_size, 0);
  check_not_negative("lr", o.lr);
  if (o.radius) check_positive("radius", *o.radius);

  examples = static_cast<std::int64_t>(o.labels.size());
  features = static_cast<std::int64_t>(o.target.size());
  const bool has_data = !o.inputs.empty() || examples > 0;
  if (has_data && features == 0 && examples > 0) {
    features = static_cast<std::int64_t>(o.inputs.size()) / examples;
  }
  if (features < 1) throw bad_input("target must have one value per coordinate, got none");
  check_finite("target", o.target);
  if (has_data) check_data(o, features, examples);
  if (!has_data && o.batch_size > 0) {
    throw bad_input("batch_size ", o.batch_size, " needs data to draw from; pass data=(X, y)");
  }
  if (std::max({depth, replicates, features, o.steps, o.batch_size}) > std::numeric_limits<std::int32_t>::max()) {
    throw bad_input("depth, replicates, features, steps and batch_size must be below 2^31, got ", depth, ", ",
                    replicates, ", ", features, ", ", o.steps, " and ", o.batch_size);
  }

  const std::size_t layers = index(depth);
  const std::size_t all = index(depth * features);
  const auto check_size = [](const char* name, const std::vector<double>& values,
                             std::initializer_list<std::size_t> sizes, const char* expected) {
    if (std::find(sizes.begin(), sizes.end(), values.size()) == sizes.end()) {
      throw bad_input(name, " must be ", expected, ", got ", values.size(), " values");
    }
  };
  check_size("noise_std", o.noise_std, {1, layers, all},
             "a number, one per layer (depth,), or one per weight (depth, features)");
  for (const double eta : o.noise_std) check_not_negative("noise_std", eta);
  check_size("init", o.init, {1, layers, all, all * index(replicates)},
             "a number, one per layer (depth,), (depth, features) or (replicates, depth, features)");
  check_finite("init", o.init);
  same_start = replicates == 1 || o.init.size() <= all;

  variance.assign(index(features), 1.0);
  if (has_data) {
    for (std::int64_t h = 0; h < features; ++h) {
      Sum sum;
      for (std::int64_t i = 0; i < examples; ++i) {
        const double x = o.inputs[index(i * features + h)];
        sum.add(x * x);
      }
      variance[index(h)] = sum.value() / static_cast<double>(examples);
    }
    const double work = static_cast<double>(examples + features) * static_cast<double>(features * features);
    if (has_target() && work < kQuickWork) data_covariance = second_moment();
  } else if (!o.covariance.empty()) {
    sigma = Covariance(o.covariance, features);
    full_covariance = sigma.is_full();
    for (std::int64_t h = 0; h < features; ++h) variance[index(h)] = sigma.diagonal(h);
  }
  coupled = full_covariance || has_data || o.radius.has_value();

  record_every = o.record_every > 0 ? o.record_every : std::max<std::int64_t>(1, (o.steps + 99) / 100);
  const std::int64_t count = o.steps == 0 ? 1 : (o.steps - 1) / record_every + 2;  // with the last state
  const double values = static_cast<double>(depth + 1) * static_cast<double>(features) + 2;
  check_memory(static_cast<double>(count) * (static_cast<double>(replicates) * values + 1));
  records.reserve(index(count));
  for (std::int64_t step = 0; step < o.steps; step += record_every) records.push_back(step);
  records.push_back(o.steps);
}

double SimulateSetup::pick(const std::vector<double>& values, std::int64_t replicate, std::int64_t layer,
                           std::int64_t h) const {
  if (values.size() == 1) return values[0];
  if (values.size() == index(depth)) return values[index(layer)];
  const bool each = values.size() != index(depth * features);
  return values[index(((each ? replicate * depth : 0) + layer) * features + h)];
}

std::vector<double> SimulateSetup::second_moment() const {
  std::vector<double> result(index(features * features), 0.0);
  for (std::int64_t i = 0; i < examples; ++i) {
    const double* x = options.inputs.data() + i * features;
    for (std::int64_t h = 0; h < features; ++h) {
      for (std::int64_t k = 0; k < features; ++k) {
        result[index(h * features + k)] += x[h] * x[k] / static_cast<double>(examples);
      }
    }
  }
  return result;
}

std::vector<double> SimulateSetup::pull(View product) const {
  std::vector<double> result(index(features), 0.0);
  if (examples == 0) {
    for (std::size_t h = 0; h < result.size(); ++h) result[h] = options.target[h] - product[h];
    return sigma.apply(result);
  }
  for (std::int64_t i = 0; i < examples; ++i) {
    const View x = options.inputs.subspan(index(i * features), index(features));
    double error = options.labels[index(i)];
    for (std::size_t h = 0; h < x.size(); ++h) error -= x[h] * product[h];
    for (std::size_t h = 0; h < x.size(); ++h) result[h] += error * x[h] / static_cast<double>(examples);
  }
  return result;
}

double SimulateSetup::loss(View weights, View product) const {
  if (examples == 0) return theory::loss(Weights(weights, depth), options.target, sigma);
  Sum sum;
  for (std::int64_t i = 0; i < examples; ++i) {
    const View x = options.inputs.subspan(index(i * features), index(features));
    double error = options.labels[index(i)];
    for (std::size_t h = 0; h < x.size(); ++h) error -= x[h] * product[h];
    sum.add(error * error);
  }
  return sum.value() / static_cast<double>(examples);
}

}  // namespace torch_ssam::theory
