// Noise that follows the weights in the C++ front: every scale against its formula in double, in every way to drive it,
// and the sums of "fisher" in checkpoints. Bits are compared with Python's in tests/python/test_cpp_parity.py.
#include <sstream>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;

constexpr double kStd = 0.3;

std::vector<Tensor> filters_of(const Tensor& w) {
  const Tensor wide = w.detach().to(torch::kDouble);
  return w.dim() < 2 ? std::vector<Tensor>{wide} : wide.unbind(0);
}

// One number for each element, written out from the definitions. F: one number a filter.
Tensor scale_of(const std::string& scale, const Tensor& w, const Tensor& fisher, double factor) {
  const Tensor wide = w.detach().to(torch::kDouble);
  if (scale == "element") return wide.abs() + 0.01;
  if (scale == "tensor") return torch::full_like(wide, wide.norm().item<double>());
  if (scale == "isotropic") return torch::ones_like(wide);
  const auto largest = [](const Tensor& of) { return of.numel() == 0 ? 0.0 : of.abs().max().item<double>(); };
  if (scale == "tensor_absmax") return torch::full_like(wide, largest(wide));
  std::vector<Tensor> scales;
  const auto filters = filters_of(w);
  for (std::size_t f = 0; f < filters.size(); ++f) {
    double norm = scale == "absmax" ? largest(filters[f]) : filters[f].norm().item<double>();
    if (scale == "fisher") {
      norm /= std::sqrt(1.0 + factor * fisher[static_cast<std::int64_t>(f)].item<double>());
    }
    scales.push_back(torch::full_like(filters[f], norm));
  }
  return w.dim() < 2 ? scales[0] : torch::stack(scales);
}

Tensor squares_of(const Tensor& grad) {
  std::vector<Tensor> sums;
  for (const Tensor& filter : filters_of(grad)) sums.push_back(filter.square().sum());
  return torch::stack(sums);
}

const SSAMParamState& state_of(SSAM& opt, const Tensor& p) {
  return static_cast<SSAMParamState&>(*opt.state().at(p.unsafeGetTensorImpl()));
}

void step_perturbed(SSAM& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  for ([[maybe_unused]] const auto k : opt.perturbations()) loss_of(params).backward();
  opt.step();
}

void step_kept(SSAM& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  loss_of(params).backward();
  opt.step();
}

TEST(ScaleTest, NoiseIsTheStandardNoiseTimesItsScale) {
  for (const char* scale : {"tensor", "filter", "element", "fisher", "absmax", "tensor_absmax"}) {
    const auto params = parameters(torch::kDouble);
    const auto clean = copies(params);
    WeightNoise standard(params, WeightNoiseOptions(1.0).seed(3));
    std::vector<Tensor> z;
    for (const Tensor& p : params) z.push_back(standard.noise(p));
    SSAM opt(params, SSAMOptions(0.1).noise_std(kStd).scale(scale).seed(3));
    {
      const auto pass = opt.perturb();
      for (std::size_t i = 0; i < params.size(); ++i) {
        // F is 0 at first; scales by rows are stored as float.
        const Tensor scales = scale_of(scale, clean[i], torch::zeros(33), 0.1);
        const Tensor expected = clean[i] + kStd * scales * z[i];
        const bool is_range = std::string(scale).ends_with("absmax");  // there noise and weight may nearly cancel
        EXPECT_TRUE(is_range || torch::allclose(params[i], expected, 1e-6, 1e-7)) << scale << " tensor " << i;
        const Tensor noise = kStd * scales * z[i];
        EXPECT_TRUE(((params[i] - expected).abs() <= 1e-7 * noise.abs() + 1e-14).all().item<bool>()) << scale << i;
        EXPECT_TRUE(params[i].numel() == 0 || (params[i] != clean[i]).all().item<bool>()) << scale << " tensor " << i;
      }
    }
    EXPECT_TRUE(same_bits(params, clean)) << scale;
  }
}

TEST(ScaleTest, KeptPerturbedGivesTheBitsOfThePerturbForm) {
  for (const char* scale : {"tensor", "filter", "element", "fisher", "absmax", "tensor_absmax"}) {
    for (const double momentum : {0.0, 0.9}) {
      const auto kept = parameters(), plain = parameters();
      SSAMOptions options = SSAMOptions(0.01).noise_std(0.2).momentum(momentum).scale(scale).fisher_factor(3.0).seed(5);
      SSAM b(plain, options);
      SSAM a(kept, options.keep_perturbed(true));
      a.train();
      for (int k = 0; k < 4; ++k) {
        step_kept(a, kept);
        step_perturbed(b, plain);
      }
      a.eval();
      EXPECT_TRUE(same_bits(kept, plain)) << scale << " momentum " << momentum;
      EXPECT_FALSE(same_bits(kept, parameters())) << scale;
    }
  }
}

