// keep_perturbed: train() perturbs, step() leaves the next perturbation in place, eval() puts the clean weights back.
// Bit for bit the numbers of the perturb() form, in checkpoints too.
#include <sstream>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

template <typename Rule>
struct Case {
  const char* name;
  OptionsOf<Rule> options;
};

template <typename Rule>
std::vector<Case<Rule>> cases();

template <>
std::vector<Case<Sgd>> cases<Sgd>() {
  return {{"plain", SSAMOptions(0.01)},
          {"momentum", SSAMOptions(0.01).momentum(0.9)},
          {"nesterov", SSAMOptions(0.01).momentum(0.9).nesterov(true).weight_decay(1e-2)},
          {"rademacher", SSAMOptions(0.01).distribution("rademacher").momentum(0.5).dampening(0.5)},
          {"radius", SSAMOptions(0.01).radius(2.0)},
          {"no noise", SSAMOptions(0.01).noise_std(0)}};
}

template <>
std::vector<Case<AdamW>> cases<AdamW>() {
  return {{"plain", SSAMAdamWOptions(0.01)},
          {"amsgrad", SSAMAdamWOptions(0.01).amsgrad(true)},
          {"decay", SSAMAdamWOptions(0.01).betas({0.5, 0.75}).weight_decay(0.1)},
          {"rademacher", SSAMAdamWOptions(0.01).distribution("rademacher").maximize(true)},
          {"radius", SSAMAdamWOptions(0.01).radius(2.0)},
          {"no noise", SSAMAdamWOptions(0.01).noise_std(0)}};
}

void step_kept(NoiseDriver& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  loss_of(params).backward();
  opt.step();
}

void step_perturbed(NoiseDriver& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  {
    const auto pass = opt.perturb();
    loss_of(params).backward();
  }
  opt.step();
}

template <typename Rule>
class KeepPerturbedTest : public ::testing::Test {};
TYPED_TEST_SUITE(KeepPerturbedTest, Rules, RuleNames);

TYPED_TEST(KeepPerturbedTest, GivesTheBitsOfThePerturbForm) {
  for (const Case<TypeParam>& c : cases<TypeParam>()) {
    const auto kept = parameters(), plain = parameters();
    OptionsOf<TypeParam> options = c.options;
    options.seed(5);
    OptimizerOf<TypeParam> b(plain, options);
    OptimizerOf<TypeParam> a(kept, options.keep_perturbed(true));
    a.train();
    for (int k = 0; k < 5; ++k) {
      step_kept(a, kept);
      step_perturbed(b, plain);
    }
    a.eval();
    EXPECT_TRUE(same_bits(kept, plain)) << c.name;
    EXPECT_EQ(a.draw(), b.draw()) << c.name;
  }
}

TYPED_TEST(KeepPerturbedTest, EvalAndTrainComeBackToTheSameNoise) {
  const auto params = parameters();
  OptimizerOf<TypeParam> opt(params, OptionsOf<TypeParam>(0.01).keep_perturbed(true).seed(5));
  const auto clean = copies(params);
  opt.train();
  const auto noisy = copies(params);
  EXPECT_FALSE(same_bits(noisy, clean));
  opt.train(false);
  EXPECT_TRUE(same_bits(params, clean));
  opt.train();
  EXPECT_TRUE(same_bits(params, noisy));
  opt.train();
  EXPECT_TRUE(same_bits(params, noisy));
  opt.eval();
  opt.eval();
  EXPECT_TRUE(same_bits(params, clean));
}

TYPED_TEST(KeepPerturbedTest, WithoutItTrainAndEvalMoveNothing) {
  const auto params = parameters();
  const auto clean = copies(params);
  OptimizerOf<TypeParam> opt(params, OptionsOf<TypeParam>(0.01).noise_std(0.5));
  opt.train();
  EXPECT_TRUE(same_bits(params, clean));
  opt.eval();
  EXPECT_TRUE(same_bits(params, clean));
}

TYPED_TEST(KeepPerturbedTest, MissingGradientsFreezingAndNewGroupsFollowThePerturbForm) {
  const auto kept = parameters(), plain = parameters();
  const auto options = TypeParam::with_state(OptionsOf<TypeParam>(0.01)).seed(5);
  const auto half = [](const std::vector<Tensor>& p, bool first) {
    return std::vector<Tensor>(p.begin() + (first ? 0 : 3), first ? p.begin() + 3 : p.end());
  };
  OptimizerOf<TypeParam> a(half(kept, true), OptionsOf<TypeParam>(options).keep_perturbed(true));
  OptimizerOf<TypeParam> b(half(plain, true), options);
  a.train();
  for (int k = 0; k < 6; ++k) {
    for (auto* side : {&kept, &plain}) {
      OptimizerOf<TypeParam>& opt = side == &kept ? a : b;
      if (k == 2) (*side)[1].requires_grad_(false);
      if (k == 3) opt.add_param_group(OptimizerParamGroup(half(*side, false)));
      opt.zero_grad();
      const auto active = k < 3 ? half(*side, true) : *side;
      const std::vector<Tensor> some(active.begin() + (k == 1 ? 1 : 0), active.end());  // one without a gradient
      if (side == &kept) {
        loss_of(some).backward();
      } else {
        const auto pass = opt.perturb();
        loss_of(some).backward();
      }
      opt.step();
    }
  }
  a.eval();
  EXPECT_TRUE(same_bits(kept, plain));
}

