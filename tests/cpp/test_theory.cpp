// The theory from a plain C++ program: no PyTorch, no Python, one header.
// Expectations are enumerated over all signs of the noise, derivatives are central differences, eigenvalues and roots
// are put back into their equations. tests/python/test_theory_*.py compares the same code with mpmath and SciPy.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "theory/linear_algebra.h"
#include "theory/numerics.h"
#include "theory/theory.h"

namespace torch_ssam::theory {
namespace {

std::vector<double> random_values(std::size_t n, unsigned seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(-1.5, 1.5);
  std::vector<double> values(n);
  for (double& value : values) {
    value = uniform(random);
  }
  return values;
}

// Mean of f(weights + noise) over all signs of the noise.
template <typename F>
double mean_over_signs(const std::vector<double>& weights, const std::vector<double>& noise_std, const F& f) {
  const std::size_t features = weights.size() / noise_std.size();
  const std::size_t patterns = std::size_t{1} << weights.size();
  double sum = 0;
  for (std::size_t pattern = 0; pattern < patterns; ++pattern) {
    std::vector<double> noisy = weights;
    for (std::size_t k = 0; k < noisy.size(); ++k) {
      noisy[k] += ((pattern >> k) & 1 ? 1 : -1) * noise_std[k / features];
    }
    sum += f(noisy);
  }
  return sum / static_cast<double>(patterns);
}

class TheoryTest : public ::testing::TestWithParam<int> {
 protected:
  static constexpr std::int64_t kFeatures = 2;
  const std::int64_t depth = GetParam();
  const std::vector<double> weights = random_values(static_cast<std::size_t>(depth * kFeatures), 1);
  const std::vector<double> target{1.3, -0.4};
  const std::vector<double> sigma{2.0, 0.6, 0.6, 0.5};
  const Covariance covariance{sigma, kFeatures};
  std::vector<double> noise_std() const {
    std::vector<double> eta(static_cast<std::size_t>(depth));
    for (std::size_t l = 0; l < eta.size(); ++l) {
      eta[l] = 0.2 + 0.1 * static_cast<double>(l);
    }
    return eta;
  }
};

TEST_P(TheoryTest, RegularizedLossIsTheMeanLossOverAllSigns) {
  const std::vector<double> eta = noise_std();
  const double mean = mean_over_signs(
      weights, eta, [&](const std::vector<double>& noisy) { return loss(Weights(noisy, depth), target, covariance); });
  EXPECT_NEAR(regularized_loss(Weights(weights, depth), target, NoiseStd(View(eta)), covariance), mean, 1e-12 * mean);
}

TEST_P(TheoryTest, GradientAndHessianAreCentralDifferences) {
  const NoiseStd eta{View(noise_std())};
  const auto gradient = regularized_gradient(Weights(weights, depth), target, eta, covariance);
  const auto hessian = regularized_hessian(Weights(weights, depth), target, eta, covariance);
  const double step = 1e-5;
  for (std::size_t k = 0; k < weights.size(); ++k) {
    std::vector<double> up = weights, down = weights;
    up[k] += step;
    down[k] -= step;
    const Weights above(up, depth), below(down, depth);
    const double slope =
        (regularized_loss(above, target, eta, covariance) - regularized_loss(below, target, eta, covariance)) /
        (2 * step);
    EXPECT_NEAR(gradient[k], slope, 1e-7);
    const auto gradient_above = regularized_gradient(above, target, eta, covariance);
    const auto gradient_below = regularized_gradient(below, target, eta, covariance);
    for (std::size_t j = 0; j < weights.size(); ++j) {
      EXPECT_NEAR(hessian[k * weights.size() + j], (gradient_above[j] - gradient_below[j]) / (2 * step), 1e-7);
    }
  }
}

class CriticalPointsTest : public TheoryTest {};

TEST_P(CriticalPointsTest, RootsSolveTheirEquationAndAreTheRightSide) {
  const double eta = 0.4;
  for (const double scale : {1.0000001, 1.1, 5.0, 1e6}) {
    const double w = existence_threshold(eta, depth) * scale;
    const CriticalPoints points = critical_points(std::vector<double>{-w}, eta, depth);
    const double m = points.minimum[1];
    EXPECT_EQ(points.minimum[0], -m);
    const auto power = static_cast<double>(depth);
    EXPECT_NEAR(std::pow(m * m + eta * eta, power - 1) / (w * std::pow(m, power - 2)), 1, 1e-13);
    EXPECT_GT(m * m, eta * eta * (power - 2) / power);
    EXPECT_NEAR(shrinkage_factor(std::vector<double>{w}, eta, depth)[0], m / std::pow(w, 1 / power), 1e-14);
    EXPECT_GT(points.minimum_eigenvalues[0], 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Depths, TheoryTest, ::testing::Values(1, 2, 3, 5));
INSTANTIATE_TEST_SUITE_P(Depths, CriticalPointsTest, ::testing::Values(2, 3, 5, 10));

TEST(ShrinkageTest, ThresholdsHaveTheirKnownValues) {
  EXPECT_EQ(existence_threshold(1.0, 2), 1.0);
  EXPECT_EQ(existence_threshold(0.5, 2), 0.25);
  EXPECT_EQ(existence_threshold(1.0, 4), 6.75);
  EXPECT_NEAR(existence_threshold(1.0, 3), 16 / std::sqrt(27.0), 1e-15);
  const double golden = (std::sqrt(5.0) - 1) / 2;  // x of L = 3: x^2 + x = 1
  EXPECT_NEAR(global_threshold(1.0, 3), (1 + golden) * (1 + golden) / std::sqrt(golden), 1e-14);
}

TEST(ShrinkageTest, TheThresholdItselfHasAMinimumAndTheDoubleBelowHasNone) {
  for (std::int64_t depth = 3; depth <= 12; ++depth) {
    for (const double eta : {0.1, 0.37, 2.0}) {
      const double threshold = existence_threshold(eta, depth);
      const auto products = limit_product(std::vector<double>{std::nextafter(threshold, 0.0), threshold}, eta, depth);
      EXPECT_EQ(products[0], 0);
      EXPECT_GT(products[1], 0);
    }
  }
}

TEST(WideTest, KeepsWhatADoubleLoses) {
  const Wide one(1.0);
  const Wide tiny(std::ldexp(1.0, -100));
  EXPECT_EQ(relative_difference(one + tiny, one), std::ldexp(1.0, -100));
  EXPECT_EQ((power(Wide(1e300), 20) / power(Wide(1e300), 19)).value(), 1e300);
  EXPECT_NEAR(relative_difference(power(square_root(Wide(2.0)), 2), Wide(2.0)), 0, 1e-30);
  EXPECT_NEAR(relative_difference((one / Wide(3.0)) * Wide(3.0), one), 0, 1e-30);
  EXPECT_EQ((one + tiny).rounded_up(), std::nextafter(1.0, 2.0));
}

TEST(LinearAlgebraTest, EigenvectorsAreOrthonormalAndRebuildTheMatrix) {
  const std::int64_t n = 6;
  std::vector<double> matrix = random_values(36, 3);
  for (std::size_t i = 0; i < 6; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      matrix[i * 6 + j] = matrix[j * 6 + i];
    }
  }
  const SymmetricEigen eigen = symmetric_eigen(matrix, n);
  for (std::size_t i = 0; i < 6; ++i) {
    for (std::size_t j = 0; j < 6; ++j) {
      double rebuilt = 0;
      double inner = 0;
      for (std::size_t k = 0; k < 6; ++k) {
        rebuilt += eigen.values[k] * eigen.vectors[k * 6 + i] * eigen.vectors[k * 6 + j];
        inner += eigen.vectors[i * 6 + k] * eigen.vectors[j * 6 + k];
      }
      EXPECT_NEAR(rebuilt, matrix[i * 6 + j], 1e-14);
      EXPECT_NEAR(inner, i == j ? 1 : 0, 1e-14);
    }
  }
  EXPECT_NEAR(largest_eigenvalue(matrix, n), eigen.values.back(), 1e-14);
}

TEST(StationaryTest, GradientVarianceIsTheEnumeratedOne) {
  const std::vector<double> weights{0.8, -1.1, 0.6};
  const std::vector<double> eta{0.3, 0.5, 0.4};
  const std::vector<double> target{1.7};
  const auto variance = gradient_variance(Weights(weights, 3), target, NoiseStd(View(eta)), Distribution::rademacher);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto gradient = [&](const std::vector<double>& w) {
      return -2 * (target[0] - w[0] * w[1] * w[2]) * (w[0] * w[1] * w[2] / w[i]);
    };
    const double mean = mean_over_signs(weights, eta, gradient);
    const double square =
        mean_over_signs(weights, eta, [&](const std::vector<double>& w) { return std::pow(gradient(w) - mean, 2); });
    EXPECT_NEAR(variance[i], square, 1e-12 * square);
  }
}

TEST(PacBayesTest, KlInverseIsWhereTheKlReachesTheBudget) {
  for (const double q : {0.0, 1e-6, 0.1, 0.5, 0.9}) {
    for (const double c : {1e-8, 0.01, 1.0}) {
      const double p = kl_inverse(q, c);
      const double kl = (q > 0 ? q * std::log(q / p) : 0.0) + (1 - q) * std::log((1 - q) / (1 - p));
      EXPECT_NEAR(kl, c, 1e-11);
      EXPECT_NEAR(binary_kl(q, p) / c, 1, 1e-8);
    }
  }
}

TEST(PacBayesTest, GaussianKlOfExtremeWidthsIsFiniteWhereItCanBe) {
  const auto kl = [](double weight, double prior, double noise_std, double prior_std) {
    return gaussian_kl(std::vector{weight}, std::vector{prior}, std::vector{noise_std}, std::vector{prior_std});
  };
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(kl(0, 0, 1e170, 1), infinity);  // its square overflows, and inf - inf is nan
  EXPECT_EQ(kl(0, 0, 1e300, 1e-300), infinity);
  EXPECT_NEAR(kl(0, 0, 1e-300, 1e300), 600 * std::log(10.0) - 0.5, 1e-12);
  EXPECT_NEAR(kl(0, 0, 1e-310, 1), 310 * std::log(10.0) - 0.5, 1e-12);
  EXPECT_NEAR(kl(0, 0, 1.5e154, 1), 1.125e308, 1e293);  // the square overflows, its half does not
  EXPECT_NEAR(kl(1.7e308, -1.7e308, 1.7e308, 1.7e308), 2, 1e-14);
  EXPECT_EQ(kl(0, 0, 0.7, 0.7), 0);
}

TEST(SharpnessTest, WorstCaseOfTwoEqualLayersIsKnown) {
  const std::vector<double> weights{1, 1};
  EXPECT_NEAR(worst_case_sharpness(Weights(weights, 2), std::vector<double>{0.0}, std::sqrt(2.0)), 15, 1e-12);
}

TEST(ArgumentsTest, BadInputThrowsWithWhatCame) {
  const std::vector<double> weights{1, 2, 3};
  EXPECT_THROW(Weights(weights, 2), std::invalid_argument);
  EXPECT_THROW(NoiseStd(-1.0), std::invalid_argument);
  EXPECT_THROW(parse_distribution("cauchy"), std::invalid_argument);
  EXPECT_THROW(shrinkage_factor(weights, 0.1, 1), std::invalid_argument);
  try {
    loss(Weights(weights, 3), weights);
    FAIL() << "no exception";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("got 3 values for weights of 1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace torch_ssam::theory
