// SSAM as an optimizer: it learns XOR, follows a float64 reference and torch::optim::SGD along the way, and honours
// groups, schedulers and every option. How it is driven is in test_api_driving.cpp.
#include <torch/optim/schedulers/step_lr.h>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

struct XorNet : torch::nn::Module {
  XorNet()
      : hidden(register_module("hidden", torch::nn::Linear(2, 8))),
        out(register_module("out", torch::nn::Linear(8, 1))) {}
  Tensor forward(const Tensor& x) { return torch::sigmoid(out(torch::sigmoid(hidden(x)))); }
  torch::nn::Linear hidden, out;
};

// Mean loss over the last steps of training on random XOR batches.
template <typename Step>
double train_xor(XorNet& net, int steps, const Step& step) {
  double loss = 1;
  for (int k = 0; k < steps; ++k) {
    const Tensor x = torch::randint(2, {16, 2}).to(torch::kFloat);
    const Tensor y = (x.sum(1, true) == 1).to(torch::kFloat);
    const double now = step([&] {
                         Tensor value = torch::binary_cross_entropy(net.forward(x), y);
                         value.backward();
                         return value;
                       }).template item<double>();
    loss = 0.95 * loss + 0.05 * now;
  }
  return loss;
}

class XorTest : public ::testing::TestWithParam<const char*> {};

TEST_P(XorTest, Converges) {
  const std::string mode = GetParam();
  torch::manual_seed(0);
  XorNet net;
  SSAMOptions options = SSAMOptions(0.5).noise_std(0.05).momentum(0.9);
  if (mode == "nesterov") options.nesterov(true).weight_decay(1e-5);
  if (mode == "antithetic") options.antithetic(true).samples(2);
  if (mode == "kept") options.keep_perturbed(true);
  if (mode == "rademacher") options.distribution("rademacher");
  SSAM opt(net.parameters(), options);
  opt.train();
  const double loss = train_xor(net, 700, [&](const auto& closure) {
    if (mode == "kept" || mode == "closure" || mode == "antithetic") {
      return opt.step([&] {
        opt.zero_grad();
        return closure();
      });
    }
    opt.zero_grad();
    Tensor value;
    {
      const auto pass = opt.perturb();
      value = closure();
    }
    opt.step();
    return value;
  });
  EXPECT_LT(loss, 0.1);
}

INSTANTIATE_TEST_SUITE_P(Modes, XorTest,
                         ::testing::Values("plain", "nesterov", "antithetic", "kept", "rademacher", "closure"),
                         [](const auto& info) { return std::string(info.param); });

// SGD with momentum on doubles, written out.
struct Reference {
  SSAMOptions options;
  std::vector<Tensor> momentum = {};
  void step(std::vector<Tensor>& weights, const std::vector<Tensor>& grads) {
    const bool first = momentum.empty();
    for (std::size_t i = 0; i < weights.size(); ++i) {
      Tensor g = (options.maximize() ? -grads[i] : grads[i]) + options.weight_decay() * weights[i];
      if (options.momentum() != 0) {
        if (first) {
          momentum.push_back(g.clone());
        } else {
          momentum[i] = options.momentum() * momentum[i] + (1 - options.dampening()) * g;
        }
        g = options.nesterov() ? g + options.momentum() * momentum[i] : momentum[i];
      }
      weights[i] = weights[i] - options.lr() * g;
    }
    if (!options.radius()) return;
    double norm = 0;
    for (const Tensor& w : weights) norm += w.square().sum().item<double>();
    norm = std::sqrt(norm);
    if (norm <= *options.radius()) return;
    for (Tensor& w : weights) w = w * (*options.radius() / norm);
  }
};

class ReferenceTest : public ::testing::TestWithParam<std::pair<const char*, SSAMOptions>> {};