TEST(ScaleTest, FisherSumsForgetAndTakeTheGradientOfEachStep) {
  const auto params = parameters(torch::kDouble);
  SSAM opt(params, SSAMOptions(0.01).noise_std(kStd).scale("fisher").fisher_decay(0.75).fisher_factor(2.0).seed(3));
  WeightNoise standard(params, WeightNoiseOptions(1.0).seed(3));
  std::vector<Tensor> fisher;
  for (const Tensor& p : params) fisher.push_back(torch::zeros(p.dim() < 2 ? 1 : p.size(0), torch::kDouble));
  for (int k = 0; k < 3; ++k) {
    const auto clean = copies(params);
    std::vector<Tensor> z;
    for (const Tensor& p : params) z.push_back(standard.noise(p));
    { const auto same_draw = standard.applied(); }
    opt.zero_grad();
    {
      const auto pass = opt.perturb();
      for (std::size_t i = 0; i < params.size(); ++i) {
        const Tensor expected = clean[i] + kStd * scale_of("fisher", clean[i], fisher[i], 2.0) * z[i];
        EXPECT_TRUE(torch::allclose(params[i], expected, 1e-6, 1e-7)) << "step " << k << " tensor " << i;
      }
      loss_of(params).backward();
    }
    opt.step();
    for (std::size_t i = 0; i < params.size(); ++i) {
      fisher[i] = 0.75 * fisher[i] + squares_of(params[i].grad());
      const Tensor& own = state_of(opt, params[i]).fisher();
      EXPECT_TRUE(torch::allclose(own.to(torch::kDouble), fisher[i], 1e-6, 0)) << "step " << k << " tensor " << i;
    }
  }
  // At learning rate 0 a step trains nothing, and is not looked at.
  static_cast<SSAMOptions&>(opt.param_groups()[0].options()).lr(0);
  const Tensor before = state_of(opt, params[1]).fisher().clone();
  step_perturbed(opt, params);
  EXPECT_TRUE(same_bits(before, state_of(opt, params[1]).fisher()));
}

TEST(ScaleTest, FisherResumesBitForBitFromAFileAndFromAStateDict) {
  for (const bool kept : {false, true}) {
    const auto params = parameters();
    const auto options = SSAMOptions(0.01).noise_std(0.2).scale("fisher").fisher_factor(2.0).keep_perturbed(kept);
    const auto step = kept ? &step_kept : &step_perturbed;
    SSAM opt(params, options);
    opt.train();
    for (int k = 0; k < 3; ++k) step(opt, params);
    std::stringstream file;
    torch::save(opt, file);
    const auto weights = copies(params);
    const c10::IValue dict = opt.state_dict();
    const auto from_file = parameters(), from_dict = parameters();
    SSAM a(from_file, SSAMOptions(9.0).keep_perturbed(kept)), b(from_dict, SSAMOptions(9.0).keep_perturbed(kept));
    const torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < params.size(); ++i) {
      from_file[i].copy_(weights[i]);
      from_dict[i].copy_(weights[i]);
    }
    torch::load(a, file);
    b.load_state_dict(dict);
    const torch::AutoGradMode grad(true);
    a.train();
    b.train();
    for (int k = 0; k < 3; ++k) {
      step(opt, params);
      step(a, from_file);
      step(b, from_dict);
    }
    EXPECT_TRUE(same_bits(params, from_file)) << kept;
    EXPECT_TRUE(same_bits(params, from_dict)) << kept;
    for (std::size_t i = 0; i < params.size(); ++i) {
      EXPECT_TRUE(same_bits(state_of(opt, params[i]).fisher(), state_of(a, from_file[i]).fisher()));
    }
  }
}

TEST(ScaleTest, FisherSumsOfOtherShapesAreRefusedAndNothingChanges) {
  const Tensor w = parameter(torch::ones({4, 3})), other = parameter(torch::ones({4, 3}));
  SSAM opt({w}, SSAMOptions(0.1).scale("fisher").seed(1));
  step_perturbed(opt, {w});
  auto dict = opt.state_dict().toGenericDict();
  auto state = dict.at("state").toGenericDict();
  state.at(0).toGenericDict().insert_or_assign("fisher", torch::ones(3));
  SSAM target({other}, SSAMOptions(0.2));
  EXPECT_MESSAGE(target.load_state_dict(dict), "has 3 Fisher sums for a parameter of shape [4, 3]; expected 4");
  EXPECT_EQ(target.param_groups()[0].options().get_lr(), 0.2);
  EXPECT_TRUE(target.state().empty());
}

TEST(ScaleTest, WeightNoiseAddsWhatItSaysItAdds) {
  for (const char* scale : {"isotropic", "tensor", "filter", "element", "absmax", "tensor_absmax"}) {
    const auto params = parameters(torch::kDouble);
    const auto clean = copies(params);
    WeightNoise noise(params, WeightNoiseOptions(kStd).scale(scale).seed(4));
    std::vector<Tensor> before;
    for (const Tensor& p : params) before.push_back(noise.noise(p, 2));
    const auto pass = noise.applied(2);
    for (std::size_t i = 0; i < params.size(); ++i) {
      EXPECT_TRUE(torch::allclose(params[i], clean[i] + before[i], 1e-14, 1e-14)) << scale << " tensor " << i;
      EXPECT_TRUE(same_bits(before[i], noise.noise(params[i], 2))) << scale;  // of the clean weights, inside too
    }
  }
  EXPECT_MESSAGE(WeightNoise({parameter(torch::ones(3))}, WeightNoiseOptions(0.1).scale("fisher")),
                 "which WeightNoise has no gradients for");
}

}  // namespace
}  // namespace torch_ssam
