// master_dtype in the C++ front: Float clean weights and momentum of 16-bit parameters. Checked against SSAM on Float
// copies that the gradients of the 16-bit parameters drive; bits are compared with Python's in
// tests/python/test_cpp_parity.py.
#include <cmath>
#include <cstring>
#include <functional>
#include <sstream>
#include <utility>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;

const torch::Dtype kDtypes[] = {torch::kBFloat16, torch::kHalf};

template <typename Rule>
OptionsOf<Rule> stateless_options() {
  return OptionsOf<Rule>(0.02).noise_std(0.05).weight_decay(0.01).seed(7).master_dtype(torch::kFloat);
}

template <typename Rule>
OptionsOf<Rule> options_of_test() {
  return Rule::with_state(stateless_options<Rule>());
}

void step_perturbed(NoiseDriver& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  {
    const auto pass = opt.perturb();
    loss_of(params).backward();
  }
  opt.step();
}

void step_kept(NoiseDriver& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  loss_of(params).backward();
  opt.step();
}

std::vector<Tensor> rounded(const std::vector<Tensor>& tensors, torch::Dtype dtype) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(t.detach().to(dtype));
  return result;
}

// The masters and momentum buffers that a checkpoint would have, parameter by parameter.
std::vector<Tensor> saved(const NoiseDriver& opt, const char* name) {
  const auto dict = opt.state_dict().toGenericDict();
  const auto state = dict.at("state").toGenericDict();
  std::vector<Tensor> result;
  const auto count = static_cast<std::int64_t>(opt.param_groups()[0].params().size());
  for (std::int64_t place = 0; place < count; ++place) {
    if (!state.contains(place)) continue;
    const auto entry = state.at(place).toGenericDict();
    if (entry.contains(name)) result.push_back(entry.at(name).toTensor().clone());
  }
  return result;
}

void write(const std::vector<Tensor>& to, const std::vector<Tensor>& from) {
  const torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < to.size(); ++i) Tensor(to[i]).copy_(from[i]);
}

// The optimizer on Float copies; the 16-bit parameters get their roundings and give the gradients.
template <typename Rule>
std::vector<Tensor> float_copies(torch::Dtype dtype, OptionsOf<Rule> options, int steps) {
  const auto params = parameters(dtype);
  std::vector<Tensor> wide;
  for (const Tensor& p : params) wide.push_back(parameter(p.detach().to(torch::kFloat)));
  OptimizerOf<Rule> opt(wide, options.master_dtype(std::nullopt));
  for (int k = 0; k < steps; ++k) {
    {
      const auto pass = opt.perturb();
      write(params, wide);
      for (const Tensor& p : params) p.mutable_grad().reset();
      loss_of(params).backward();
      for (std::size_t i = 0; i < wide.size(); ++i) wide[i].mutable_grad() = params[i].grad().to(torch::kFloat);
    }
    opt.step();
  }
  return copies(wide);
}

template <typename Rule>
class MastersTest : public ::testing::Test {};
TYPED_TEST_SUITE(MastersTest, Rules, RuleNames);

TYPED_TEST(MastersTest, MastersHaveTheBitsOfFloatCopiesInBothForms) {
  for (const torch::Dtype dtype : kDtypes) {
    for (const auto& options :
         {options_of_test<TypeParam>(), stateless_options<TypeParam>(), options_of_test<TypeParam>().radius(2.0),
          options_of_test<TypeParam>().noise_std(0), options_of_test<TypeParam>().scale("filter"),
          options_of_test<TypeParam>().scale("fisher"),
          options_of_test<TypeParam>().scale("element").distribution("rademacher")}) {
      const auto expected = float_copies<TypeParam>(dtype, options, 4);
      for (const bool kept : {false, true}) {
        const auto params = parameters(dtype);
        OptimizerOf<TypeParam> opt(params, OptionsOf<TypeParam>(options).keep_perturbed(kept));
        opt.train();
        for (int k = 0; k < 4; ++k) kept ? step_kept(opt, params) : step_perturbed(opt, params);
        opt.eval();
        EXPECT_TRUE(same_bits(saved(opt, "master"), expected)) << dtype << " kept " << kept;
        EXPECT_TRUE(same_bits(copies(params), rounded(expected, dtype))) << dtype << " kept " << kept;
        for (const Tensor& buffer : saved(opt, TypeParam::kFirstBuffer)) EXPECT_EQ(buffer.scalar_type(), torch::kFloat);
      }
    }
  }
}

