// The ways to drive SSAM from C++: the RAII guard, the loop over passes, the closure; exactness of the restored bits,
// draws, accumulation, and what an exception or a write in the middle leaves behind.
#include <malloc.h>

#include <stdexcept>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;

template <typename Rule>
OptionsOf<Rule> options(double noise_std = 0.1) {
  return OptionsOf<Rule>(0.05).noise_std(noise_std).seed(11);
}

template <typename Rule>
class PerturbTest : public ::testing::Test {};
TYPED_TEST_SUITE(PerturbTest, Rules, RuleNames);

TYPED_TEST(PerturbTest, HoldsNoiseInsideAndTheExactCleanBitsAfter) {
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
    const auto params = parameters(dtype);
    const auto clean = copies(params);
    OptimizerOf<TypeParam> opt(params, options<TypeParam>());
    {
      const auto perturbed = opt.perturb();
      for (std::size_t i = 0; i < params.size(); ++i) {
        const bool moved = params[i].numel() == 0 || !torch::equal(params[i].detach(), clean[i]);
        EXPECT_TRUE(moved) << i;
      }
      EXPECT_EQ(opt.draw(), 0);
    }
    EXPECT_TRUE(same_bits(params, clean));
    EXPECT_EQ(opt.draw(), 1);
  }
}

TYPED_TEST(PerturbTest, WithoutACopyTheWeightsComeBackWithinTwoRoundings) {
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    const auto params = parameters(dtype), copied = parameters(dtype);
    const auto clean = copies(params);
    OptimizerOf<TypeParam> opt(params, options<TypeParam>().memory("regenerate").antithetic(true).samples(2)),
        other(copied, options<TypeParam>());
    const double unit = dtype == torch::kFloat ? std::ldexp(1.0, -24) : std::ldexp(1.0, -53);
    for (const auto pass : opt.perturbations()) {
      if (pass == 0) {
        const auto same = other.perturb();
        EXPECT_TRUE(same_bits(params, copied));
      }
      for (std::size_t i = 0; i < params.size(); ++i) {
        EXPECT_TRUE(params[i].numel() == 0 || !torch::equal(params[i].detach(), clean[i])) << i;
      }
    }
    const double passes = 4, reach = 0.1 * 6;
    for (std::size_t i = 0; i < params.size(); ++i) {
      const Tensor moved = (params[i].detach() - clean[i]).abs().to(torch::kDouble);
      const Tensor bound = passes * unit * (2 * clean[i].abs().to(torch::kDouble) + reach);
      EXPECT_TRUE((moved <= bound).all().item<bool>()) << i;
    }
    EXPECT_EQ(opt.draw(), 1);
  }
}

TYPED_TEST(PerturbTest, WithoutACopyAWriteInsideIsKeptAndTheOthersComeBack) {
  const auto params = parameters();
  const auto clean = copies(params);
  OptimizerOf<TypeParam> opt(params, options<TypeParam>().memory("regenerate"));
  auto pass = opt.perturb();
  {
    const torch::NoGradGuard no_grad;
    params[1].fill_(3);
  }
  EXPECT_THROW(pass.restore(), PerturbedWeightsChanged);
  EXPECT_TRUE(torch::equal(params[1], torch::full_like(params[1], 3)));
  for (const std::size_t i : {0, 2, 3, 4, 5}) EXPECT_TRUE(torch::allclose(params[i], clean[i], 1e-6, 1e-7)) << i;
  EXPECT_NO_THROW({ const auto again = opt.perturb(); });
}

TYPED_TEST(PerturbTest, NegativeZeroAndNanComeBack) {
  const Tensor w = parameter(torch::tensor({-0.0F, std::nanf(""), 1e-42F, INFINITY}));
  const auto clean = copies({w});
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>());
  { const auto perturbed = opt.perturb(); }
  EXPECT_TRUE(same_bits({w}, clean));
}

