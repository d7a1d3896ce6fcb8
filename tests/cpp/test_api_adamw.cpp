// SSAMAdamW: its update against torch::optim::AdamW and against one written out in double, its steps, its state and its
// checkpoints, also exchanged with torch::optim::AdamW. What it shares with SSAM is tested over both; bits are compared
// with Python's in tests/python/test_cpp_parity.py.
#include <cmath>
#include <limits>
#include <sstream>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

struct Case {
  const char* name;
  SSAMAdamWOptions options;
};

// Those that torch::optim::AdamW has too.
std::vector<Case> cases() {
  return {{"defaults", SSAMAdamWOptions(1e-3)},
          {"amsgrad", SSAMAdamWOptions(0.01).amsgrad(true)},
          {"no decay", SSAMAdamWOptions(0.01).weight_decay(0)},
          {"short memory", SSAMAdamWOptions(0.01).betas({0.2, 0.5}).weight_decay(0.1)},
          {"no memory", SSAMAdamWOptions(1e-3).betas({0.0, 0.0}).eps(1e-3)},
          {"large eps", SSAMAdamWOptions(0.1).eps(0.5).amsgrad(true)}};
}

torch::optim::AdamWOptions torch_options(const SSAMAdamWOptions& o) {
  return torch::optim::AdamWOptions(o.lr())
      .betas(o.betas())
      .eps(o.eps())
      .weight_decay(o.weight_decay())
      .amsgrad(o.amsgrad());
}

SSAMAdamW plain(const std::vector<Tensor>& params, SSAMAdamWOptions options) {
  return SSAMAdamW(params, options.noise_std(0));
}

const SSAMAdamWParamState& state_of(const SSAMAdamW& opt, const Tensor& p) {
  return static_cast<const SSAMAdamWParamState&>(*opt.state().at(p.unsafeGetTensorImpl()));
}

void set(const std::vector<Tensor>& to, const std::vector<Tensor>& from) {
  const torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < to.size(); ++i) Tensor(to[i]).copy_(from[i]);
}

// Sizes over five decades, now and then nothing at all.
void set_grads(const std::vector<Tensor>& params, int step) {
  torch::manual_seed(static_cast<std::uint64_t>(100 + step));
  const double size = step % 7 == 3 ? 0 : std::pow(10.0, -(step % 5));
  for (const Tensor& p : params) p.mutable_grad() = torch::randn_like(p.detach()) * size;
}

void step_at(SSAMAdamW& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  {
    const auto pass = opt.perturb();
    loss_of(params).backward();
  }
  opt.step();
}

TEST(AdamWTest, EachStepIsWithinTwoUlpOfAdamWOfTorch) {
  for (const torch::Dtype dtype : {torch::kFloat, torch::kDouble}) {
    const double eps = dtype == torch::kFloat ? std::numeric_limits<float>::epsilon() : 0x1p-52;
    for (const Case& c : cases()) {
      const auto ours = parameters(dtype), theirs = parameters(dtype);
      torch::optim::AdamW reference(theirs, torch_options(c.options));
      for (int k = 0; k < 25; ++k) {
        // One step at a time, from the state of torch's.
        SSAMAdamW opt = plain(ours, SSAMAdamWOptions(9.0));
        std::stringstream file;
        torch::save(reference, file);
        torch::load(opt, file);
        set(ours, theirs);
        set_grads(ours, k);
        set_grads(theirs, k);
        opt.step();
        reference.step();
        for (std::size_t i = 0; i < ours.size(); ++i) {
          const Tensor size = theirs[i].detach().abs().clamp_min(c.options.lr());
          EXPECT_TRUE(((ours[i] - theirs[i]).detach().abs() <= 2 * eps * size).all().item<bool>())
              << c.name << ", step " << k << ", parameter " << i;
        }
      }
      EXPECT_FALSE(same_bits(ours[0], parameters(dtype)[0])) << c.name;
    }
  }
}

