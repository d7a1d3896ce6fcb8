// DiagonalLinear in C++: values, gradients against finite differences and autograd of the written-out product, second
// derivatives, its own noise, and what modules of LibTorch do (clone, save, print). Kernels: test_kernels.cpp.
#include <ATen/autocast_mode.h>

#include <sstream>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;

DiagonalLinear make(std::int64_t features, std::int64_t depth, bool readout, double noise_std = 0) {
  auto options = DiagonalLinearOptions(features, depth).noise_std(noise_std).seed(17);
  if (readout) options.readout("sum");
  DiagonalLinear layer(options);
  layer->to(torch::kDouble);
  torch::manual_seed(1);
  const torch::NoGradGuard no_grad;
  layer->weight.copy_(torch::randn_like(layer->weight));
  return layer;
}

Tensor written_out(const Tensor& x, const Tensor& weight, bool readout) {
  const Tensor y = x * weight.prod(0);
  return readout ? y.sum(-1) : y;
}

class DiagonalTest : public ::testing::TestWithParam<std::tuple<int, bool>> {};

TEST_P(DiagonalTest, ValuesAndAllDerivativesAreThoseOfTheWrittenOutProduct) {
  const auto [depth, readout] = GetParam();
  for (const std::int64_t features : {1, 7, 65}) {
    DiagonalLinear layer = make(features, depth, readout);
    const Tensor x = parameter(torch::randn({2, 3, features}, torch::kDouble));
    const Tensor probe_x = torch::randn_like(x), probe_w = torch::randn_like(layer->weight);
    const auto derivatives = [&](const Tensor& y) {
      const Tensor loss = (y * y).sum() + y.sum();
      auto first = torch::autograd::grad({loss}, {x, layer->weight}, {}, true, /*create_graph=*/true);
      const Tensor along = (first[0] * probe_x).sum() + (first[1] * probe_w).sum();
      auto second = torch::autograd::grad({along}, {x, layer->weight}, {}, true, true);
      auto third =
          torch::autograd::grad({second[0].sum() + second[1].square().sum()}, {x, layer->weight}, {}, {}, false,
                                /*allow_unused=*/true);
      first.insert(first.end(), second.begin(), second.end());
      first.insert(first.end(), third.begin(), third.end());
      return first;
    };
    const Tensor y = layer(x), expected = written_out(x, layer->weight, readout);
    EXPECT_TRUE(torch::allclose(y, expected, 1e-12, 1e-14));
    const auto ours = derivatives(y), theirs = derivatives(expected);
    for (std::size_t i = 0; i < ours.size(); ++i) {
      EXPECT_TRUE(torch::allclose(ours[i], theirs[i], 1e-9, 1e-10)) << "derivative " << i << ", features " << features;
    }
  }
}