TYPED_TEST(PerturbTest, AnExceptionPutsTheCleanBitsBackAndCountsForNothing) {
  const auto params = parameters();
  const auto clean = copies(params);
  OptimizerOf<TypeParam> opt(params, options<TypeParam>());
  EXPECT_THROW(
      {
        const auto perturbed = opt.perturb();
        throw std::runtime_error("in the middle");
      },
      std::runtime_error);
  EXPECT_TRUE(same_bits(params, clean));
  EXPECT_MESSAGE(opt.step(), "without a gradient at perturbed weights");
  EXPECT_NO_THROW({ const auto again = opt.perturb(); });
}

TYPED_TEST(PerturbTest, TheGuardMovesAndEndsOnce) {
  const auto params = parameters();
  const auto clean = copies(params);
  OptimizerOf<TypeParam> opt(params, options<TypeParam>());
  {
    auto first = opt.perturb();
    auto second = std::move(first);
    EXPECT_FALSE(same_bits(params, clean));
    second.restore();
    EXPECT_TRUE(same_bits(params, clean));
    second.restore();
  }
  EXPECT_EQ(opt.draw(), 1);
}

TYPED_TEST(PerturbTest, TheGuardMayOutliveTheOptimizer) {
  const auto params = parameters();
  const auto clean = copies(params);
  std::optional<Perturbation> pass;
  {
    OptimizerOf<TypeParam> opt(params, options<TypeParam>());
    pass.emplace(opt.perturb());
  }
  EXPECT_FALSE(same_bits(params, clean));
  pass.reset();
  EXPECT_TRUE(same_bits(params, clean));
}

TYPED_TEST(PerturbTest, AWriteInsideIsReportedKeptAndNamed) {
  const auto params = parameters();
  const auto clean = copies(params);
  OptimizerOf<TypeParam> opt(params, options<TypeParam>());
  auto pass = opt.perturb();
  {
    const torch::NoGradGuard no_grad;
    params[1].fill_(3);
  }
  EXPECT_THROW(
      {
        try {
          pass.restore();
        } catch (const PerturbedWeightsChanged& changed) {
          EXPECT_NE(std::string(changed.what()).find("parameter 1 of shape [5, 13] was written to"), std::string::npos)
              << changed.what();
          throw;
        }
      },
      PerturbedWeightsChanged);
  EXPECT_TRUE(torch::equal(params[1], torch::full_like(params[1], 3)));
  EXPECT_TRUE(same_bits(params[0], clean[0]) && same_bits(params[5], clean[5]));
}

TYPED_TEST(PerturbTest, AWriteThatOnlyTheDestructorSawStopsTheNextStep) {
  const auto params = parameters();
  OptimizerOf<TypeParam> opt(params, options<TypeParam>());
  {
    const auto pass = opt.perturb();
    loss_of(params).backward();
    const torch::NoGradGuard no_grad;
    params[0].zero_();
  }
  EXPECT_THROW(opt.step(), PerturbedWeightsChanged);
}

TYPED_TEST(PerturbTest, ReplacedMemoryIsAWriteToo) {
  const Tensor w = parameter(torch::ones(5));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>());
  auto pass = opt.perturb();
  w.set_data(torch::full({5}, 2.0));
  EXPECT_THROW(pass.restore(), PerturbedWeightsChanged);
  EXPECT_TRUE(torch::equal(w, torch::full({5}, 2.0)));
}

TYPED_TEST(PerturbTest, AutogradSeesThatTheWeightsWereChanged) {
  const Tensor w = parameter(torch::ones(5));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>());
  Tensor loss;
  {
    const auto pass = opt.perturb();
    loss = w.square().sum();
  }
  EXPECT_MESSAGE(loss.backward(), "modified by an inplace operation");
}

TEST(SgdPerturbTest, GradientsAreThoseAtTheNoisyWeights) {
  const Tensor w = parameter(torch::tensor({1.0, -2.0, 3.0}, torch::kDouble));
  SSAM opt({w}, options<Sgd>(0.5));
  Tensor noisy;
  {
    const auto pass = opt.perturb();
    noisy = w.detach().clone();
    w.pow(3).sum().backward();
  }
  EXPECT_TRUE(torch::allclose(w.grad(), 3 * noisy.square(), 1e-14, 0));
  const Tensor before = w.detach().clone();
  opt.step();
  EXPECT_TRUE(torch::allclose(w.detach(), before - 0.05 * w.grad(), 1e-15, 0));
}