// The formula of the paper, in double, at the noisy weights; ascending too, which torch::optim::AdamW cannot.
TEST(AdamWTest, FollowsTheFormulaAtTheNoisyWeights) {
  auto all = cases();
  all.push_back({"ascent", SSAMAdamWOptions(1e-3).maximize(true)});
  for (const Case& c : all) {
    const SSAMAdamWOptions options = SSAMAdamWOptions(c.options).noise_std(0.1).seed(21);
    const auto [beta1, beta2] = options.betas();
    const auto params = parameters(torch::kDouble);
    SSAMAdamW opt(params, options);
    WeightNoise same_noise(params, WeightNoiseOptions(0.1).seed(21));
    std::vector<Tensor> expected = copies(params), m, v, largest;
    for (const Tensor& p : expected) m.push_back(torch::zeros_like(p));
    v = copies(m);
    largest = copies(m);
    for (int t = 1; t <= 20; ++t) {
      std::vector<Tensor> at;
      for (std::size_t i = 0; i < params.size(); ++i) {
        at.push_back(parameter(expected[i] + same_noise.noise(params[i])));
      }
      { const auto next_draw = same_noise.applied(); }
      loss_of(at).backward();
      for (std::size_t i = 0; i < params.size(); ++i) {
        const Tensor g = options.maximize() ? -at[i].grad() : at[i].grad();
        m[i] = beta1 * m[i] + (1 - beta1) * g;
        v[i] = beta2 * v[i] + (1 - beta2) * g.square();
        largest[i] = torch::maximum(largest[i], v[i]);
        const Tensor second = (options.amsgrad() ? largest[i] : v[i]) / (1 - std::pow(beta2, t));
        expected[i] = (1 - options.lr() * options.weight_decay()) * expected[i] -
                      options.lr() / (1 - std::pow(beta1, t)) * m[i] / (second.sqrt() + options.eps());
      }
      step_at(opt, params);
      for (std::size_t i = 0; i < params.size(); ++i) {
        EXPECT_TRUE(torch::allclose(params[i], expected[i], 1e-11, 1e-12)) << c.name << t << ", parameter " << i;
      }
    }
  }
}

TEST(AdamWTest, ATrainingChangesOverFromAdamWOfTorchAndBackInTheMiddle) {
  for (const bool amsgrad : {false, true}) {
    const auto options = SSAMAdamWOptions(0.01).betas({0.8, 0.95}).weight_decay(0.1).amsgrad(amsgrad);
    const auto train = [](torch::optim::Optimizer& opt, const std::vector<Tensor>& params) {
      for (int k = 0; k < 4; ++k) {
        opt.zero_grad();
        loss_of(params).backward();
        opt.step();
      }
    };
    const auto whole = parameters(torch::kDouble), params = parameters(torch::kDouble);
    torch::optim::AdamW all(whole, torch_options(options)), first(params, torch_options(options));
    for (int k = 0; k < 3; ++k) train(all, whole);
    train(first, params);
    std::stringstream to_ours, to_theirs;
    torch::save(first, to_ours);
    SSAMAdamW middle(params, SSAMAdamWOptions(9.0).noise_std(0).seed(4));
    torch::load(middle, to_ours);
    const auto& loaded = static_cast<SSAMAdamWOptions&>(middle.param_groups()[0].options());
    EXPECT_EQ(loaded.lr(), 0.01);
    EXPECT_EQ(loaded.betas(), Betas(0.8, 0.95));
    EXPECT_EQ(loaded.amsgrad(), amsgrad);
    EXPECT_EQ(loaded.noise_std(), 0);
    EXPECT_EQ(middle.seed(), 4);
    EXPECT_EQ(state_of(middle, params[0]).step(), 4);
    train(middle, params);
    EXPECT_EQ(state_of(middle, params[0]).max_exp_avg_sq().defined(), amsgrad);
    torch::save(middle, to_theirs);
    torch::optim::AdamW last(params, torch::optim::AdamWOptions(9.0));
    torch::load(last, to_theirs);
    train(last, params);
    for (std::size_t i = 0; i < params.size(); ++i) {
      EXPECT_TRUE(torch::allclose(params[i], whole[i], 1e-12, 1e-14)) << amsgrad << i;
    }
    EXPECT_EQ(static_cast<torch::optim::AdamWParamState&>(*last.state().at(params[0].unsafeGetTensorImpl())).step(),
              12);
  }
}

TEST(AdamWTest, StepsAreCountedForEachParameterAndOnlyWithAGradient) {
  for (const bool kept : {false, true}) {
    const auto params = parameters(), alone = parameters();
    const auto options = SSAMAdamWOptions(0.01).noise_std(0.1).seed(2).keep_perturbed(kept);
    SSAMAdamW opt(params, options);
    opt.train();
    const auto step = [&](const std::vector<Tensor>& of) {
      opt.zero_grad();
      if (kept) {
        loss_of(of).backward();
      } else {
        const auto pass = opt.perturb();
        loss_of(of).backward();
      }
      opt.step();
    };
    step(params);
    step({params[1]});
    step({params[1], params[2]});
    opt.eval();
    EXPECT_EQ(state_of(opt, params[0]).step(), 1);
    EXPECT_EQ(state_of(opt, params[1]).step(), 3);
    EXPECT_EQ(state_of(opt, params[2]).step(), 2);
    // The third alone took its second step with the bias correction of a second step.
    SSAMAdamW twin(alone, SSAMAdamWOptions(options).keep_perturbed(false));
    const auto with = [&](const std::vector<Tensor>& of) {
      twin.zero_grad();
      {
        const auto pass = twin.perturb();
        if (!of.empty()) loss_of(of).backward();
      }
      if (!of.empty()) twin.step();
    };
    with({alone[2]});
    with({});
    with({alone[2]});
    EXPECT_TRUE(same_bits(alone[2], params[2])) << kept;
  }
}

