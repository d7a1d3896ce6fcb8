// torch::save and torch::load: a run that is stopped and resumed ends in the bits of one that was not.
#include <sstream>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

void step(SSAM& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  for ([[maybe_unused]] const auto k : opt.perturbations()) loss_of(params).backward();
  opt.step();
}

SSAM make(const std::vector<Tensor>& params, const SSAMOptions& options) {
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<Tensor>(params.begin(), params.begin() + 2));
  groups.emplace_back(std::vector<Tensor>(params.begin() + 2, params.end()),
                      std::make_unique<SSAMOptions>(SSAMOptions().noise_std(0.3)));
  return SSAM(groups, options);
}

void load_values(const std::vector<Tensor>& params, const std::vector<Tensor>& values) {
  const torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < params.size(); ++i) params[i].copy_(values[i]);
}

TEST(StateTest, ResumesBitForBit) {
  for (const SSAMOptions& options :
       {SSAMOptions(0.01).momentum(0.9).seed(-3), SSAMOptions(0.01).radius(4.0),
        SSAMOptions(0.01).momentum(0.5).dampening(0.5).distribution("rademacher").samples(2).antithetic(true)}) {
    const auto params = parameters();
    SSAM opt = make(params, options);
    for (int k = 0; k < 3; ++k) step(opt, params);
    std::stringstream file;
    torch::save(opt, file);
    const auto values = copies(params);

    const auto other = parameters();
    SSAM resumed = make(other, SSAMOptions(9.0).samples(3));  // nothing of it may remain
    torch::load(resumed, file);
    load_values(other, values);
    EXPECT_EQ(resumed.seed(), opt.seed());
    EXPECT_EQ(resumed.draw(), opt.draw());
    for (int k = 0; k < 3; ++k) {
      step(opt, params);
      step(resumed, other);
    }
    EXPECT_TRUE(same_bits(params, other));
  }
}

TEST(StateTest, EveryOptionComesBack) {
  const auto params = parameters();
  const auto options = SSAMOptions(0.2)
                           .noise_std(0.3)
                           .momentum(0.4)
                           .dampening(0.1)
                           .weight_decay(0.6)
                           .maximize(true)
                           .distribution("rademacher")
                           .scale("fisher")
                           .fisher_decay(0.7)
                           .fisher_factor(0.8)
                           .samples(3)
                           .antithetic(true)
                           .clean_weight(0.2)
                           .radius(5.0)
                           .seed(1);
  SSAM opt(params, options);
  std::stringstream file;
  torch::save(opt, file);
  SSAM other(params);
  torch::load(other, file);
  auto loaded = static_cast<SSAMOptions&>(other.param_groups()[0].options());
  EXPECT_EQ(other.seed(), 1);
  loaded.seed(1);
  EXPECT_TRUE(loaded == options);
  EXPECT_FALSE(loaded == SSAMOptions());
}

TEST(StateTest, TakesWhatSgdOfTorchSavedAndKeepsItsOwnNoise) {
  const auto params = parameters(), theirs = parameters();
  torch::optim::SGD sgd(theirs, torch::optim::SGDOptions(0.02).momentum(0.9));
  loss_of(theirs).backward();
  sgd.step();
  std::stringstream file;
  torch::save(sgd, file);
  SSAM opt(params, SSAMOptions(0.5).noise_std(0.25).seed(4));
  torch::load(opt, file);
  const auto& options = static_cast<SSAMOptions&>(opt.param_groups()[0].options());
  EXPECT_EQ(options.lr(), 0.02);
  EXPECT_EQ(options.momentum(), 0.9);
  EXPECT_EQ(options.noise_std(), 0.25);
  EXPECT_EQ(opt.seed(), 4);
  const auto& state = static_cast<SSAMParamState&>(*opt.state().at(params[0].unsafeGetTensorImpl()));
  EXPECT_TRUE(same_bits(state.momentum_buffer(), theirs[0].grad()));
}

TEST(StateTest, ALoadThatFailsChangesNothing) {
  const auto params = parameters();
  SSAM opt(params, SSAMOptions(0.01).momentum(0.9).seed(1));
  step(opt, params);
  // As many tensors of other shapes: found out only when the state is looked at.
  std::vector<Tensor> reversed = parameters();
  std::reverse(reversed.begin(), reversed.end());
  SSAM other(reversed, SSAMOptions(0.5).momentum(0.1));
  step(other, reversed);
  std::stringstream bad, fewer, before, after;
  torch::save(other, bad);
  torch::save(SSAM({reversed[0]}, SSAMOptions(0.5)), fewer);
  torch::save(opt, before);
  EXPECT_MESSAGE(torch::load(opt, bad), "expected a checkpoint of the same model");
  EXPECT_MESSAGE(torch::load(opt, fewer), "has a different size");
  torch::save(opt, after);
  const auto a = copies(params);
  SSAM first(params), second(params);
  torch::load(first, before);
  torch::load(second, after);
  for (const Tensor& p : params) {
    EXPECT_TRUE(static_cast<SSAMParamState&>(*first.state().at(p.unsafeGetTensorImpl())) ==
                static_cast<SSAMParamState&>(*second.state().at(p.unsafeGetTensorImpl())));
  }
  EXPECT_EQ(second.param_groups()[0].options().get_lr(), 0.01);
  EXPECT_EQ(second.draw(), 1);
}

TEST(StateTest, LoadInsidePerturbIsRefused) {
  const auto params = parameters();
  SSAM opt(params);
  std::stringstream file;
  torch::save(opt, file);
  const auto pass = opt.perturb();
  EXPECT_MESSAGE(torch::load(opt, file), "load inside perturb()");
}

TEST(StateTest, AFileWrittenInsidePerturbCarriesTheCleanWeights) {
  const auto params = parameters();
  const auto clean = copies(params);
  SSAM opt(params, SSAMOptions(0.1).noise_std(0.5));
  std::stringstream file;
  const auto other = parameters();
  {
    const auto pass = opt.perturb();
    torch::save(opt, file);
    load_values(other, params);
  }
  EXPECT_FALSE(same_bits(other, clean));
  SSAM resumed(other);
  torch::load(resumed, file);
  { const auto first = resumed.perturb(); }
  EXPECT_TRUE(same_bits(other, clean));
}

TEST(StateTest, OptionsAndStateClone) {
  const SSAMOptions options = SSAMOptions(0.3).noise_std(0.2).radius(1.0);
  const torch::optim::OptimizerOptions& base = options;
  EXPECT_TRUE(static_cast<SSAMOptions&>(*base.clone()) == options);
  SSAMParamState state;
  state.momentum_buffer() = torch::ones(3);
  state.fisher() = torch::ones(2);
  const torch::optim::OptimizerParamState& state_base = state;
  EXPECT_TRUE(static_cast<SSAMParamState&>(*state_base.clone()) == state);
}

}  // namespace
}  // namespace torch_ssam
