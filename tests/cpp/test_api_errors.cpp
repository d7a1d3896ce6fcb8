// Wrong input and calls out of order: a c10::Error that says what came, what was expected and what to do, and weights
// as they were.
#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

std::vector<Tensor> one() { return {parameter(torch::ones(3))}; }

TEST(ErrorTest, OptionsOutOfRangeAreNamedWithTheirValue) {
  const std::vector<std::pair<SSAMOptions, const char*>> cases{
      {SSAMOptions(-1), "lr is -1; expected a finite number >= 0"},
      {SSAMOptions(NAN), "lr is nan"},
      {SSAMOptions(0.1).noise_std(-0.5), "noise_std is -0.5"},
      {SSAMOptions(0.1).noise_std(INFINITY), "noise_std is inf"},
      {SSAMOptions(0.1).momentum(-1), "momentum is -1"},
      {SSAMOptions(0.1).weight_decay(-1), "weight_decay is -1"},
      {SSAMOptions(0.1).dampening(INFINITY), "dampening is inf"},
      {SSAMOptions(0.1).nesterov(true), "Nesterov momentum expects momentum > 0 and dampening 0"},
      {SSAMOptions(0.1).distribution("uniform"), "distribution is 'uniform'; expected 'gaussian' or 'rademacher'"},
      {SSAMOptions(0.1).scale("large"), "scale is 'large'; expected one of 'isotropic', 'tensor', 'filter', 'element'"},
      {SSAMOptions(0.1).scale("filter").memory("regenerate"), "memory 'regenerate' with scale 'filter'"},
      {SSAMOptions(0.1).fisher_decay(1.5), "fisher_decay is 1.5; expected 0 <= fisher_decay <= 1"},
      {SSAMOptions(0.1).fisher_decay(NAN), "fisher_decay is nan"},
      {SSAMOptions(0.1).fisher_factor(-1), "fisher_factor is -1; expected a finite number >= 0"},
      {SSAMOptions(0.1).memory("none"), "memory is 'none'; expected 'copy' or 'regenerate'"},
      {SSAMOptions(0.1).samples(0), "samples is 0; expected 1 to"},
      {SSAMOptions(0.1).clean_weight(1), "expected 0 <= clean_weight < 1"},
      {SSAMOptions(0.1).radius(0), "radius is 0; expected a finite number > 0"},
      {SSAMOptions(0.1).keep_perturbed(true).samples(2), "Use perturbations() without keep_perturbed"}};
  for (const auto& [options, part] : cases) EXPECT_MESSAGE(SSAM(one(), options), part);
}

TEST(ErrorTest, ParametersThatCannotBePerturbedAreNamed) {
  const std::vector<std::pair<Tensor, const char*>> cases{
      {Tensor(), "parameter 0 of the group is an undefined tensor"},
      {torch::ones(3, torch::kLong), "is Long; expected a dense"},
      {torch::ones(3, torch::kComplexFloat), "is ComplexFloat; expected a dense"},
      {torch::ones({3, 3}).to_sparse(), "is sparse"},
      {parameter(torch::ones(3)) * 2, "expected a leaf tensor"}};
  for (const auto& [tensor, part] : cases) {
    EXPECT_MESSAGE(SSAM({tensor}), part);
    EXPECT_MESSAGE(WeightNoise({tensor}), part);
  }
  const Tensor half = parameter(torch::ones(3, torch::kHalf));
  EXPECT_MESSAGE(SSAM({half}, SSAMOptions(0.1).memory("regenerate")), "16-bit weights do not survive");
  EXPECT_MESSAGE(WeightNoise({half}, WeightNoiseOptions(0.1).memory("regenerate")), "16-bit weights do not survive");
  EXPECT_MESSAGE(SSAM(std::vector<Tensor>{}), "empty list of parameters");
  EXPECT_MESSAGE(SSAM(std::vector<OptimizerParamGroup>{}), "empty list of parameters");
  EXPECT_MESSAGE(WeightNoise(std::vector<Tensor>{}), "empty list of tensors");
}