TEST(AdamWTest, AmsgradSwitchedOnLaterKeepsAveragesAndSteps) {
  const auto params = parameters(torch::kDouble);
  SSAMAdamW opt = plain(params, SSAMAdamWOptions(0.01));
  set_grads(params, 0);
  opt.step();
  const Tensor before = state_of(opt, params[0]).exp_avg_sq().clone();
  static_cast<SSAMAdamWOptions&>(opt.param_groups()[0].options()).amsgrad(true);
  params[0].mutable_grad() = torch::zeros_like(params[0].detach());
  opt.step();
  EXPECT_EQ(state_of(opt, params[0]).step(), 2);
  EXPECT_TRUE(torch::allclose(state_of(opt, params[0]).exp_avg_sq(), 0.999 * before, 1e-14, 0));
  EXPECT_TRUE(same_bits(state_of(opt, params[0]).max_exp_avg_sq(), state_of(opt, params[0]).exp_avg_sq()));
}

TEST(AdamWTest, DefaultsAreThoseOfPythonAndOfTorch) {
  const SSAMAdamWOptions o;
  const torch::optim::AdamWOptions theirs;
  EXPECT_EQ(o.lr(), theirs.lr());
  EXPECT_EQ(o.betas(), theirs.betas());
  EXPECT_EQ(o.eps(), theirs.eps());
  EXPECT_EQ(o.weight_decay(), theirs.weight_decay());
  EXPECT_EQ(o.amsgrad(), theirs.amsgrad());
  EXPECT_EQ(o.noise_std(), 0.01);
  EXPECT_FALSE(o.maximize() || o.keep_perturbed());
}

TEST(AdamWTest, EveryOptionComesBackInEitherFormatAndIsInherited) {
  const auto params = parameters();
  const auto options = SSAMAdamWOptions(0.2)
                           .betas({0.5, 0.75})
                           .eps(1e-3)
                           .weight_decay(0.6)
                           .amsgrad(true)
                           .maximize(true)
                           .noise_std(0.3)
                           .scale("filter")
                           .seed(1);
  SSAMAdamW opt(params, options);
  std::stringstream file;
  torch::save(opt, file);
  for (const bool pickled : {false, true}) {
    SSAMAdamW other(params);
    pickled ? other.load_state_dict(opt.state_dict()) : torch::load(other, file);
    auto loaded = static_cast<SSAMAdamWOptions&>(other.param_groups()[0].options());
    EXPECT_EQ(other.seed(), 1);
    loaded.seed(1);
    EXPECT_TRUE(loaded == options) << pickled;
    EXPECT_FALSE(loaded == SSAMAdamWOptions());
  }
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(params, std::make_unique<SSAMAdamWOptions>(SSAMAdamWOptions().eps(0.5)));
  SSAMAdamW in_groups(groups, options);
  const auto& inherited = static_cast<SSAMAdamWOptions&>(in_groups.param_groups()[0].options());
  EXPECT_EQ(inherited.betas(), Betas(0.5, 0.75));
  EXPECT_EQ(inherited.eps(), 0.5);
}

TEST(AdamWTest, OptionsOutOfRangeAreNamedWithTheirValue) {
  const auto make = [](const SSAMAdamWOptions& options) { return SSAMAdamW(parameters(), options); };
  EXPECT_MESSAGE(make(SSAMAdamWOptions().betas({1.0, 0.9})), "betas[0] is 1; expected 0 <= betas[0] < 1");
  EXPECT_MESSAGE(make(SSAMAdamWOptions().betas({0.9, -0.5})), "betas[1] is -0.5; expected 0 <= betas[1] < 1");
  EXPECT_MESSAGE(make(SSAMAdamWOptions().betas({std::nan(""), 0.5})), "betas[0] is nan");
  EXPECT_MESSAGE(make(SSAMAdamWOptions().eps(-1)), "eps is -1; expected");
  EXPECT_MESSAGE(make(SSAMAdamWOptions(-1)), "lr is -1; expected");
  EXPECT_MESSAGE(make(SSAMAdamWOptions().weight_decay(-1)), "weight_decay is -1; expected");
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(parameters(), std::make_unique<SSAMOptions>());
  EXPECT_MESSAGE(SSAMAdamW(groups), "expected std::make_unique<torch_ssam::SSAMAdamWOptions>(...), or none");
}

// Of state_dict the dict of a parameter, as Python's.
c10::impl::GenericDict entry_of(const c10::IValue& dict, std::int64_t place) {
  return dict.toGenericDict().at("state").toGenericDict().at(place).toGenericDict();
}

