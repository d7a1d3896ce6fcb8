// Random wrong calls of every function of csrc/theory and of the simulator: a result or std::invalid_argument, nothing
// else, and never a crash. What the messages say is in test_theory.cpp. 7,500 calls here, TORCH_SSAM_STRESS times as
// many where that is set.
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>

#include "random_calls.h"
#include "theory/simulate.h"
#include "theory/theory.h"

namespace torch_ssam::theory {
namespace {

using torch_ssam::testing::Chance;

// Arguments that live as long as the views on them.
struct Arguments {
  explicit Arguments(Chance& chance)
      : sound(chance.one_in(3)),
        values(sound ? std::vector<double>(6, 0.5) : chance.numbers()),
        target(sound ? std::vector<double>(3, 0.4) : chance.numbers()),
        stds(sound ? std::vector<double>(2, 0.1) : chance.numbers()),
        matrix(chance.numbers()),
        chance(chance) {}

  double number() { return sound ? 0.1 : chance.number(); }
  std::int64_t depth() { return sound ? 2 : chance.integer(); }
  Weights weights() { return Weights(values, sound ? 2 : chance.one_in(3) ? depth() : 1 + chance.below(4)); }
  NoiseStd noise_std() { return sound || chance.one_in(2) ? NoiseStd(number()) : NoiseStd(stds); }
  Covariance covariance() {
    if (sound) return Covariance();
    return chance.one_in(2) ? Covariance() : Covariance(matrix, chance.one_in(3) ? depth() : 1 + chance.below(4));
  }
  Distribution distribution() { return parse_distribution(!sound && chance.one_in(3) ? chance.word() : "rademacher"); }
  SmoothnessBound smoothness() { return chance.one_of({SmoothnessBound::general, SmoothnessBound::known_target}); }

  bool sound;  // arguments that fit each other
  std::vector<double> values, target, stds, matrix;
  Chance& chance;
};

const std::vector<std::function<void(Arguments&)>> calls{
    [](Arguments& a) { loss(a.weights(), a.target, a.covariance()); },
    [](Arguments& a) { regularizer(a.weights(), a.noise_std(), a.covariance()); },
    [](Arguments& a) { regularized_loss(a.weights(), a.target, a.noise_std(), a.covariance()); },
    [](Arguments& a) { coordinate_regularized_loss(a.weights(), a.target, a.noise_std(), a.covariance()); },
    [](Arguments& a) { regularized_gradient(a.weights(), a.target, a.noise_std(), a.covariance()); },
    [](Arguments& a) { regularized_hessian(a.weights(), a.target, a.noise_std(), a.covariance()); },
    [](Arguments& a) { products(a.weights()); },
    [](Arguments& a) { balance_gaps(a.weights()); },
    [](Arguments& a) { balancing_rate(a.weights(), a.noise_std()); },
    [](Arguments& a) { balancing_rate_bound(a.noise_std(), a.depth()); },
    [](Arguments& a) { balancing_factor(a.weights(), a.target, a.noise_std(), a.number()); },
    [](Arguments& a) { average_sharpness(a.weights(), a.noise_std(), a.covariance()); },
    [](Arguments& a) { hessian_trace(a.weights(), a.covariance()); },
    [](Arguments& a) { minimal_average_sharpness(a.target, a.noise_std(), a.depth()); },
    [](Arguments& a) { minimal_hessian_trace(a.target, a.depth()); },
    [](Arguments& a) { worst_case_sharpness(a.weights(), a.target, a.number(), a.sound ? 2 : a.chance.below(3) - 1); },
    [](Arguments& a) { shrinkage_factor(a.target, a.noise_std(), a.depth()); },
    [](Arguments& a) { limit_product(a.target, a.noise_std(), a.depth(), a.covariance()); },
    [](Arguments& a) { existence_threshold(a.noise_std(), a.depth()); },
    [](Arguments& a) { global_threshold(a.noise_std(), a.depth()); },
    [](Arguments& a) { critical_points(a.target, a.noise_std(), a.depth()); },
    [](Arguments& a) { gradient_covariance(a.weights(), a.target, a.noise_std(), a.distribution()); },
    [](Arguments& a) { gradient_variance(a.weights(), a.target, a.noise_std(), a.distribution()); },
    [](Arguments& a) { stationary_covariance(a.target, a.noise_std(), a.number(), a.depth(), a.distribution()); },
    [](Arguments& a) { smoothness_bound(a.weights(), a.target, a.noise_std(), a.covariance(), a.smoothness()); },
    [](Arguments& a) { step_size_bound(a.weights(), a.target, a.noise_std(), a.covariance(), a.smoothness()); },
    [](Arguments& a) { projection_radius(a.target, a.noise_std(), a.depth()); },
    [](Arguments& a) { critical_radius(a.target, a.noise_std(), a.depth()); },
    [](Arguments& a) { coordinate_bounds(a.target, a.noise_std(), a.depth()); },
    [](Arguments& a) {
      gaussian_kl(a.values, a.sound ? a.values : a.target, a.sound ? a.values : a.stds, a.sound ? a.values : a.matrix);
    },
    [](Arguments& a) { kl_inverse(a.number(), a.number()); },
    [](Arguments& a) {
      pac_bayes_bound(a.number(), a.number(), a.sound ? 100 : a.number(), a.number(),
                      parse_bound_kind(!a.sound && a.chance.one_in(2) ? a.chance.word() : "catoni"), a.number());
    },
    [](Arguments& a) { sampled_risk_bound(a.number(), a.sound ? 100 : a.number(), a.number()); },
    [](Arguments& a) { prior_grid_delta(a.sound ? 3 : a.chance.integer(), a.number()); },
};

// The number of calls that were refused; any other exception passes through, and gtest reports it.
std::int64_t refused(Chance& chance, const std::function<void(Arguments&)>& call, std::int64_t times) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < times; ++i) {
    Arguments arguments(chance);
    try {
      call(arguments);
    } catch (const std::invalid_argument& error) {
      EXPECT_STRNE(error.what(), "");
      ++count;
    }
  }
  return count;
}