TEST(ErrorTest, GroupsThatDoNotFitAreRefusedAndNotAdded) {
  const auto params = one();
  SSAM opt(params, SSAMOptions(0.1));
  EXPECT_MESSAGE(opt.add_param_group(OptimizerParamGroup(params)), "is in another group too");
  EXPECT_MESSAGE(opt.add_param_group(OptimizerParamGroup(one(), std::make_unique<torch::optim::SGDOptions>(0.1))),
                 "options of a parameter group are of another optimizer");
  EXPECT_MESSAGE(
      opt.add_param_group(OptimizerParamGroup(one(), std::make_unique<SSAMOptions>(SSAMOptions(0.1).samples(2)))),
      "samples is 2 in one parameter group and 1 in another");
  EXPECT_MESSAGE(
      opt.add_param_group(OptimizerParamGroup(one(), std::make_unique<SSAMOptions>(SSAMOptions(0.1).seed(3)))),
      "expected none in a group, since one seed serves all");
  EXPECT_EQ(opt.param_groups().size(), 1U);
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(one(), std::make_unique<WeightNoiseOptions>(WeightNoiseOptions(0.1).seed(3)));
  EXPECT_MESSAGE(WeightNoise(groups), "a parameter group has seed 3");
  EXPECT_NO_THROW(WeightNoise(groups, WeightNoiseOptions().seed(3)));
}

TEST(ErrorTest, TensorsThatShareMemoryAreRefused) {
  const Tensor base = torch::ones(8);
  const Tensor whole = base.view({8}).requires_grad_(true), part = base.slice(0, 2, 5).detach().requires_grad_(true);
  EXPECT_MESSAGE(SSAM({whole, part}), "parameters 0 and 1 are two tensors in the same memory");
  const Tensor columns = torch::ones({4, 6});
  const auto column = [&](int from, int to) { return columns.slice(1, from, to).detach().requires_grad_(true); };
  EXPECT_NO_THROW(SSAM({column(0, 3), column(3, 6)}));  // interleaved, no element is shared
  const Tensor all = columns.view({24}).requires_grad_(true);
  const Tensor last = columns.view({24}).slice(0, 19, 22).detach().requires_grad_(true);
  EXPECT_MESSAGE(SSAM({all, column(1, 2)}), "parameters 0 and 1 are two tensors in the same memory");
  EXPECT_MESSAGE(SSAM({all, columns.slice(1, 1, 2).slice(0, 0, 1).detach().requires_grad_(true), last}),
                 "two tensors in the same memory");
  EXPECT_MESSAGE(SSAM({last, column(0, 2)}), "parameters 0 and 1 are two tensors in the same memory");
  const c10::InferenceMode inference;
  const Tensor made = torch::ones(3);
  EXPECT_MESSAGE(SSAM({made}), "was made under InferenceMode");
}

TEST(ErrorTest, OfSeveralGroupsNoneIsWrittenWhereOneIsRefused) {
  const Tensor a = parameter(torch::ones(3)), b = parameter(torch::ones(3));
  std::vector<OptimizerParamGroup> groups{OptimizerParamGroup({a}), OptimizerParamGroup({b})};
  SSAM opt(groups, SSAMOptions(0.1).keep_perturbed(true));
  opt.train();
  a.mutable_grad() = torch::ones(3);
  b.mutable_grad() = torch::ones(3).to_sparse();
  EXPECT_MESSAGE(opt.step(), "the gradient of parameter 1 is sparse");
  EXPECT_TRUE(same_bits({a, b}, {torch::ones(3), torch::ones(3)}));
  EXPECT_MESSAGE(opt.step(), "is in eval");
}

TEST(ErrorTest, OfOneGroupNothingIsWrittenWhereALaterGradientIsRefused) {
  const Tensor a = parameter(torch::ones(3)), b = parameter(torch::ones(3));
  SSAM opt({a, b}, SSAMOptions(0.1).momentum(0.9).noise_std(0));
  a.mutable_grad() = torch::ones(3);
  opt.step();
  const auto before = copies({a, b});
  b.mutable_grad() = torch::ones(3).to_sparse();  // its momentum starts here, so it goes into a call of its own
  EXPECT_MESSAGE(opt.step(), "the gradient of parameter 1 is sparse");
  EXPECT_TRUE(same_bits({a, b}, before));
}

TEST(ErrorTest, ZeroGradAsksForANewPerturbedGradient) {
  const auto params = one();
  SSAM opt(params, SSAMOptions(0.1));
  {
    const auto pass = opt.perturb();
    params[0].sum().backward();
  }
  opt.zero_grad();
  EXPECT_MESSAGE(opt.step(), "without a gradient at perturbed weights");
}