TEST(SgdMastersTest, UpdatesBelowHalfAnUlpAddUpWithMastersAndVanishWithout) {
  for (const bool with : {false, true}) {
    const Tensor w = torch::ones({65}, torch::kBFloat16).requires_grad_(true);
    SSAMOptions options = SSAMOptions(1.0).noise_std(0);
    if (with) options.master_dtype(torch::kFloat);
    SSAM opt({w}, options);
    for (int k = 0; k < 64; ++k) {
      w.mutable_grad() = torch::full({65}, 0x1p-10, torch::kBFloat16);
      opt.step();
    }
    EXPECT_TRUE((w == (with ? 0.9375 : 1.0)).all().item<bool>()) << with;
  }
}

TYPED_TEST(MastersTest, ACheckpointResumesBitForBitInEitherFormat) {
  for (const bool kept : {false, true}) {
    const OptionsOf<TypeParam> options = options_of_test<TypeParam>().keep_perturbed(kept);
    const auto params = parameters(torch::kBFloat16);
    OptimizerOf<TypeParam> opt(params, options);
    const auto steps = [&](OptimizerOf<TypeParam>& one, const std::vector<Tensor>& of, int count) {
      one.train();
      for (int k = 0; k < count; ++k) kept ? step_kept(one, of) : step_perturbed(one, of);
    };
    steps(opt, params, 3);
    const auto weights = copies(params);  // noisy where kept: the checkpoint of the optimizer carries the clean ones
    std::stringstream archive;
    torch::save(opt, archive);
    const c10::IValue dict = opt.state_dict().deepcopy();
    steps(opt, params, 3);
    opt.eval();
    for (const bool pickled : {false, true}) {
      const auto again = parameters(torch::kBFloat16);
      OptimizerOf<TypeParam> other(again, OptionsOf<TypeParam>(options).seed(99));
      steps(other, again, 1);  // something to be overwritten
      other.eval();
      if (pickled) {
        other.load_state_dict(dict);
      } else {
        archive.seekg(0);
        torch::load(other, archive);
      }
      write(again, weights);
      steps(other, again, 3);
      other.eval();
      EXPECT_TRUE(same_bits(copies(again), copies(params))) << "kept " << kept << " pickled " << pickled;
      EXPECT_TRUE(same_bits(saved(other, "master"), saved(opt, "master")));
      EXPECT_TRUE(same_bits(saved(other, TypeParam::kFirstBuffer), saved(opt, TypeParam::kFirstBuffer)));
    }
  }
}

TYPED_TEST(MastersTest, ACheckpointWithoutMastersStartsThemAndTheOtherWayRound) {
  const auto params = parameters(torch::kBFloat16);
  OptimizerOf<TypeParam> plain(params, options_of_test<TypeParam>().master_dtype(std::nullopt));
  step_perturbed(plain, params);
  OptimizerOf<TypeParam> opt(params, options_of_test<TypeParam>());
  opt.load_state_dict(plain.state_dict().deepcopy());
  { const auto pass = opt.perturb(); }
  EXPECT_TRUE(same_bits(saved(opt, "master"), rounded(params, torch::kFloat)));
  step_perturbed(opt, params);
  for (const Tensor& buffer : saved(opt, TypeParam::kFirstBuffer)) EXPECT_EQ(buffer.scalar_type(), torch::kFloat);
  plain.load_state_dict(opt.state_dict().deepcopy());
  step_perturbed(plain, params);
  EXPECT_TRUE(saved(plain, "master").empty());
  for (const Tensor& buffer : saved(plain, TypeParam::kFirstBuffer)) EXPECT_EQ(buffer.scalar_type(), torch::kBFloat16);
}