TEST(RandomCallsTest, FormulasReturnOrThrowInvalidArgument) {
  for (std::size_t k = 0; k < calls.size(); ++k) {
    Chance chance(k);
    SCOPED_TRACE("function " + std::to_string(k) + ", seed " + std::to_string(chance.seed()));
    const std::int64_t times = 200 * Chance::stress();
    const std::int64_t bad = refused(chance, calls[k], times);
    EXPECT_GT(bad, 0) << "of " << times;
    EXPECT_LT(bad, times);
  }
}

TEST(RandomCallsTest, TheSimulatorReturnsOrThrowsInvalidArgument) {
  Chance chance(1000);
  SCOPED_TRACE("seed " + std::to_string(chance.seed()));
  const auto simulated = [](Arguments& a) {
    SimulateOptions options;
    const auto odd = [&] { return a.chance.one_in(8); };
    options.target = odd() ? a.target : std::vector<double>{1.0, -0.5, 0.25};
    options.noise_std = odd() ? a.stds : std::vector<double>{0.1};
    options.init = odd() ? a.values : std::vector<double>{1.0};
    options.steps = 20;
    if (odd()) options.depth = a.depth();
    if (odd()) options.lr = a.number();
    if (odd()) options.steps = a.chance.integer();
    if (odd()) options.replicates = a.chance.integer();
    if (odd()) options.covariance = a.matrix;
    if (odd()) options.radius = a.number();
    if (odd()) options.record_every = a.chance.integer();
    if (odd()) options.threads = a.chance.integer();
    if (odd()) options.inputs = a.matrix;
    if (odd()) options.labels = a.values;
    if (odd()) options.batch_size = a.chance.integer();
    options.expected = a.chance.one_in(3);
    options.harmonic_lr = a.chance.one_in(3);
    options.distribution = a.chance.one_of({Distribution::gaussian, Distribution::rademacher});
    simulate(options);
  };
  const std::int64_t times = 700 * Chance::stress();
  const std::int64_t bad = refused(chance, simulated, times);
  EXPECT_GT(bad, 0);
  EXPECT_LT(bad, times);
}

}  // namespace
}  // namespace torch_ssam::theory