TEST_P(DiagonalTest, GradientsAgreeWithFiniteDifferences) {
  const auto [depth, readout] = GetParam();
  DiagonalLinear layer = make(5, depth, readout);
  const Tensor x = torch::randn({4, 5}, torch::kDouble);
  const auto loss = [&] { return layer(x).sin().sum(); };
  loss().backward();
  const Tensor grad = layer->weight.grad().flatten();
  const torch::NoGradGuard no_grad;
  const Tensor flat = layer->weight.view(-1);
  for (std::int64_t i = 0; i < flat.numel(); ++i) {
    const double h = 1e-6;
    flat[i] += h;
    const double up = loss().item<double>();
    flat[i] -= 2 * h;
    const double down = loss().item<double>();
    flat[i] += h;
    EXPECT_NEAR(grad[i].item<double>(), (up - down) / (2 * h), 1e-7) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Depths, DiagonalTest, ::testing::Combine(::testing::Values(1, 2, 3, 5), ::testing::Bool()),
                         [](const auto& info) {
                           return "Depth" + std::to_string(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "Readout" : "");
                         });

TEST(DiagonalLinearTest, ZeroWeightsHaveExactGradients) {
  DiagonalLinear layer = make(3, 3, false);
  {
    const torch::NoGradGuard no_grad;
    layer->weight[0].zero_();
  }
  layer(torch::ones({2, 3}, torch::kDouble)).sum().backward();
  EXPECT_TRUE(torch::equal(layer->weight.grad()[0], 2 * layer->weight[1] * layer->weight[2]));
  EXPECT_TRUE(torch::equal(layer->weight.grad()[1], torch::zeros(3, torch::kDouble)));
}

TEST(DiagonalLinearTest, OnlyWhatIsAskedForGetsAGradient) {
  DiagonalLinear layer = make(3, 2, false);
  layer->weight.requires_grad_(false);
  const Tensor x = parameter(torch::ones({2, 3}, torch::kDouble));
  layer(x).sum().backward();
  EXPECT_FALSE(layer->weight.grad().defined());
  EXPECT_TRUE(torch::equal(x.grad()[0], layer->product()));
  const torch::NoGradGuard no_grad;
  EXPECT_FALSE(layer(x).requires_grad());
}

TEST(DiagonalLinearTest, ItsOwnNoiseIsThatOfSsamBitForBit) {
  for (const bool readout : {false, true}) {
    DiagonalLinear noisy = make(70, 3, readout, 0.1), plain = make(70, 3, readout);
    SSAM a(noisy->parameters(), SSAMOptions(0.05).noise_std(0));
    SSAM b(plain->parameters(), SSAMOptions(0.05).noise_std(0.1).seed(17));
    const Tensor x = torch::randn({9, 70}, torch::kDouble);
    for (int k = 0; k < 5; ++k) {
      a.zero_grad();
      b.zero_grad();
      noisy(x).square().sum().backward();
      a.step();
      {
        const auto pass = b.perturb();
        plain(x).square().sum().backward();
      }
      b.step();
      EXPECT_TRUE(same_bits(noisy->weight, plain->weight)) << k;
    }
    EXPECT_EQ(noisy->generator[1].item<std::int64_t>(), 5);
  }
}

TEST(DiagonalLinearTest, SecondDerivativesSeeTheSameNoise) {
  DiagonalLinear noisy = make(7, 3, false, 0.3), plain = make(7, 3, false);
  WeightNoise noise({plain->weight}, WeightNoiseOptions(0.3).seed(17));
  const Tensor x = torch::randn({4, 7}, torch::kDouble);
  const auto curvature = [&](DiagonalLinear& layer) {
    const Tensor loss = layer(x).square().sum();
    const Tensor grad = torch::autograd::grad({loss}, {layer->weight}, {}, true, true)[0];
    return torch::autograd::grad({grad.square().sum()}, {layer->weight})[0];
  };
  const Tensor ours = curvature(noisy);
  const auto pass = noise.applied();
  EXPECT_TRUE(torch::allclose(ours, curvature(plain), 1e-10, 1e-12));
}

TEST(DiagonalLinearTest, InEvalThereIsNoNoise) {
  DiagonalLinear layer = make(5, 2, false, 0.5);
  layer->eval();
  const Tensor x = torch::randn({3, 5}, torch::kDouble);
  EXPECT_TRUE(torch::allclose(layer(x), x * layer->product()));
  EXPECT_EQ(layer->generator[1].item<std::int64_t>(), 0);
}

TEST(DiagonalLinearTest, StartsAtInitScale) {
  DiagonalLinear same(DiagonalLinearOptions(3).init_scale(2.0)),
      each(DiagonalLinearOptions(3, 2).init_scale({2.0, 0.5}));
  EXPECT_TRUE(torch::equal(same->weight, torch::full({2, 3}, 2.0)));
  EXPECT_TRUE(torch::equal(each->product(), torch::ones(3)));
  EXPECT_TRUE(torch::equal(each->balance_gaps()[0][1], torch::full({3}, 3.75)));
  EXPECT_EQ(each->balance_gaps().sizes(), (std::vector<std::int64_t>{2, 2, 3}));
}

TEST(DiagonalLinearTest, CastingAModelKeepsTheSeed) {
  const std::int64_t seed = (std::int64_t{1} << 62) + 1;  // no double holds it
  torch::nn::Sequential model(DiagonalLinear(DiagonalLinearOptions(3).noise_std(0.1).seed(seed)));
  model->to(torch::kDouble);
  model->to(torch::kCPU, torch::kBFloat16);
  model->to(torch::kCPU);
  EXPECT_EQ(model->parameters()[0].scalar_type(), torch::kBFloat16);
  const Tensor generator = model->buffers()[0];
  EXPECT_EQ(generator.scalar_type(), torch::kLong);
  EXPECT_EQ(generator[0].item<std::int64_t>(), seed);
  EXPECT_EQ(model->forward(torch::ones({2, 3}, torch::kBFloat16)).sizes(), (std::vector<std::int64_t>{2, 3}));
}

TEST(DiagonalLinearTest, PrintsItsOptions) {
  std::ostringstream text;
  text << DiagonalLinear(DiagonalLinearOptions(100, 3)) << ' '
       << DiagonalLinear(DiagonalLinearOptions(4).readout("sum").noise_std(0.5));
  EXPECT_EQ(text.str(),
            "torch_ssam::DiagonalLinear(features=100, depth=3) "
            "torch_ssam::DiagonalLinear(features=4, depth=2, readout='sum', noise_std=0.5)");
}

TEST(DiagonalLinearTest, ClonesSavesAndLoadsWithItsNoise) {
  DiagonalLinear layer = make(5, 2, false, 0.5);
  const Tensor x = torch::randn({3, 5}, torch::kDouble);
  layer(x);
  auto copy = std::dynamic_pointer_cast<DiagonalLinearImpl>(layer->clone());
  std::stringstream file;
  torch::save(layer, file);
  DiagonalLinear loaded = make(5, 2, false, 0.5);
  torch::load(loaded, file);
  const Tensor next = layer(x);
  EXPECT_TRUE(same_bits(next, copy->forward(x)));
  EXPECT_TRUE(same_bits(next, loaded(x)));
  EXPECT_NE(copy->weight.data_ptr(), layer->weight.data_ptr());
}

TEST(DiagonalLinearTest, EmptyInputsAndFeaturesWork) {
  DiagonalLinear layer(3), none(0);
  EXPECT_EQ(layer(torch::ones({0, 3})).sizes(), (std::vector<std::int64_t>{0, 3}));
  EXPECT_EQ(none(torch::ones({2, 0})).sizes(), (std::vector<std::int64_t>{2, 0}));
  layer(torch::ones({0, 3})).sum().backward();
  EXPECT_TRUE(torch::equal(layer->weight.grad(), torch::zeros({2, 3})));
}

TEST(DiagonalLinearTest, UnderAutocastItComputesAsLinearDoes) {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    DiagonalLinear layer(3);
    layer->to(dtype);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    const Tensor y = layer(torch::full({2, 3}, 2.0F));
    at::autocast::set_autocast_enabled(at::kCPU, false);
    EXPECT_EQ(y.scalar_type(), at::autocast::get_autocast_dtype(at::kCPU));
    y.sum().backward();
    EXPECT_TRUE(torch::equal(layer->weight.grad(), torch::full({2, 3}, 4.0, dtype)));
  }
}

TEST(TheoryTest, SimulateAndTheClosedFormMeetInOneProgram) {
  SimulateOptions options;
  options.target = {1.0};
  options.noise_std = {0.5};
  options.steps = 4000;
  options.lr = 0.05;
  options.expected = true;
  const SimulationResult run = simulate(options);
  const double limit = theory::limit_product(options.target, theory::NoiseStd(0.5), 2)[0];
  EXPECT_NEAR(run.product.back(), limit, 1e-9);
  EXPECT_NEAR(limit, 0.75, 1e-12);  // |w*| - eta^2
}

}  // namespace
}  // namespace torch_ssam