TEST_P(ReferenceTest, ProducesReferenceValuesAlongTheWay) {
  SSAMOptions options = GetParam().second;
  options.noise_std(0.1).seed(21);
  const auto params = parameters(torch::kDouble);
  SSAM opt(params, options);
  WeightNoise same_noise(params, WeightNoiseOptions(0.1).seed(21));
  Reference reference{options};
  std::vector<Tensor> expected = copies(params);
  for (int k = 0; k < 20; ++k) {
    std::vector<Tensor> at;
    for (std::size_t i = 0; i < params.size(); ++i) {
      at.push_back(parameter(expected[i] + same_noise.noise(params[i])));
    }
    { const auto next_draw = same_noise.applied(); }
    loss_of(at).backward();
    reference.step(expected, grads_of(at));
    opt.zero_grad();
    {
      const auto pass = opt.perturb();
      loss_of(params).backward();
    }
    opt.step();
    for (std::size_t i = 0; i < params.size(); ++i) {
      EXPECT_TRUE(torch::allclose(params[i], expected[i], 1e-11, 1e-12)) << "step " << k << ", parameter " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Options, ReferenceTest,
                         ::testing::Values(std::pair("Plain", SSAMOptions(0.01)),
                                           std::pair("Momentum", SSAMOptions(0.01).momentum(0.9)),
                                           std::pair("Nesterov", SSAMOptions(0.01).momentum(0.9).nesterov(true)),
                                           std::pair("Dampening", SSAMOptions(0.01).momentum(0.9).dampening(0.4)),
                                           std::pair("WeightDecay", SSAMOptions(0.01).weight_decay(0.1)),
                                           std::pair("Maximize", SSAMOptions(0.001).maximize(true)),
                                           std::pair("Radius", SSAMOptions(0.01).momentum(0.9).radius(3.0))),
                         [](const auto& info) { return std::string(info.param.first); });

TEST(SsamTest, WithoutNoiseFollowsSgdOfTorch) {
  const auto ours = parameters(), theirs = parameters();
  SSAM a(ours, SSAMOptions(0.01).noise_std(0).momentum(0.9).weight_decay(0.01).nesterov(true));
  torch::optim::SGD b(theirs, torch::optim::SGDOptions(0.01).momentum(0.9).weight_decay(0.01).nesterov(true));
  for (int k = 0; k < 20; ++k) {
    a.zero_grad();
    b.zero_grad();
    loss_of(ours).backward();
    loss_of(theirs).backward();
    a.step();
    b.step();
    for (std::size_t i = 0; i < ours.size(); ++i) {
      EXPECT_TRUE(torch::allclose(ours[i], theirs[i], 1e-5, 1e-6)) << "step " << k << ", parameter " << i;
      EXPECT_TRUE(ours[i].numel() == 0 || !torch::equal(ours[i], parameters()[i]));
    }
  }
}

TEST(SsamTest, DefaultsAreThoseOfPython) {
  const SSAMOptions o;
  EXPECT_EQ(o.lr(), 0.1);
  EXPECT_EQ(o.noise_std(), 0.01);
  EXPECT_EQ(o.momentum() + o.dampening() + o.weight_decay() + o.clean_weight(), 0);
  EXPECT_FALSE(o.nesterov() || o.maximize() || o.antithetic() || o.keep_perturbed());
  EXPECT_EQ(o.distribution() + "/" + o.scale() + "/" + o.memory(), "gaussian/isotropic/copy");
  EXPECT_EQ(o.samples(), 1);
  EXPECT_FALSE(o.radius() || o.seed());
}

TEST(SsamTest, GroupsTakeFromTheOptimizerWhatTheyDoNotSet) {
  const Tensor a = parameter(torch::ones(3)), b = parameter(torch::ones(3)), c = parameter(torch::ones(3));
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<Tensor>{a});
  groups.emplace_back(std::vector<Tensor>{b}, std::make_unique<SSAMOptions>(SSAMOptions().noise_std(0)));
  SSAM opt(groups, SSAMOptions(0.5).noise_std(0.2).momentum(0.9));
  // 0.01 is also what a fresh SSAMOptions holds; set by name, it counts.
  opt.add_param_group(OptimizerParamGroup({c}, std::make_unique<SSAMOptions>(SSAMOptions(0.25).noise_std(0.01))));
  const auto of = [&](std::size_t g) { return static_cast<SSAMOptions&>(opt.param_groups()[g].options()); };
  EXPECT_EQ(of(0).noise_std(), 0.2);
  EXPECT_EQ(of(1).noise_std(), 0);
  EXPECT_EQ(of(1).lr(), 0.5);
  EXPECT_EQ(of(1).momentum(), 0.9);
  EXPECT_EQ(of(2).lr(), 0.25);
  EXPECT_EQ(of(2).noise_std(), 0.01);
  const auto pass = opt.perturb();
  EXPECT_FALSE(torch::equal(a, torch::ones(3)));
  EXPECT_TRUE(torch::equal(b, torch::ones(3)));
  EXPECT_FALSE(torch::equal(c, torch::ones(3)));
}

TEST(SsamTest, APlaceCountsOverAllGroups) {
  const auto flat = parameters(), split = parameters();
  SSAM a(flat, SSAMOptions(0.1).seed(3));
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<Tensor>(split.begin(), split.begin() + 2));
  groups.emplace_back(std::vector<Tensor>(split.begin() + 2, split.end()));
  SSAM b(groups, SSAMOptions(0.1).seed(3));
  const auto first = a.perturb();
  const auto second = b.perturb();
  EXPECT_TRUE(same_bits(flat, split));
}