TEST(AdamWTest, StateThatIsNotOfAdamWIsRefusedAndChangesNothing) {
  const auto params = parameters(), others = parameters();
  SSAMAdamW opt(params, SSAMAdamWOptions(0.01).seed(1));
  step_at(opt, params);
  const auto refused = [&](const c10::IValue& dict, const char* why) {
    const Tensor before = state_of(opt, params[0]).exp_avg().clone();
    EXPECT_MESSAGE(opt.load_state_dict(dict), why);
    EXPECT_EQ(opt.param_groups()[0].options().get_lr(), 0.01);
    EXPECT_EQ(state_of(opt, params[0]).step(), 1);
    EXPECT_TRUE(same_bits(state_of(opt, params[0]).exp_avg(), before));
  };
  const auto without = [&](const char* name) {
    const c10::IValue dict = opt.state_dict().deepcopy();
    EXPECT_EQ(entry_of(dict, 1).erase(name), 1U);
    return dict;
  };
  refused(without("exp_avg"), "the saved state of parameter 1 lacks 'exp_avg'");
  refused(without("exp_avg_sq"), "the saved state of parameter 1 lacks 'exp_avg_sq'");
  refused(without("step"), "the saved state of parameter 1 lacks 'step'");
  for (const auto& step : {c10::IValue(2.5), c10::IValue(-1), c10::IValue(torch::tensor(std::nan("")))}) {
    const c10::IValue dict = opt.state_dict().deepcopy();
    entry_of(dict, 1).insert_or_assign("step", step);
    refused(dict, "expected a whole number >= 0");
  }
  SSAM sgd(others, SSAMOptions(0.5).momentum(0.9).noise_std(0));
  loss_of(others).backward();
  sgd.step();
  refused(sgd.state_dict(), "expected the state of SSAMAdamW or of torch's AdamW");
  std::stringstream file;
  torch::save(sgd, file);
  EXPECT_MESSAGE(torch::load(opt, file), "expected the state of SSAMAdamW or of torch's AdamW");
  EXPECT_EQ(opt.param_groups()[0].options().get_lr(), 0.01);
  const c10::IValue dict = opt.state_dict().deepcopy();
  auto group = dict.toGenericDict().at("param_groups").toList().get(0).toGenericDict();
  group.insert_or_assign("decoupled_weight_decay", false);
  refused(dict, "as torch.optim.Adam has it");
  group.insert_or_assign("weight_decay", 0.0);
  EXPECT_NO_THROW(opt.load_state_dict(dict));
  group.insert_or_assign("betas", 0.9);
  refused(dict, "betas is Double; expected a pair of numbers");
}

// As torch.optim.AdamW has it in Python, where numbers came before tensors; SSAM counts none, whatever a file says.
TEST(AdamWTest, TheStepIsATensorInAStateDictAndMayBeANumber) {
  const auto params = parameters();
  SSAMAdamW opt(params, SSAMAdamWOptions(0.01).seed(1));
  step_at(opt, params);
  const c10::IValue dict = opt.state_dict().deepcopy();
  EXPECT_TRUE(same_bits(entry_of(dict, 0).at("step").toTensor(), torch::tensor(1.0F)));
  for (const auto& [step, expected] :
       {std::pair(c10::IValue(7), 7.0), {c10::IValue(9.0), 9.0}, {c10::IValue((1 << 24) + 1), (1 << 24) + 1.0}}) {
    entry_of(dict, 0).insert_or_assign("step", step);
    opt.load_state_dict(dict);
    EXPECT_EQ(state_of(opt, params[0]).step(), static_cast<std::int64_t>(expected));
    EXPECT_EQ(entry_of(opt.state_dict(), 0).at("step").toTensor().item<double>(), expected);
  }
  SSAM sgd(parameters(), SSAMOptions(0.5));
  sgd.load_state_dict(dict);
  EXPECT_TRUE(sgd.state().empty());
}

TEST(AdamWTest, OptionsAndStateClone) {
  const SSAMAdamWOptions options = SSAMAdamWOptions(0.3).betas({0.5, 0.5}).noise_std(0.2);
  const torch::optim::OptimizerOptions& base = options;
  EXPECT_TRUE(static_cast<SSAMAdamWOptions&>(*base.clone()) == options);
  SSAMAdamWParamState state;
  state.exp_avg() = torch::ones(3);
  state.max_exp_avg_sq() = torch::ones(3);
  state.step() = 3;
  const torch::optim::OptimizerParamState& state_base = state;
  const std::unique_ptr<torch::optim::OptimizerParamState> copy = state_base.clone();
  EXPECT_TRUE(static_cast<SSAMAdamWParamState&>(*copy) == state);
  static_cast<SSAMAdamWParamState&>(*copy).step() = 4;
  EXPECT_FALSE(static_cast<SSAMAdamWParamState&>(*copy) == state);
}

}  // namespace
}  // namespace torch_ssam