TEST(ErrorTest, CallsOutOfOrderNameTheOrder) {
  const auto params = one();
  SSAM opt(params, SSAMOptions(0.1));
  EXPECT_MESSAGE(opt.step(), "auto perturbed = opt.perturb()");
  {
    const auto pass = opt.perturb();
    EXPECT_MESSAGE(opt.perturb(), "perturb() inside perturb()");
    EXPECT_MESSAGE(opt.perturbations(), "perturb() inside perturb()");
    EXPECT_MESSAGE(opt.step(), "step() inside perturb()");
  }
  opt.step();
  EXPECT_MESSAGE(opt.step(), "without a gradient at perturbed weights since the last step");
  SSAM several(params, SSAMOptions(0.1).samples(2));
  EXPECT_MESSAGE(several.perturb(), "the options ask for 2 a step");
  auto range = several.perturbations();
  for ([[maybe_unused]] const auto k : range) params[0].sum().backward();
  EXPECT_MESSAGE(range.begin(), "looped over already");
  SSAM kept(params, SSAMOptions(0.1).keep_perturbed(true));
  EXPECT_MESSAGE(kept.perturb(), "stay perturbed after opt.train()");
  EXPECT_MESSAGE(kept.step(), "call opt.train() before the first forward pass");
}

TEST(ErrorTest, WithoutNoiseAStepNeedsNoPass) {
  const auto params = one();
  SSAM opt(params, SSAMOptions(0.1).noise_std(0));
  params[0].sum().backward();
  EXPECT_NO_THROW(opt.step());
}

TEST(ErrorTest, WhatAnOperatorRefusesIsAnErrorOfTorchAndWritesNothing) {
  const auto params = one();
  const auto clean = copies(params);
  SSAM opt(params, SSAMOptions(0.1).momentum(0.9).dampening(0.5));
  {
    const auto pass = opt.perturb();
    params[0].mutable_grad() = torch::ones(3, torch::kDouble);
  }
  EXPECT_MESSAGE(opt.step(), "no kernel for clean weights of dtype float32 with gradients of dtype float64");
  EXPECT_TRUE(same_bits(params, clean));
  EXPECT_TRUE(opt.state().empty());  // momentum has not started
  static_cast<SSAMOptions&>(opt.param_groups()[0].options()).distribution("cauchy");
  EXPECT_MESSAGE(opt.perturb(), "distribution is 'cauchy'");
  EXPECT_TRUE(same_bits(params, clean));
}

TEST(ErrorTest, SplitBatchesMustHaveTheSameNumberOfExamples) {
  SSAM opt(one(), SSAMOptions(0.1).samples(2));
  EXPECT_MESSAGE(opt.perturbations(torch::ones({4, 2}), torch::ones({3})), "4 and 3 examples along dimension 0");
  EXPECT_MESSAGE(opt.perturbations(torch::ones({0, 2})), "expected the same number > 0");
}

TEST(ErrorTest, TheNoiseOfWeightNoiseIsOfItsTensors) {
  WeightNoise noise(one(), WeightNoiseOptions(0.1));
  EXPECT_MESSAGE(noise.noise(torch::ones(3)), "not one of those given at construction");
  const auto pass = noise.applied();
  EXPECT_MESSAGE(noise.applied(), "applied() inside applied()");
  EXPECT_MESSAGE(noise.applied(-1), "sample is -1");
}

TEST(ErrorTest, DiagonalLinearSaysWhatDoesNotFit) {
  EXPECT_MESSAGE(DiagonalLinear(3, 0), "depth is 0; expected 1 to");
  EXPECT_MESSAGE(DiagonalLinear(-1), "features is -1");
  EXPECT_MESSAGE(DiagonalLinear(DiagonalLinearOptions(3).readout("mean")), "readout is 'mean'; expected 'sum'");
  EXPECT_MESSAGE(DiagonalLinear(DiagonalLinearOptions(3).noise_std(-1)), "noise_std is -1");
  EXPECT_MESSAGE(DiagonalLinear(DiagonalLinearOptions(3, 2).init_scale({1.0, 2.0, 3.0})),
                 "init_scale has 3 values; expected one number or one per layer (2)");
  DiagonalLinear layer(3);
  EXPECT_MESSAGE(layer(torch::ones({2, 4})), "input has 4 features in its last dimension and weight has 3");
  EXPECT_MESSAGE(layer(torch::ones({2, 3}, torch::kDouble)), "input has dtype Double and weight has Float");
  // And no answer out of memory that nobody wrote.
  EXPECT_THROW(layer(torch::ones({2, 3}, torch::kMeta)), c10::Error);
}

TEST(ErrorTest, TheoryThrowsInvalidArgument) {
  const std::vector<double> weights{1, 2}, target{1, 2};
  EXPECT_THROW(theory::loss(theory::Weights(weights, 2), target), std::invalid_argument);
}

}  // namespace
}  // namespace torch_ssam
