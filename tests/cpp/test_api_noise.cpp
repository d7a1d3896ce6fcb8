// WeightNoise for any other optimizer: the same noise as SSAM's, bit for bit, on and off.
#include <c10/util/Exception.h>

#include <cmath>
#include <sstream>
#include <utility>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

TEST(WeightNoiseTest, IsTheNoiseOfSsam) {
  const auto a = parameters(), b = parameters();
  SSAM opt(a, SSAMOptions(0.1).noise_std(0.2).seed(9));
  WeightNoise noise(b, WeightNoiseOptions(0.2).seed(9));
  for (int k = 0; k < 3; ++k) {
    const auto first = opt.perturb();
    const auto second = noise.applied();
    EXPECT_TRUE(same_bits(a, b)) << k;
  }
  EXPECT_TRUE(same_bits(b, parameters()));
  EXPECT_EQ(noise.draw(), 3);
  EXPECT_EQ(noise.seed(), 9);
}

TEST(WeightNoiseTest, NoiseIsWhatAppliedAdds) {
  const Tensor w = parameter(torch::zeros({5, 3}));
  WeightNoise noise({parameter(torch::ones(2)), w}, WeightNoiseOptions(0.3).distribution("rademacher").seed(1));
  const Tensor expected = noise.noise(w, 4);
  EXPECT_TRUE(torch::allclose(expected.abs(), torch::full({5, 3}, 0.3)));
  {
    const auto pass = noise.applied(4);
    EXPECT_TRUE(torch::equal(w, expected));
  }
  const auto mirrored = noise.applied(4, /*negate=*/true, /*advance=*/false);
  EXPECT_FALSE(torch::equal(w, -expected));  // the next draw
}

TEST(WeightNoiseTest, WithoutAdvanceTheSameDrawComesAgainMirrored) {
  const Tensor w = parameter(torch::zeros(70));
  WeightNoise noise({w}, WeightNoiseOptions(0.3).seed(1));
  Tensor plus, minus;
  {
    const auto pass = noise.applied(0, false, /*advance=*/false);
    plus = w.detach().clone();
  }
  {
    const auto pass = noise.applied(0, /*negate=*/true);
    minus = w.detach().clone();
  }
  EXPECT_TRUE(torch::equal(plus, -minus));
  EXPECT_EQ(noise.draw(), 1);
}

TEST(WeightNoiseTest, GroupsHaveTheirOwnNoise) {
  const Tensor quiet = parameter(torch::zeros(10)), loud = parameter(torch::zeros(10));
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<Tensor>{quiet}, std::make_unique<WeightNoiseOptions>(0.0));
  groups.emplace_back(std::vector<Tensor>{loud});
  WeightNoise noise(groups, WeightNoiseOptions(0.5).seed(2));
  const auto pass = noise.applied();
  EXPECT_TRUE(torch::equal(quiet, torch::zeros(10)));
  EXPECT_GT(loud.abs().min().item<float>(), 0);
}

TEST(WeightNoiseTest, GroupsTakeFromTheDefaultsWhatTheyDoNotSet) {
  const Tensor own = parameter(torch::zeros(10)), shared = parameter(torch::zeros(10));
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<Tensor>{own}, std::make_unique<WeightNoiseOptions>(0.25));
  groups.emplace_back(std::vector<Tensor>{shared}, std::make_unique<WeightNoiseOptions>());
  WeightNoise noise(groups, WeightNoiseOptions(0.5).distribution("rademacher"));
  const auto pass = noise.applied();
  EXPECT_TRUE(torch::equal(own.abs(), torch::full({10}, 0.25)));
  EXPECT_TRUE(torch::equal(shared.abs(), torch::full({10}, 0.5)));
}

TEST(WeightNoiseTest, WithoutACopyItIsTheSameNoise) {
  const auto a = parameters(), b = parameters();
  WeightNoise copied(a, WeightNoiseOptions(0.2).seed(9)),
      regenerated(b, WeightNoiseOptions(0.2).memory("regenerate").seed(9));
  {
    const auto first = copied.applied();
    const auto second = regenerated.applied();
    EXPECT_TRUE(same_bits(a, b));
  }
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-6, 1e-7)) << i;
  EXPECT_EQ(regenerated.draw(), 1);
}

TEST(WeightNoiseTest, AdamTakesGradientsAtNoisyWeightsAndUpdatesCleanOnes) {
  const Tensor w = parameter(torch::tensor({3.0, -2.0}, torch::kDouble));
  torch::optim::Adam adam({w}, torch::optim::AdamOptions(0.05));
  WeightNoise noise({w}, WeightNoiseOptions(0.05).seed(3));
  for (int k = 0; k < 300; ++k) {
    adam.zero_grad();
    {
      const auto pass = noise.applied();
      (w - 1).square().sum().backward();
    }
    adam.step();
  }
  EXPECT_LT((w - 1).abs().max().item<double>(), 0.05);
}