TYPED_TEST(PerturbTest, FrozenParametersKeepTheirPlaceAndStayClean) {
  auto run = [](bool frozen) {
    auto params = parameters();
    params[0].requires_grad_(!frozen);
    OptimizerOf<TypeParam> opt(params, options<TypeParam>());
    const auto pass = opt.perturb();
    return copies(params);
  };
  const auto all = run(false), some = run(true);
  EXPECT_TRUE(same_bits(some[0], parameters()[0]));
  for (std::size_t i = 1; i < all.size(); ++i) EXPECT_TRUE(same_bits(all[i], some[i])) << i;
}

TYPED_TEST(PerturbTest, ATensorNamedTwiceIsPerturbedOnce) {
  const Tensor w = parameter(torch::ones(7)), v = parameter(torch::ones(7));
  OptimizerOf<TypeParam> twice({w, w}, options<TypeParam>()), once({v}, options<TypeParam>());
  {
    const auto a = twice.perturb();
    const auto b = once.perturb();
    EXPECT_TRUE(same_bits(w, v));
  }
  EXPECT_TRUE(torch::equal(w, torch::ones(7)));
}

template <typename Rule>
class PerturbationsTest : public ::testing::Test {};
TYPED_TEST_SUITE(PerturbationsTest, Rules, RuleNames);

TYPED_TEST(PerturbationsTest, AntitheticPairsCancelOnAQuadratic) {
  const Tensor w = parameter(torch::tensor({1.0, 2.0, 4.0}, torch::kDouble));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>(0.5).samples(3).antithetic(true));
  int passes = 0;
  for ([[maybe_unused]] const auto k : opt.perturbations()) {
    EXPECT_EQ(k, passes++);
    w.square().sum().backward();
  }
  EXPECT_EQ(passes, 6);
  EXPECT_TRUE(torch::allclose(w.grad(), 2 * w.detach(), 1e-14, 0));
  EXPECT_EQ(opt.draw(), 1);
  opt.step();
}

TYPED_TEST(PerturbationsTest, TheGradientIsTheOldOnePlusTheWeightedMean) {
  const double share = 0.3;
  const Tensor w = parameter(torch::tensor({1.0, 2.0}, torch::kDouble));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>(0.5).samples(2).clean_weight(share));
  w.mutable_grad() = torch::tensor({10.0, 20.0}, torch::kDouble);
  std::vector<Tensor> at;
  for ([[maybe_unused]] const auto k : opt.perturbations()) {
    at.push_back(w.detach().clone());
    w.pow(3).sum().backward();
  }
  ASSERT_EQ(at.size(), 3U);
  EXPECT_TRUE(torch::equal(at[2], w.detach()));
  const Tensor mean = 3 * ((1 - share) / 2 * (at[0].square() + at[1].square()) + share * at[2].square());
  EXPECT_TRUE(torch::allclose(w.grad(), torch::tensor({10.0, 20.0}, torch::kDouble) + mean, 1e-13, 0));
}

TYPED_TEST(PerturbationsTest, ABatchIsSplitAndEachPartCountsByItsShare) {
  const Tensor w = parameter(torch::ones({4}, torch::kDouble));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>(0).samples(3));
  const Tensor x = torch::arange(40, torch::kDouble).reshape({10, 4}), y = torch::arange(10, torch::kDouble);
  std::vector<std::int64_t> rows;
  for (const auto& [x_k, y_k] : opt.perturbations(x, y)) {
    EXPECT_EQ(x_k.size(0), y_k.size(0));
    rows.push_back(x_k.size(0));
    (x_k.matmul(w) - y_k).square().mean().backward();
  }
  EXPECT_EQ(rows, (std::vector<std::int64_t>{3, 3, 4}));
  const Tensor split = w.grad().clone();
  w.mutable_grad().reset();
  (x.matmul(w) - y).square().mean().backward();
  EXPECT_TRUE(torch::allclose(split, w.grad(), 1e-13, 0));
}