TYPED_TEST(KeepPerturbedTest, AWriteInTrainIsReportedAndTheOptimizerIsInEval) {
  const auto params = parameters();
  OptimizerOf<TypeParam> opt(params, OptionsOf<TypeParam>(0.01).keep_perturbed(true));
  opt.train();
  loss_of(params).backward();
  {
    const torch::NoGradGuard no_grad;
    params[2].fill_(1);
  }
  EXPECT_THROW(opt.step(), PerturbedWeightsChanged);
  EXPECT_MESSAGE(opt.step(), "is in eval");
}

TYPED_TEST(KeepPerturbedTest, AModelLoadedBeforeItsOptimizerInTrainKeepsItsWeights) {
  const auto params = parameters();
  OptimizerOf<TypeParam> opt(params, OptionsOf<TypeParam>(0.01).keep_perturbed(true));
  std::stringstream file;
  torch::save(opt, file);
  opt.train();
  {
    const torch::NoGradGuard no_grad;
    for (const Tensor& p : params) p.fill_(2);
  }
  torch::load(opt, file);
  opt.eval();
  for (const Tensor& p : params) EXPECT_TRUE(torch::equal(p, torch::full_like(p, 2)));
}

TYPED_TEST(KeepPerturbedTest, ACheckpointInTrainCarriesTheCleanWeights) {
  for (const char* memory : {"copy", "regenerate"}) {
    SCOPED_TRACE(memory);
    const auto options = TypeParam::with_state(OptionsOf<TypeParam>(0.01)).keep_perturbed(true).memory(memory).seed(5);
    const auto params = parameters();
    OptimizerOf<TypeParam> opt(params, options);
    opt.train();
    step_kept(opt, params);
    std::stringstream file;
    torch::save(opt, file);
    const auto noisy = copies(params);
    opt.eval();
    const auto clean = copies(params);

    // The model file was written in train too, so it holds noisy weights; the optimizer puts that right.
    const auto other = parameters();
    OptimizerOf<TypeParam> resumed(other, OptionsOf<TypeParam>(0.5).keep_perturbed(true));
    torch::load(resumed, file);
    {
      const torch::NoGradGuard no_grad;
      for (std::size_t i = 0; i < other.size(); ++i) other[i].copy_(noisy[i]);
    }
    std::stringstream again;
    torch::save(resumed, again);  // before the weights were written, still complete
    resumed.eval();
    EXPECT_TRUE(same_bits(other, clean));
    opt.train();
    resumed.train();
    EXPECT_TRUE(same_bits(other, noisy));
    for (int k = 0; k < 3; ++k) {
      step_kept(opt, params);
      step_kept(resumed, other);
    }
    EXPECT_TRUE(same_bits(params, other));
    resumed.eval();
    OptimizerOf<TypeParam> third(other, options);
    torch::load(third, again);
    third.eval();
    EXPECT_TRUE(same_bits(other, clean));
  }
}

TEST(SgdKeepPerturbedTest, WithoutCopiesTheStateHoldsNone) {
  const auto params = parameters();
  SSAM opt(params, SSAMOptions(0.01).keep_perturbed(true).memory("regenerate"));
  opt.train();
  step_kept(opt, params);
  EXPECT_TRUE(opt.state().empty());
  std::stringstream file;
  torch::save(opt, file);
  const auto saved = opt.state_dict().toGenericDict().at("state").toGenericDict();
  EXPECT_EQ(saved.size(), params.size());
  EXPECT_TRUE(opt.state().empty());
}

