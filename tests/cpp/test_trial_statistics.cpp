// The trial's own arithmetic (statistics.h) against printed tables of the chi-square and Kolmogorov laws, exact
// identities, and the promised tail against an enumeration of the words themselves.
#include <gtest/gtest.h>

#include "../trial/statistics.h"
#include "math/noise.h"

namespace torch_ssam::trial {
namespace {

TEST(TrialStatisticsTest, IncompleteGammaIsPoissonsSumAndExponential) {
  for (const double x : {0.1, 1.0, 5.0, 40.0, 900.0}) {
    EXPECT_NEAR(incomplete_gamma(1, x).upper, std::exp(-x), 1e-14);
    EXPECT_NEAR(incomplete_gamma(0.5, x).upper, std::erfc(std::sqrt(x)), 1e-11 * std::erfc(std::sqrt(x))) << x;
    double sum = 0, term = std::exp(-x);  // P(at most 19 events)
    for (int k = 0; k < 20; ++k, term *= x / k) sum += term;
    EXPECT_NEAR(incomplete_gamma(20, x).upper, sum, 1e-13) << x;
  }
}

TEST(TrialStatisticsTest, CriticalValuesAreThoseOfTheTables) {
  // Upper 5 %: chi-square 18.307 at 10 degrees, 124.342 at 100, 1074.679 at 1000; two-sided p doubles it.
  EXPECT_NEAR(chi_square_p(18.3070, 10), 0.10, 2e-6);
  EXPECT_NEAR(chi_square_p(124.3421, 100), 0.10, 2e-6);
  EXPECT_NEAR(chi_square_p(1074.6794, 1000), 0.10, 2e-6);
  EXPECT_NEAR(normal_p(1.959964), 0.05, 1e-7);
  EXPECT_NEAR(kolmogorov_p(1.3581), 0.05, 1e-5);
  EXPECT_NEAR(kolmogorov_p(1.6276), 0.01, 1e-5);
  EXPECT_DOUBLE_EQ(poisson_p(0, 3.0), 2 * std::exp(-3.0));
  EXPECT_DOUBLE_EQ(poisson_p(1, 1e-3), 2 * -std::expm1(-1e-3));
}

TEST(TrialStatisticsTest, PromisedTailIsThatOfTheWords) {
  // All radius words of the tail, and 4096 angles spread over the circle, through the body itself.
  constexpr double kBound = 5.5;
  constexpr uint32_t kAngles = 4096;
  uint64_t beyond = 0;
  for (uint32_t word = 2;; word += 4) {  // (word >> 1) | 1 = 1, 3, 5, ...
    if (math::square_root(math::minus_two_log<float>(word)) <= static_cast<float>(kBound)) break;
    for (uint32_t i = 0; i < kAngles; ++i) {
      const math::GaussianPair z = math::gaussian_pair(word, i * (0xffffffffU / kAngles) + i % 2);
      beyond += (std::fabs(z.first) > kBound) + (std::fabs(z.second) > kBound);
    }
  }
  const double enumerated = static_cast<double>(beyond) / (2.0 * kAngles) * 0x1p-30;
  EXPECT_NEAR(enumerated / promised_two_sided_tail(kBound), 1.0, 2e-3);
  // 1 % from the normal law here, and as good as nothing at 4.
  EXPECT_NEAR(promised_two_sided_tail(kBound) / normal_p(kBound), 1.0, 2e-2);
  EXPECT_NEAR(promised_two_sided_tail(4.0) / normal_p(4.0), 1.0, 1e-4);
  EXPECT_EQ(promised_two_sided_tail(6.556), 0.0);
  EXPECT_GT(promised_two_sided_tail(6.555), 0.0);
}

TEST(TrialStatisticsTest, VerdictHoldsEachTestToItsShareOfTheFalseAlarmRate) {
  Verdict verdict;
  verdict.set_law("none");
  for (int i = 0; i < 9; ++i) verdict.add_normal("well", 1.0);
  verdict.add("badly", "p", 0, 1.1e-4);
  EXPECT_DOUBLE_EQ(verdict.threshold(1e-3), 1e-4);
  EXPECT_EQ(verdict.report(1e-3), 0);
  EXPECT_EQ(verdict.report(1.2e-3), 1);
  EXPECT_TRUE(verdict.rejects("bad", 1.2e-3));
  EXPECT_FALSE(verdict.rejects("well", 1.2e-3));
  verdict.add("no number", "p", 0, std::nan(""));
  EXPECT_EQ(verdict.report(1e-3), 1);
}

}  // namespace
}  // namespace torch_ssam::trial