TYPED_TEST(PerturbationsTest, FewerExamplesThanPassesTakeOneEach) {
  const Tensor w = parameter(torch::ones({4}));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>().samples(5));
  int passes = 0;
  for (const Tensor& part : opt.perturbations(torch::ones({2, 4}))) {
    EXPECT_EQ(part.size(0), 1);
    ++passes;
    part.matmul(w).sum().backward();
  }
  EXPECT_EQ(passes, 2);
}

TYPED_TEST(PerturbationsTest, BreakAndExceptionsRestoreWeightsScaleAndMoveOn) {
  for (const bool raise : {false, true}) {
    const Tensor w = parameter(torch::tensor({1.0, 2.0}, torch::kDouble));
    OptimizerOf<TypeParam> opt({w}, options<TypeParam>(0).samples(4));
    const auto loop = [&] {
      for (const auto k : opt.perturbations()) {
        w.square().sum().backward();
        if (k == 1 && raise) throw std::runtime_error("in the middle");
        if (k == 1) break;
      }
    };
    if (raise) {
      EXPECT_THROW(loop(), std::runtime_error);
    } else {
      loop();
    }
    EXPECT_TRUE(torch::allclose(w.grad(), w.detach(), 1e-15, 0));  // 2 of 4 passes of 2 w, each weighted 1/4
    EXPECT_EQ(opt.draw(), 1);
    EXPECT_NO_THROW({
      for ([[maybe_unused]] const auto k : opt.perturbations()) w.sum().backward();
    });
  }
}

TYPED_TEST(PerturbationsTest, ALoopFollowsItsOptimizerWhereItIsMovedAndMayOutliveIt) {
  const Tensor w = parameter(torch::tensor({1.0, 2.0}, torch::kDouble));
  const auto clean = copies({w});
  std::optional<Perturbations> passes;
  {
    std::optional<OptimizerOf<TypeParam>> first(std::in_place, std::vector<Tensor>{w},
                                                options<TypeParam>(0.5).samples(4));
    passes.emplace(first->perturbations());
    auto pass = passes->begin();
    OptimizerOf<TypeParam> second(std::move(*first));
    first.reset();
    w.sum().backward();
    ++pass;
    EXPECT_FALSE(same_bits({w}, clean));
    w.sum().backward();
  }
  auto again = std::move(*passes);
  EXPECT_MESSAGE(again.begin(), "looped over already");
  passes.reset();
  { const auto end = std::move(again); }
  EXPECT_TRUE(same_bits({w}, clean));
}

TYPED_TEST(PerturbationsTest, APassOfALoopThatSplitsNothingHasNoPart) {
  OptimizerOf<TypeParam> opt({parameter(torch::ones(3))}, options<TypeParam>());
  auto passes = opt.perturbations();
  EXPECT_MESSAGE(passes.part(0), "pass 0 of a loop with 0 parts");
}

TYPED_TEST(PerturbTest, FirstUsedUnderInferenceModeItGoesOnOutside) {
  const auto params = parameters(), plain = parameters();
  const auto momentum = TypeParam::with_state(options<TypeParam>());
  OptimizerOf<TypeParam> opt(params, momentum), other(plain, momentum);
  {
    const c10::InferenceMode inference;
    const auto pass = opt.perturb();
  }
  { const auto pass = other.perturb(); }
  for (int k = 0; k < 2; ++k) {
    for (auto* side : {&params, &plain}) {
      OptimizerOf<TypeParam>& driven = side == &params ? opt : other;
      driven.zero_grad();
      {
        const auto pass = driven.perturb();
        loss_of(*side).backward();
      }
      driven.step();
    }
  }
  EXPECT_TRUE(same_bits(params, plain));
}