TYPED_TEST(KeepPerturbedTest, ALoadThatFailsInTrainChangesNothing) {
  const auto options = TypeParam::with_state(OptionsOf<TypeParam>(0.01)).keep_perturbed(true).seed(5);
  const auto params = parameters(), untouched = parameters();
  OptimizerOf<TypeParam> opt(params, options), other(untouched, options);
  opt.train();
  other.train();
  step_kept(opt, params);
  step_kept(other, untouched);
  std::vector<Tensor> reversed = parameters();
  std::reverse(reversed.begin(), reversed.end());
  OptimizerOf<TypeParam> misfit(reversed, options);
  misfit.train();
  step_kept(misfit, reversed);
  std::stringstream file;
  torch::save(misfit, file);
  EXPECT_MESSAGE(torch::load(opt, file), "expected a checkpoint of the same model");
  EXPECT_MESSAGE(opt.load_state_dict(misfit.state_dict()), "expected a checkpoint of the same model");
  EXPECT_TRUE(same_bits(params, untouched));
  step_kept(opt, params);
  step_kept(other, untouched);
  EXPECT_TRUE(same_bits(params, untouched));
  opt.eval();
  other.eval();
  EXPECT_TRUE(same_bits(params, untouched));
}

TYPED_TEST(KeepPerturbedTest, ALoadThatFailsKeepsTheCleanWeightsThatWaitToBeWritten) {
  const auto options = OptionsOf<TypeParam>(0.01).keep_perturbed(true).seed(5);
  const auto params = parameters();
  const auto clean = copies(params);
  OptimizerOf<TypeParam> opt(params, options);
  opt.train();
  const auto noisy = copies(params);
  std::stringstream file, misfit;
  torch::save(opt, file);
  torch::save(OptimizerOf<TypeParam>({parameter(torch::ones(3))}, options), misfit);
  opt.eval();

  const auto other = parameters();
  OptimizerOf<TypeParam> resumed(other, options);
  torch::load(resumed, file);
  {
    const torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < other.size(); ++i) other[i].copy_(noisy[i]);
  }
  EXPECT_MESSAGE(torch::load(resumed, misfit), "has a different size");
  resumed.train();
  EXPECT_TRUE(same_bits(other, noisy));
  resumed.eval();
  EXPECT_TRUE(same_bits(other, clean));
}

TYPED_TEST(KeepPerturbedTest, AModelWithFrozenGroupsResumesFromACheckpointTakenInTrain) {
  const auto make = [](const std::vector<Tensor>& p, double lr) {
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(std::vector<Tensor>(p.begin(), p.begin() + 2));
    groups.emplace_back(std::vector<Tensor>(p.begin() + 2, p.end()));
    return OptimizerOf<TypeParam>(groups, TypeParam::with_state(OptionsOf<TypeParam>(lr)).keep_perturbed(true).seed(5));
  };
  const auto freeze = [](const std::vector<Tensor>& p, bool frozen) {
    for (std::size_t i = 2; i < p.size(); ++i) p[i].requires_grad_(!frozen);
  };
  const auto step_trainable = [](OptimizerOf<TypeParam>& opt, const std::vector<Tensor>& p) {
    opt.zero_grad();
    std::vector<Tensor> trainable;
    for (const Tensor& t : p) {
      if (t.requires_grad()) trainable.push_back(t);
    }
    loss_of(trainable).backward();
    opt.step();
  };
  for (const bool frozen_from_the_start : {false, true}) {
    const auto params = parameters();
    freeze(params, frozen_from_the_start);
    OptimizerOf<TypeParam> opt = make(params, 0.01);
    opt.train();
    step_trainable(opt, params);
    freeze(params, true);  // where they were not, they hold noise now
    std::stringstream file;
    torch::save(opt, file);
    const auto held = copies(params);
    step_trainable(opt, params);

    const auto other = parameters();
    freeze(other, true);
    {
      const torch::NoGradGuard no_grad;
      for (std::size_t i = 0; i < other.size(); ++i) other[i].copy_(held[i]);
    }
    OptimizerOf<TypeParam> resumed = make(other, 0.5);
    torch::load(resumed, file);
    resumed.train();
    step_trainable(resumed, other);
    EXPECT_TRUE(same_bits(params, other)) << frozen_from_the_start;
    for (const bool frozen : {false, true}) {  // thawed, they are perturbed again
      freeze(params, frozen);
      freeze(other, frozen);
      step_trainable(opt, params);
      step_trainable(resumed, other);
    }
    opt.eval();
    resumed.eval();
    EXPECT_TRUE(same_bits(params, other)) << frozen_from_the_start;
  }
}

TYPED_TEST(KeepPerturbedTest, TheEndOfTheOptimizerPutsTheCleanWeightsBack) {
  const auto params = parameters();
  const auto clean = copies(params);
  {
    OptimizerOf<TypeParam> first(params, OptionsOf<TypeParam>(0.01).keep_perturbed(true));
    first.train();
    const OptimizerOf<TypeParam> opt(std::move(first));
    EXPECT_FALSE(same_bits(params, clean));
  }
  EXPECT_TRUE(same_bits(params, clean));
}

}  // namespace
}  // namespace torch_ssam