TEST(WeightNoiseTest, SavesAndLoadsSeedAndDraw) {
  const auto params = parameters();
  WeightNoise noise(params, WeightNoiseOptions(0.2).seed(9));
  { const auto pass = noise.applied(); }
  std::stringstream file;
  torch::save(noise, file);
  const auto other = parameters();
  WeightNoise resumed(other, WeightNoiseOptions(0.2));
  torch::load(resumed, file);
  EXPECT_EQ(resumed.draw(), 1);
  const auto a = noise.applied();
  const auto b = resumed.applied();
  EXPECT_TRUE(same_bits(params, other));
}

TEST(WeightNoiseTest, SeedNoneFollowsTorchManualSeed) {
  const auto params = parameters();
  torch::manual_seed(1);
  const WeightNoise a(params);
  torch::manual_seed(1);
  const SSAM b(params);
  const SSAM c(params);
  EXPECT_EQ(a.seed(), b.seed());
  EXPECT_NE(b.seed(), c.seed());
}

// --- noise that is large beside the weights

struct Heard : c10::WarningHandler {
  void process(const c10::Warning& warning) override { messages.push_back(warning.msg()); }
  std::vector<std::string> messages;
};

template <typename Call>
std::vector<std::string> heard_in(const Call& call) {
  Heard heard;
  const c10::WarningUtils::WarningHandlerGuard guard(&heard);
  call();
  return heard.messages;
}

// Signs of this size: their root mean square is known.
Tensor of_size(double rms, const std::vector<std::int64_t>& shape, torch::Dtype dtype = torch::kFloat) {
  Tensor values = torch::full(shape, rms, torch::kDouble);
  if (values.numel() > 0) values.view(-1).slice(0, 0, values.numel(), 2).neg_();
  return parameter(values.to(dtype));
}

TEST(NoiseSizeTest, NoiseAboveHalfOfTheRmsWeightIsNamedAndComesAgainWhereItHasDoubled) {
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
    const std::vector<Tensor> params{of_size(1, {3}), of_size(1, {2, 2}, dtype), of_size(0.25, {3, 4}, dtype)};
    SSAM opt(params, SSAMOptions(0.0).noise_std(0.5).seed(0).keep_perturbed(true));
    auto& options = static_cast<SSAMOptions&>(opt.param_groups()[0].options());
    const auto first = heard_in([&] { opt.train(); });
    ASSERT_EQ(first.size(), 1U);
    EXPECT_NE(first[0].find("noise_std 0.5 is 2 times the RMS weight 0.25 of parameter 2 of shape [3, 4]: "),
              std::string::npos)
        << first[0];
    EXPECT_NE(first[0].find("Take a noise_std below 0.125"), std::string::npos) << first[0];
    for (const Tensor& p : params) p.mutable_grad() = torch::zeros_like(p);
    for (const auto& [wanted, expected] : {std::pair{0.9, 0U}, {1.1, 1U}, {0.1, 0U}, {2.1, 0U}, {2.3, 1U}}) {
      options.noise_std(wanted);
      const auto messages = heard_in([&] { opt.step(); });
      EXPECT_EQ(messages.size(), expected) << wanted;
      for (const std::string& message : messages) {
        EXPECT_NE(message.find("0.25 of parameter 2 of shape [3, 4], and more than half of it for 1 other"),
                  std::string::npos)
            << message;
      }
    }
  }
}

TEST(NoiseSizeTest, SmallNoiseOtherScalesVectorsZerosAndFrozenTensorsAreNoReason) {
  const auto quiet = [](const std::vector<Tensor>& params, double noise_std, const char* scale = "isotropic") {
    const auto messages = heard_in([&] {
      WeightNoise noise(params, WeightNoiseOptions(noise_std).scale(scale).seed(0));
      const auto pass = noise.applied();
    });
    return messages.empty();
  };
  EXPECT_FALSE(quiet({of_size(1, {3, 4})}, 0.51));
  EXPECT_TRUE(quiet({of_size(1, {3, 4})}, 0.49));
  EXPECT_TRUE(quiet({of_size(0.01, {3}), of_size(0.01, {})}, 0.5));
  EXPECT_TRUE(quiet({parameter(torch::zeros({3, 4})), of_size(1, {0, 4})}, 0.5));
  EXPECT_TRUE(quiet({of_size(0.01, {3, 4})}, 0.5, "filter"));
  EXPECT_TRUE(quiet({of_size(0.01, {3, 4})}, 0.5, "element"));
  EXPECT_TRUE(quiet({of_size(1, {3, 4}), of_size(0.01, {3, 4}).requires_grad_(false)}, 0.4));
  EXPECT_TRUE(quiet({parameter(torch::full({2, 2}, std::nan("")))}, 0.5));
}

}  // namespace
}  // namespace torch_ssam