template <typename Rule>
class StepTest : public ::testing::Test {};
TYPED_TEST_SUITE(StepTest, Rules, RuleNames);

// A string argument leaked with every call of an operator (pytorch issue 191340). Under AddressSanitizer mallinfo2 says
// nothing, and LeakSanitizer does.
TYPED_TEST(StepTest, TenThousandStepsLeaveNoMemoryBehind) {
  const Tensor w = parameter(torch::ones(3)), v = parameter(torch::ones(3));
  OptimizerOf<TypeParam> opt({w}, TypeParam::with_state(options<TypeParam>())),
      kept({v}, options<TypeParam>().keep_perturbed(true));
  kept.train();
  w.mutable_grad() = torch::zeros(3);
  v.mutable_grad() = torch::zeros(3);
  const auto run = [&](int steps) {
    for (int k = 0; k < steps; ++k) {
      {
        const auto pass = opt.perturb();
        w.mutable_grad().zero_();
      }
      opt.step();
      kept.step();
    }
    return mallinfo2().uordblks;
  };
  const std::size_t before = run(100), after = run(10000);
  EXPECT_LT(after, before + 10000);
}

TYPED_TEST(StepTest, AClosureGivesWhatTheLoopGives) {
  for (const OptionsOf<TypeParam>& o :
       {options<TypeParam>(), options<TypeParam>().samples(3), options<TypeParam>().antithetic(true),
        TypeParam::with_state(options<TypeParam>().samples(2).clean_weight(0.25))}) {
    const auto by_closure = parameters(torch::kDouble), by_loop = parameters(torch::kDouble);
    OptimizerOf<TypeParam> a(by_closure, o), b(by_loop, o);
    for (int step = 0; step < 4; ++step) {
      const Tensor loss = a.step([&] {
        a.zero_grad();
        Tensor value = loss_of(by_closure);
        value.backward();
        return value;
      });
      EXPECT_TRUE(loss.defined());
      b.zero_grad();
      for ([[maybe_unused]] const auto k : b.perturbations()) loss_of(by_loop).backward();
      b.step();
    }
    for (std::size_t i = 0; i < by_loop.size(); ++i) {
      EXPECT_TRUE(torch::allclose(by_closure[i], by_loop[i], 1e-12, 1e-14)) << i;
    }
    EXPECT_EQ(a.draw(), 4);
  }
}

TYPED_TEST(StepTest, AClosureThatThrowsLeavesCleanWeightsAndTheNextDraw) {
  const auto params = parameters();
  const auto clean = copies(params);
  for (const std::int64_t samples : {1, 3}) {
    OptimizerOf<TypeParam> opt(params, options<TypeParam>().samples(samples));
    EXPECT_THROW(opt.step([]() -> Tensor { throw std::runtime_error("in the closure"); }), std::runtime_error);
    EXPECT_TRUE(same_bits(params, clean));
    EXPECT_EQ(opt.draw(), 1);
  }
}

TYPED_TEST(StepTest, TheClosureRunsWithGradientsEnabledUnderNoGrad) {
  const Tensor w = parameter(torch::ones(3));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>());
  const torch::NoGradGuard no_grad;
  opt.step([&] {
    Tensor loss = w.square().sum();
    loss.backward();
    return loss;
  });
  EXPECT_FALSE(torch::equal(w, torch::ones(3)));
}

TYPED_TEST(StepTest, SeveralPerturbsBeforeOneStepAccumulate) {
  const Tensor w = parameter(torch::tensor({1.0, 2.0}, torch::kDouble));
  OptimizerOf<TypeParam> opt({w}, options<TypeParam>(0.5));
  Tensor sum = torch::zeros({2}, torch::kDouble);
  for (int i = 0; i < 3; ++i) {
    const auto pass = opt.perturb();
    sum += 2 * w.detach();
    w.square().sum().backward();
  }
  EXPECT_TRUE(torch::allclose(w.grad(), sum, 1e-14, 0));
  EXPECT_EQ(opt.draw(), 3);
  opt.step();
}

}  // namespace
}  // namespace torch_ssam
