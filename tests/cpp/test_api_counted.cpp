// Which passes count: those in which a gradient changes; and what autocast remembers of weights between passes. As
// test_counted_passes.py and test_cached_weights.py in Python.
#include <ATen/autocast_mode.h>

#include <functional>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;

template <typename Rule>
OptionsOf<Rule> options(double noise_std = 0.1) {
  return OptionsOf<Rule>(0.05).noise_std(noise_std).seed(11);
}

const char* const kRefused = "without a gradient at perturbed weights";

template <typename Rule>
class CountedTest : public ::testing::Test {};
TYPED_TEST_SUITE(CountedTest, Rules, RuleNames);

TYPED_TEST(CountedTest, AnEmptyPassAndAPlainBackwardAreRefusedHoweverGradientsWereCleared) {
  const auto params = parameters();
  OptimizerOf<TypeParam> opt(params, options<TypeParam>());
  const std::vector<std::function<void()>> clears{[] {}, [&] { opt.zero_grad(); }, [&] { opt.zero_grad(false); },
                                                  [&] {
                                                    for (const Tensor& p : params) p.mutable_grad().reset();
                                                  }};
  for (const auto& clear : clears) {
    {
      const auto pass = opt.perturb();
      loss_of(params).backward();
    }
    opt.step();
    const auto clean = copies(params);
    for (const bool before : {true, false}) {
      clear();
      if (before) loss_of(params).backward();
      { const auto pass = opt.perturb(); }
      for ([[maybe_unused]] const auto k : opt.perturbations()) {
      }
      if (!before) loss_of(params).backward();
      EXPECT_MESSAGE(opt.step(), kRefused);
      EXPECT_MESSAGE(opt.step(), "no grad changed: backward() belongs inside");
      EXPECT_TRUE(same_bits(params, clean));
    }
  }
}

TYPED_TEST(CountedTest, APassCountsHoweverGradientsWereClearedInsideOfIt) {
  const auto params = parameters();
  OptimizerOf<TypeParam> opt(params, options<TypeParam>());
  const std::vector<std::function<void()>> clears{[] {}, [&] { opt.zero_grad(); }, [&] { opt.zero_grad(false); },
                                                  [&] {
                                                    for (const Tensor& p : params) p.mutable_grad().reset();
                                                  }};
  for (const auto& clear : clears) {
    for (int later = 0; later < 2; ++later) {
      for (int k = 0; k <= later; ++k) {
        const auto pass = opt.perturb();
        clear();
        loss_of(params).backward();
      }
      EXPECT_NO_THROW(opt.step());
    }
  }
  {
    const auto pass = opt.perturb();
    loss_of(params).backward();
  }
  {
    const auto pass = opt.perturb();
    opt.zero_grad(false);
  }
  EXPECT_MESSAGE(opt.step(), kRefused);
}

TYPED_TEST(CountedTest, ZerosCountAndAPassWithoutAGradientTakesNothingFromAnEarlierOne) {
  const auto params = parameters();
  OptimizerOf<TypeParam> opt(params, options<TypeParam>());
  for (int k = 0; k < 2; ++k) {
    {
      const auto pass = opt.perturb();
      (0 * loss_of(params)).backward();
    }
    { const auto pass = opt.perturb(); }
    EXPECT_NO_THROW(opt.step());
  }
}

TYPED_TEST(CountedTest, AssignedGradientsCountInsideAndNotOutside) {
  const auto params = parameters();
  OptimizerOf<TypeParam> opt(params, options<TypeParam>());
  for (const bool inside : {true, false}) {
    opt.zero_grad();
    const auto assign = [&] {
      for (const Tensor& p : params) p.mutable_grad() = torch::ones_like(p);
    };
    {
      const auto pass = opt.perturb();
      if (inside) assign();
    }
    if (!inside) assign();
    if (inside) {
      EXPECT_NO_THROW(opt.step());
    } else {
      EXPECT_MESSAGE(opt.step(), kRefused);
    }
  }
}

TYPED_TEST(CountedTest, ClosuresCountAsEver) {
  for (const int samples : {1, 2}) {
    const auto params = parameters();
    OptimizerOf<TypeParam> opt(params, options<TypeParam>().samples(samples));
    EXPECT_NO_THROW(opt.step([] { return Tensor(); }));
  }
}

TYPED_TEST(CountedTest, GradientsThatAreClearedInsideAreFreeAtOnce) {
  const Tensor w = parameter(torch::ones(3));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>());
  w.mutable_grad() = torch::ones(3);
  const c10::weak_intrusive_ptr<c10::StorageImpl> memory(w.grad().storage().getWeakStorageImpl());
  const auto pass = opt.perturb();
  EXPECT_FALSE(memory.expired());
  w.mutable_grad().reset();
  EXPECT_TRUE(memory.expired());
}

template <typename Rule>
class CachedWeightsTest : public ::testing::Test {};
TYPED_TEST_SUITE(CachedWeightsTest, Rules, RuleNames);

// Autocast keeps its casts of weights until the cache is cleared, which programs do at the end of a block.
TYPED_TEST(CachedWeightsTest, PassesUnderAutocastSeeTheirOwnWeights) {
  for (const std::string memory : {"copy", "regenerate"}) {
    std::vector<std::vector<Tensor>> ends;
    for (const bool cached : {true, false}) {
      const Tensor w = parameter(torch::arange(15).reshape({3, 5}).to(torch::kFloat) / 15);
      OptimizerOf<TypeParam> opt({w}, options<TypeParam>(0.5).samples(2).memory(memory));
      const Tensor x = torch::ones({2, 5});
      at::autocast::set_autocast_enabled(at::kCPU, true);
      at::autocast::set_autocast_cache_enabled(cached);
      const Tensor before = torch::nn::functional::linear(x, w).detach();
      for ([[maybe_unused]] const auto k : opt.perturbations()) {
        torch::nn::functional::linear(x, w).square().sum().backward();
      }
      opt.step();
      const Tensor after = torch::nn::functional::linear(x, w).detach();
      at::autocast::clear_cache();
      at::autocast::set_autocast_cache_enabled(true);
      at::autocast::set_autocast_enabled(at::kCPU, false);
      EXPECT_EQ(before.scalar_type(), at::autocast::get_autocast_dtype(at::kCPU));
      EXPECT_FALSE(torch::equal(before, after));
      ends.push_back({w.detach(), before, after});
    }
    EXPECT_TRUE(same_bits(ends[0], ends[1])) << memory;
  }
}

}  // namespace
}  // namespace torch_ssam
