// The simulator from C++: a plain loop with noise element by element, gradient descent by the theory's own gradient,
// the same bits for every variant, thread count and grouping, exact divergence, stopping, checks, and the variants'
// symbols.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <regex>
#include <string>
#include <thread>

#include "math/noise.h"
#include "precision.h"
#include "theory/loss.h"
#include "theory/simulate.h"
#include "theory/simulate_kernels.h"

namespace torch_ssam::theory {
namespace {

std::vector<double> spread(std::int64_t count, double low, double high) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < count; ++i) {
    values.push_back(low + (high - low) * static_cast<double>((i * 7) % count) / static_cast<double>(count));
  }
  return values;
}

SimulateOptions small(std::int64_t features = 5) {
  SimulateOptions options;
  options.depth = 3;
  options.target = spread(features, -1.0, 2.0);
  options.noise_std = {0.3};
  options.lr = 0.05;
  options.steps = 40;
  options.replicates = 3;
  options.seed = 11;
  options.init = spread(3 * 3 * features, -1.2, 1.3);
  options.record_every = 7;
  return options;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

TEST(SimulateTest, FollowsAPlainLoopWithTheNoiseOfTheContract) {
  for (const Distribution distribution : {Distribution::gaussian, Distribution::rademacher}) {
    SimulateOptions options = small(70);  // more than a block of noise, and no multiple of one
    options.distribution = distribution;
    const SimulationResult result = simulate(options);
    const std::int64_t d = 70, depth = 3;
    const auto kind =
        distribution == Distribution::gaussian ? math::Distribution::gaussian : math::Distribution::rademacher;
    for (std::int64_t r = 0; r < options.replicates; ++r) {
      for (std::int64_t h = 0; h < d; ++h) {
        double w[3], v[3];
        for (int l = 0; l < 3; ++l) w[l] = options.init[static_cast<std::size_t>((r * depth + l) * d + h)];
        for (std::int64_t k = 0; k < options.steps; ++k) {
          for (int l = 0; l < 3; ++l) {
            v[l] = w[l] + 0.3 * math::element_noise(math::make_noise_stream(11, k, l, 0), kind, r * d + h);
          }
          const double slope = -2 * (options.target[static_cast<std::size_t>(h)] - v[0] * v[1] * v[2]);
          w[0] -= 0.05 * slope * v[1] * v[2];
          w[1] -= 0.05 * slope * v[0] * v[2];
          w[2] -= 0.05 * slope * v[0] * v[1];
        }
        for (int l = 0; l < 3; ++l) {
          const std::size_t row = (result.steps.size() - 1) * 3 + static_cast<std::size_t>(r);
          const double end = result.weights[(row * 3 + static_cast<std::size_t>(l)) * 70 + static_cast<std::size_t>(h)];
          EXPECT_NEAR(end, w[l], 1e-12 * (1 + std::abs(w[l]))) << r << " " << h << " " << l;
        }
      }
    }
  }
}

TEST(SimulateTest, ExpectedDynamicsAreDescentOnTheRegularizedLoss) {
  SimulateOptions options = small();
  options.expected = true;
  options.noise_std = {0.2, 0.4, 0.7};
  options.covariance = std::vector<double>(25, 0.3);
  for (std::size_t h = 0; h < 5; ++h) options.covariance[h * 6] = 1.0 + 0.1 * static_cast<double>(h);
  const SimulationResult result = simulate(options);
  std::vector<double> w(options.init.begin(), options.init.begin() + 15);
  const std::vector<double> eta = options.noise_std;
  for (std::int64_t k = 0; k < options.steps; ++k) {
    const auto gradient =
        regularized_gradient(Weights(w, 3), options.target, NoiseStd(View(eta)), Covariance(options.covariance, 5));
    for (std::size_t i = 0; i < w.size(); ++i) w[i] -= options.lr * gradient[i];
  }
  const double* end = result.weights.data() + (result.steps.size() - 1) * 45;
  for (std::size_t i = 0; i < w.size(); ++i) EXPECT_NEAR(end[i], w[i], 1e-12) << i;
}

class SimulateKindTest : public testing::TestWithParam<int> {};

SimulateOptions kind_of(int kind) {
  SimulateOptions options = small(37);
  if (kind == 1) options.covariance = spread(37, 0.5, 1.5);
  if (kind == 2) {
    options.covariance.assign(37 * 37, 0.2);
    for (std::size_t h = 0; h < 37; ++h) options.covariance[h * 38] = 1.0;
    options.lr = 0.005;
  }
  if (kind == 3) options.radius = 2.0;
  if (kind == 4) options.distribution = Distribution::rademacher;
  if (kind == 5) options.expected = true;
  return options;
}

TEST_P(SimulateKindTest, AnyNumberOfThreadsGivesTheSameBits) {
  SimulateOptions options = kind_of(GetParam());
  options.replicates = 29;
  options.init = {0.9};
  options.threads = 1;
  const SimulationResult one = simulate(options);
  for (const std::int64_t threads : {2, 3, 16}) {
    options.threads = threads;
    const SimulationResult many = simulate(options);
    EXPECT_TRUE(same_bits(one.weights, many.weights));
    EXPECT_TRUE(same_bits(one.loss, many.loss));
    EXPECT_EQ(one.explanations, many.explanations);
  }
}

TEST_P(SimulateKindTest, AReplicateDoesNotDependOnHowManyThereAre) {
  SimulateOptions options = kind_of(GetParam());
  options.init = {0.9};
  options.replicates = 20;
  const SimulationResult many = simulate(options);
  options.replicates = 2;
  const SimulationResult few = simulate(options);
  for (std::size_t record = 0; record < few.steps.size(); ++record) {
    EXPECT_EQ(std::memcmp(few.weights.data() + record * 2 * 111, many.weights.data() + record * 20 * 111, 2 * 111 * 8),
              0);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SimulateKindTest, testing::Range(0, 6));

TEST(SimulateKernelsTest, EveryVariantGivesTheSameBits) {
  const std::int64_t depth = 3, count = 64 * 3 + 5, stride = 224;
  const std::vector<double> eta(depth * stride, 0.25), target(stride, 0.7), variance(stride, 1.1);
  const std::vector<double> covariance = spread(197 * 197, -0.01, 0.02);
  int compared = 0;
  for (const bool coupled : {false, true}) {
    for (const bool expected : {false, true}) {
      for (const auto distribution : {math::Distribution::gaussian, math::Distribution::rademacher}) {
        std::vector<double> plain;
        for (const char* name : {"plain", "avx2", "avx512"}) {
          const SimulateKernels* table = simulate_kernels_named(name);
          if (table == nullptr) continue;
          const SimulateGroup group{depth,
                                    count,
                                    stride,
                                    0,
                                    5,
                                    distribution,
                                    expected,
                                    true,
                                    0.1,
                                    eta.data(),
                                    target.data(),
                                    variance.data(),
                                    count,
                                    coupled ? covariance.data() : nullptr,
                                    nullptr,
                                    nullptr,
                                    0,
                                    0,
                                    coupled ? 3.0 : 0.0};
          std::vector<double> weights = spread(depth * stride, -1, 1);
          for (std::int64_t l = 0; l < depth; ++l) {
            for (std::int64_t i = count; i < stride; ++i) weights[static_cast<std::size_t>(l * stride + i)] = 0;
          }
          std::vector<double> scratch(static_cast<std::size_t>(simulate_scratch(depth, stride)));
          table->advance(group, 3, 9, weights.data(), scratch.data());
          if (plain.empty()) {
            plain = weights;
          } else if (long_double_is_finer<double>()) {
            EXPECT_TRUE(same_bits(plain, weights)) << name;
            ++compared;
          }
        }
      }
    }
  }
  if (simulate_kernels_named("avx2") == nullptr) GTEST_SKIP() << "NOT TESTED here: the processor has one variant only";
  if (!long_double_is_finer<double>()) GTEST_SKIP() << "NOT TESTED here: std::fma is not exact under valgrind";
  EXPECT_GE(compared, 8);
}

TEST(SimulateTest, DivergenceIsFoundAtItsStepAndTheOthersGoOn) {
  SimulateOptions options;
  options.target = {1.0};
  options.noise_std = {0.1};
  options.lr = 0.2;
  options.steps = 500;
  options.replicates = 3;
  options.init = {1.0, 1.0, 40.0, 40.0, 0.8, 0.8};
  options.record_every = 1;
  const SimulationResult result = simulate(options);
  ASSERT_EQ(result.diverged_at[0], -1);
  ASSERT_EQ(result.diverged_at[2], -1);
  const std::int64_t step = result.diverged_at[1];
  ASSERT_GT(step, 1);
  ASSERT_LT(step, 30);
  for (std::size_t record = 0; record < result.steps.size(); ++record) {
    const bool over = result.steps[record] >= step;
    EXPECT_EQ(std::isnan(result.weights[record * 6 + 2]), over) << record;
    EXPECT_EQ(std::isnan(result.loss[record * 3 + 1]), over) << record;
    EXPECT_TRUE(std::isfinite(result.weights[record * 6]));
  }
  // However seldom it records, the step is the same.
  options.record_every = 500;
  EXPECT_EQ(simulate(options).diverged_at, result.diverged_at);
  EXPECT_NE(result.explanations[1].find("Diverged"), std::string::npos);
}

TEST(SimulateTest, WhatProgressThrowsStopsItAndIsPassedOn) {
  SimulateOptions options = small(64);
  options.steps = 2'000'000'000;
  options.record_every = options.steps;
  int calls = 0;
  options.progress = [&](std::int64_t done, std::int64_t steps) {
    EXPECT_LE(done, steps);
    if (++calls == 3) throw std::runtime_error("enough");
  };
  EXPECT_THROW(simulate(options), std::runtime_error);
  EXPECT_EQ(calls, 3);
}

TEST(SimulateTest, ProgressEndsAtTheLastStepOnTheCallingThread) {
  SimulateOptions options = small();
  std::int64_t last = -1;
  options.progress = [&, caller = std::this_thread::get_id()](std::int64_t done, std::int64_t) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_GE(done, last);
    last = done;
  };
  simulate(options);
  EXPECT_EQ(last, options.steps);
}

TEST(SimulateTest, BadOptionsAreRefused) {
  const auto refused = [](auto change) {
    SimulateOptions options = small();
    change(options);
    EXPECT_THROW(simulate(options), std::invalid_argument);
  };
  refused([](auto& o) { o.target.clear(); });
  refused([](auto& o) { o.target[0] = std::numeric_limits<double>::quiet_NaN(); });
  refused([](auto& o) { o.depth = 1; });
  refused([](auto& o) { o.noise_std = {0.1, 0.2}; });
  refused([](auto& o) { o.noise_std = {-0.1}; });
  refused([](auto& o) { o.lr = -1; });
  refused([](auto& o) { o.steps = -1; });
  refused([](auto& o) { o.replicates = 0; });
  refused([](auto& o) { o.init = {1, 2}; });
  refused([](auto& o) { o.covariance = {1, 2}; });
  refused([](auto& o) { o.radius = 0; });
  refused([](auto& o) { o.threads = -1; });
  refused([](auto& o) { o.batch_size = 4; });
  refused(
      [](auto& o) { o.replicates = std::int64_t{1} << 30, o.init = {1.0}, o.steps = 1'000'000, o.record_every = 1; });
}

#if defined(TORCH_SSAM_SIMULATE_OBJECT_LIST)
TEST(SimulateLinkageTest, EveryVariantExportsItsTableAndNothingElse) {
  const std::string command =
      "tr '\\n' '\\0' < '" TORCH_SSAM_SIMULATE_OBJECT_LIST "' | xargs -0 -r " TORCH_SSAM_NM " -C --defined-only";
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  int tables = 0;
  char line[4096];
  while (std::fgets(line, sizeof(line), pipe) != nullptr) {
    const std::string text(line);
    std::smatch match;
    // DW.ref.*, under ThreadSanitizer, is an address that unwinding needs, no code.
    if (!std::regex_search(text, match, std::regex("^[0-9a-f]+ ([A-TVWXYZuvw]) (?!DW\\.ref\\.)(.*)\n"))) continue;
    EXPECT_TRUE(std::regex_match(match[2].str(), std::regex("torch_ssam::theory::simulate_kernels_[a-z0-9]+\\(\\)")))
        << text;
    EXPECT_EQ(match[1].str(), "T") << text;
    ++tables;
  }
  EXPECT_EQ(pclose(pipe), 0);
  EXPECT_GE(tables, 1);
}
#endif

}  // namespace
}  // namespace torch_ssam::theory