TYPED_TEST(MastersTest, WhatOthersWriteCountsElementByElement) {
  const auto params = parameters(torch::kBFloat16);
  OptimizerOf<TypeParam> opt(params, options_of_test<TypeParam>());
  for (int k = 0; k < 2; ++k) step_perturbed(opt, params);
  auto expected = saved(opt, "master");
  const auto held = copies(params);
  {
    const torch::NoGradGuard no_grad;
    for (const Tensor& p : params) Tensor(p).zero_();
    write(params, held);  // the same weights again
    Tensor(params[1])[2].fill_(3.0);
  }
  expected[1][2].fill_(3.0);
  { const auto pass = opt.perturb(); }
  EXPECT_TRUE(same_bits(saved(opt, "master"), expected));
  EXPECT_TRUE(same_bits(copies(params), rounded(expected, torch::kBFloat16)));
}

// Ways to write to a parameter that no version counts, and one that gives it other memory.
const std::pair<const char*, std::function<void(const Tensor&)>> kWrites[] = {
    {"clamp_", [](const Tensor& p) { p.data().clamp_(-0.5, 0.5); }},
    {"fill_", [](const Tensor& p) { p.data()[1].fill_(0.25); }},
    {"index_put_", [](const Tensor& p) { p.data().index_put_({0, 1}, -3.0); }},
    {"memory",
     [](const Tensor& p) {
       const Tensor other = torch::tensor(7.0, p.options().requires_grad(false));
       std::memcpy(static_cast<char*>(p.mutable_data_ptr()) + 2 * 67 * p.element_size(), other.const_data_ptr(), 2);
     }},
    {"vector_to_parameters",
     [](const Tensor& p) {
       torch::nn::utils::vector_to_parameters(torch::nn::utils::parameters_to_vector({p}).detach() * 0.5, {p});
     }},
};

// What the master is after a write is seen in the state when a pass or a step has looked: between steps, before a step,
// and in the projection of a parameter without a gradient.
TEST(SgdMastersTest, AWriteThatNoVersionCountsIsKept) {
  for (const auto& [name, write] : kWrites) {
    for (const torch::Dtype dtype : kDtypes) {
      for (const double noise_std : {0.0, 0.125}) {
        for (const bool between_steps : {false, true}) {
          torch::manual_seed(3);
          const Tensor p = parameter(torch::randn({5, 67}).to(dtype));
          SSAM opt({p}, SSAMOptions(0x1p-9).noise_std(noise_std).seed(1).master_dtype(torch::kFloat));
          const auto pass = [&](bool zeros) {
            const auto perturbed = opt.perturb();
            p.mutable_grad() = zeros ? torch::zeros_like(p.detach()) : p.detach() * 0.5 + 1.0;
          };
          for (int k = 0; k < 3; ++k) {
            pass(false);
            opt.step();
          }
          const Tensor master = saved(opt, "master")[0], before = p.detach().clone();
          if (!between_steps) pass(true);
          const auto version = p._version();
          write(p);
          EXPECT_EQ(p._version(), version) << name;
          const Tensor written = p.detach() != before;
          EXPECT_TRUE(written.any().item<bool>()) << name;
          const Tensor expected = torch::where(written, p.detach().to(torch::kFloat), master);
          if (between_steps) pass(true);
          opt.step();  // of zeros: the master stays as it is
          EXPECT_TRUE(same_bits(saved(opt, "master")[0], expected)) << name << dtype << noise_std << between_steps;
          EXPECT_TRUE(same_bits(p, expected.to(dtype))) << name << dtype << noise_std << between_steps;
        }
      }
    }
  }
}

