// keep_perturbed: train() perturbs, step() leaves the next perturbation in place, eval() puts the clean weights back.
// Bit for bit the numbers of the perturb() form, in checkpoints too.
#include <sstream>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

struct Case {
  const char* name;
  SSAMOptions options;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"plain", SSAMOptions(0.01)},
      {"momentum", SSAMOptions(0.01).momentum(0.9)},
      {"nesterov", SSAMOptions(0.01).momentum(0.9).nesterov(true).weight_decay(1e-2)},
      {"rademacher", SSAMOptions(0.01).distribution("rademacher").momentum(0.5).dampening(0.5)},
      {"radius", SSAMOptions(0.01).radius(2.0)},
      {"no noise", SSAMOptions(0.01).noise_std(0)}};
  return all;
}

void step_kept(SSAM& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  loss_of(params).backward();
  opt.step();
}

void step_perturbed(SSAM& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  {
    const auto pass = opt.perturb();
    loss_of(params).backward();
  }
  opt.step();
}

TEST(KeepPerturbedTest, GivesTheBitsOfThePerturbForm) {
  for (const Case& c : cases()) {
    const auto kept = parameters(), plain = parameters();
    SSAMOptions options = c.options;
    options.seed(5);
    SSAM b(plain, options);
    SSAM a(kept, options.keep_perturbed(true));
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

TEST(KeepPerturbedTest, EvalAndTrainComeBackToTheSameNoise) {
  const auto params = parameters();
  SSAM opt(params, SSAMOptions(0.01).keep_perturbed(true).seed(5));
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

TEST(KeepPerturbedTest, WithoutItTrainAndEvalMoveNothing) {
  const auto params = parameters();
  const auto clean = copies(params);
  SSAM opt(params, SSAMOptions(0.01).noise_std(0.5));
  opt.train();
  EXPECT_TRUE(same_bits(params, clean));
  opt.eval();
  EXPECT_TRUE(same_bits(params, clean));
}

TEST(KeepPerturbedTest, MissingGradientsFreezingAndNewGroupsFollowThePerturbForm) {
  const auto kept = parameters(), plain = parameters();
  const auto options = SSAMOptions(0.01).momentum(0.9).seed(5);
  const auto half = [](const std::vector<Tensor>& p, bool first) {
    return std::vector<Tensor>(p.begin() + (first ? 0 : 3), first ? p.begin() + 3 : p.end());
  };
  SSAM a(half(kept, true), SSAMOptions(options).keep_perturbed(true));
  SSAM b(half(plain, true), options);
  a.train();
  for (int k = 0; k < 6; ++k) {
    for (auto* side : {&kept, &plain}) {
      SSAM& opt = side == &kept ? a : b;
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

TEST(KeepPerturbedTest, AWriteInTrainIsReportedAndTheOptimizerIsInEval) {
  const auto params = parameters();
  SSAM opt(params, SSAMOptions(0.01).keep_perturbed(true));
  opt.train();
  loss_of(params).backward();
  {
    const torch::NoGradGuard no_grad;
    params[2].fill_(1);
  }
  EXPECT_THROW(opt.step(), PerturbedWeightsChanged);
  EXPECT_MESSAGE(opt.step(), "is in eval");
}

TEST(KeepPerturbedTest, AModelLoadedBeforeItsOptimizerInTrainKeepsItsWeights) {
  const auto params = parameters();
  SSAM opt(params, SSAMOptions(0.01).keep_perturbed(true));
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

class CheckpointInTrainTest : public ::testing::TestWithParam<const char*> {};

TEST_P(CheckpointInTrainTest, CarriesTheCleanWeights) {
  const auto options = SSAMOptions(0.01).momentum(0.9).keep_perturbed(true).memory(GetParam()).seed(5);
  const auto params = parameters();
  SSAM opt(params, options);
  opt.train();
  step_kept(opt, params);
  std::stringstream file;
  torch::save(opt, file);
  const auto noisy = copies(params);
  opt.eval();
  const auto clean = copies(params);

  // The model file was written in train too, so it holds noisy weights; the optimizer puts that right.
  const auto other = parameters();
  SSAM resumed(other, SSAMOptions(0.5).keep_perturbed(true));
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
  SSAM third(other, options);
  torch::load(third, again);
  third.eval();
  EXPECT_TRUE(same_bits(other, clean));
}

INSTANTIATE_TEST_SUITE_P(Memory, CheckpointInTrainTest, ::testing::Values("copy", "regenerate"),
                         [](const auto& info) { return std::string(info.param); });

TEST(KeepPerturbedTest, WithoutCopiesTheStateHoldsNone) {
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

TEST(KeepPerturbedTest, ALoadThatFailsInTrainChangesNothing) {
  const auto options = SSAMOptions(0.01).momentum(0.9).keep_perturbed(true).seed(5);
  const auto params = parameters(), untouched = parameters();
  SSAM opt(params, options), other(untouched, options);
  opt.train();
  other.train();
  step_kept(opt, params);
  step_kept(other, untouched);
  std::vector<Tensor> reversed = parameters();
  std::reverse(reversed.begin(), reversed.end());
  SSAM misfit(reversed, options);
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

TEST(KeepPerturbedTest, ALoadThatFailsKeepsTheCleanWeightsThatWaitToBeWritten) {
  const auto options = SSAMOptions(0.01).keep_perturbed(true).seed(5);
  const auto params = parameters();
  const auto clean = copies(params);
  SSAM opt(params, options);
  opt.train();
  const auto noisy = copies(params);
  std::stringstream file, misfit;
  torch::save(opt, file);
  torch::save(SSAM({parameter(torch::ones(3))}, options), misfit);
  opt.eval();

  const auto other = parameters();
  SSAM resumed(other, options);
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

TEST(KeepPerturbedTest, AModelWithFrozenGroupsResumesFromACheckpointTakenInTrain) {
  const auto make = [](const std::vector<Tensor>& p, double lr) {
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(std::vector<Tensor>(p.begin(), p.begin() + 2));
    groups.emplace_back(std::vector<Tensor>(p.begin() + 2, p.end()));
    return SSAM(groups, SSAMOptions(lr).momentum(0.9).keep_perturbed(true).seed(5));
  };
  const auto freeze = [](const std::vector<Tensor>& p, bool frozen) {
    for (std::size_t i = 2; i < p.size(); ++i) p[i].requires_grad_(!frozen);
  };
  const auto step_trainable = [](SSAM& opt, const std::vector<Tensor>& p) {
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
    SSAM opt = make(params, 0.01);
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
    SSAM resumed = make(other, 0.5);
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

TEST(KeepPerturbedTest, TheEndOfTheOptimizerPutsTheCleanWeightsBack) {
  const auto params = parameters();
  const auto clean = copies(params);
  {
    SSAM first(params, SSAMOptions(0.01).keep_perturbed(true));
    first.train();
    const SSAM opt(std::move(first));
    EXPECT_FALSE(same_bits(params, clean));
  }
  EXPECT_TRUE(same_bits(params, clean));
}

}  // namespace
}  // namespace torch_ssam