TEST(SsamTest, LrSchedulersSetItsLearningRate) {
  const auto params = parameters();
  SSAM ours(params, SSAMOptions(0.8));
  torch::optim::SGD theirs(params, torch::optim::SGDOptions(0.8));
  torch::optim::StepLR a(ours, 2, 0.5), b(theirs, 2, 0.5);
  for (int k = 0; k < 7; ++k) {
    a.step();
    b.step();
    EXPECT_EQ(ours.param_groups()[0].options().get_lr(), theirs.param_groups()[0].options().get_lr());
  }
  EXPECT_LT(ours.param_groups()[0].options().get_lr(), 0.8);
}

TEST(SsamTest, AChangedNoiseStdTakesEffectAtTheNextPass) {
  const Tensor w = parameter(torch::zeros(5));
  SSAM opt({w}, SSAMOptions(0.1).noise_std(0.1).seed(1));
  Tensor small;
  {
    const auto pass = opt.perturb();
    small = w.detach().clone();
  }
  SSAM other({w}, SSAMOptions(0.1).noise_std(0.1).seed(1));
  static_cast<SSAMOptions&>(other.param_groups()[0].options()).noise_std(0.2);
  const auto pass = other.perturb();
  EXPECT_TRUE(torch::allclose(w, 2 * small));
}

TEST(SsamTest, AGradientOfATensorFrozenSinceIsUsedAsTorchDoes) {
  for (const bool kept : {false, true}) {
    const auto ours = parameters(), theirs = parameters();
    SSAM a(ours, SSAMOptions(0.1).noise_std(0.1).keep_perturbed(kept));
    torch::optim::SGD b(theirs, torch::optim::SGDOptions(0.1));
    a.train();
    for (std::size_t i = 0; i < ours.size(); ++i) {
      ours[i].mutable_grad() = torch::ones_like(ours[i]);
      theirs[i].mutable_grad() = torch::ones_like(ours[i]);
      ours[i].requires_grad_(false);
    }
    if (!kept) {
      const auto pass = a.perturb();
      for (const Tensor& p : ours) p.mutable_grad().mul_(1);
    }
    a.step();
    b.step();
    a.eval();
    for (std::size_t i = 0; i < ours.size(); ++i) EXPECT_TRUE(torch::allclose(ours[i], theirs[i])) << i;
  }
}

TEST(SsamTest, MomentumGoesOnInAModelThatChangesItsDtype) {
  for (const torch::Dtype dtype : {torch::kDouble, torch::kBFloat16}) {
    for (const bool kept : {false, true}) {
      torch::nn::Linear ours(3, 2), theirs(3, 2);
      {
        const torch::NoGradGuard no_grad;
        for (std::size_t i = 0; i < 2; ++i) theirs->parameters()[i].copy_(ours->parameters()[i]);
      }
      SSAM a(ours->parameters(), SSAMOptions(0.1).noise_std(0).momentum(0.9).keep_perturbed(kept));
      torch::optim::SGD b(theirs->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
      const auto step = [&](torch::Dtype now) {
        for (auto* model : {&ours, &theirs}) (*model)->forward(torch::ones({2, 3}, now)).square().sum().backward();
        a.step();
        b.step();
        a.zero_grad();
        b.zero_grad();
      };
      a.train();
      step(torch::kFloat);
      a.eval();
      ours->to(dtype);
      theirs->to(dtype);
      a.train();
      step(dtype);
      step(dtype);
      a.eval();
      const double tolerance = dtype == torch::kDouble ? 1e-5 : 0.05;
      for (std::size_t i = 0; i < 2; ++i) {
        const Tensor x = ours->parameters()[i], y = theirs->parameters()[i];
        EXPECT_EQ(x.scalar_type(), dtype);
        EXPECT_TRUE(torch::allclose(x, y, tolerance, tolerance)) << x << y;
      }
    }
  }
}

TEST(SsamTest, ParametersWithoutGradientAreSkipped) {
  const auto params = parameters();
  SSAM opt(params, SSAMOptions(0.1).momentum(0.9));
  {
    const auto pass = opt.perturb();
    loss_of({params[0]}).backward();
  }
  opt.step();
  EXPECT_FALSE(same_bits(params[0], parameters()[0]));
  EXPECT_TRUE(same_bits(params[1], parameters()[1]));
  EXPECT_EQ(opt.state().size(), 1U);
}

TEST(SsamTest, MovesAndWorksThroughTheBaseClass) {
  const auto params = parameters();
  SSAM first(params, SSAMOptions(0.1));
  SSAM opt(std::move(first));
  torch::optim::Optimizer& base = opt;
  const Tensor loss = base.step([&] {
    base.zero_grad();
    Tensor value = loss_of(params);
    value.backward();
    return value;
  });
  EXPECT_GT(loss.item<double>(), -1e9);
  EXPECT_FALSE(same_bits(params[0], parameters()[0]));
}

}  // namespace
}  // namespace torch_ssam