TEST(SgdMastersTest, AWriteThatNoVersionCountsIsProjectedToo) {
  const Tensor p = parameter(torch::ones({4}, torch::kBFloat16)), other = parameter(torch::ones({4}, torch::kBFloat16));
  SSAM opt({p, other}, SSAMOptions(0.5).noise_std(0).radius(4.0).master_dtype(torch::kFloat));
  other.mutable_grad() = torch::zeros_like(other.detach());
  opt.step();
  EXPECT_TRUE((p == 1).all().item<bool>());
  p.data().fill_(8.0);
  opt.step();  // of |w| = sqrt(4 * 64 + 4)
  const double factor = 4.0 / std::sqrt(260.0);
  EXPECT_TRUE(torch::allclose(saved(opt, "master")[0], torch::full({4}, 8.0 * factor), 1e-6, 0));
  EXPECT_TRUE(same_bits(p, saved(opt, "master")[0].to(torch::kBFloat16)));
}

TYPED_TEST(MastersTest, WithoutAWriteTheMasterKeepsAllItsDigits) {
  const auto params = parameters(torch::kBFloat16);
  OptimizerOf<TypeParam> opt(params, options_of_test<TypeParam>());
  for (int k = 0; k < 4; ++k) step_perturbed(opt, params);
  const auto masters = saved(opt, "master");
  EXPECT_FALSE(same_bits(masters, rounded(rounded(masters, torch::kBFloat16), torch::kFloat)));
  { const auto pass = opt.perturb(); }
  EXPECT_TRUE(same_bits(saved(opt, "master"), masters));
}

TYPED_TEST(MastersTest, WritingToAPerturbedParameterIsNamed) {
  const auto params = parameters(torch::kBFloat16);
  OptimizerOf<TypeParam> opt(params, options_of_test<TypeParam>());
  step_perturbed(opt, params);
  auto pass = opt.perturb();
  {
    const torch::NoGradGuard no_grad;
    Tensor(params[0]).fill_(2.0);
  }
  EXPECT_THROW(pass.restore(), PerturbedWeightsChanged);
  { const auto next = opt.perturb(); }
  const std::vector<Tensor> masters = saved(opt, "master");
  EXPECT_TRUE((masters[0] == 2.0).all().item<bool>());
}

TYPED_TEST(MastersTest, AGroupThatTurnsThemOffFollowsItsParameters) {
  const auto params = parameters(torch::kBFloat16);
  OptimizerOf<TypeParam> opt(params, stateless_options<TypeParam>());
  step_perturbed(opt, params);
  auto& options = static_cast<OptionsOf<TypeParam>&>(opt.param_groups()[0].options());
  options.master_dtype() = std::nullopt;
  step_perturbed(opt, params);
  const auto now = copies(params);
  options.master_dtype() = torch::kFloat;
  { const auto pass = opt.perturb(); }
  EXPECT_TRUE(same_bits(copies(params), now));
  EXPECT_TRUE(same_bits(saved(opt, "master"), rounded(now, torch::kFloat)));
}

TEST(SgdMastersTest, WhatCannotBeIsRefused) {
  const auto make = [](SSAMOptions options, torch::Dtype dtype = torch::kBFloat16) {
    return SSAM(parameters(dtype), options);
  };
  EXPECT_MESSAGE(make(SSAMOptions(0.1).master_dtype(torch::kDouble)), "expected at::kFloat");
  EXPECT_MESSAGE(make(SSAMOptions(0.1).master_dtype(torch::kFloat).memory("regenerate")), "Use memory 'copy'");
  EXPECT_MESSAGE(make(SSAMOptions(0.1).master_dtype(torch::kFloat), torch::kDouble), "a parameter is Double");
}

}  // namespace
}  // namespace torch_ssam
