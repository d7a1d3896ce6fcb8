// Parameters that leave their group in the middle of training, as densification in Gaussian splatting and layer surgery
// replace and remove them, and frozen ones of any dtype: as tests/python/test_replaced_parameters.py.
#include <sstream>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;

struct Case {
  const char* name;
  SSAMOptions options;
  torch::Dtype dtype = torch::kFloat;
  friend std::ostream& operator<<(std::ostream& stream, const Case& c) { return stream << c.name; }
};

std::vector<Case> cases() {
  const SSAMOptions base = SSAMOptions(0.1).noise_std(0.3).seed(1).momentum(0.5);
  const auto with = [&](auto change) {
    SSAMOptions options = base;
    change(options);
    return options;
  };
  return {
      {"plain", base},
      {"kept", with([](auto& o) { o.keep_perturbed(true); })},
      {"fisher", with([](auto& o) { o.scale("fisher"); })},
      {"filter, kept", with([](auto& o) { o.scale("filter").keep_perturbed(true); })},
      {"masters", with([](auto& o) { o.master_dtype(torch::kFloat); }), torch::kBFloat16},
      {"masters, kept", with([](auto& o) { o.master_dtype(torch::kFloat).keep_perturbed(true); }), torch::kBFloat16},
      {"regenerate, kept", with([](auto& o) { o.memory("regenerate").keep_perturbed(true); })}};
}

std::vector<Tensor>& params_of(SSAM& opt) { return opt.param_groups()[0].params(); }

SSAM make(const Case& c) {
  std::vector<Tensor> params;
  for (const double value : {1.0, 2.0, 3.0}) params.push_back(parameter(torch::full({3, 2}, value).to(c.dtype)));
  return SSAM(params, c.options);
}

void step(SSAM& opt) {
  opt.zero_grad();
  opt.step([&] {
    opt.zero_grad();
    Tensor loss = loss_of(params_of(opt));
    loss.backward();
    return loss;
  });
}

class ReplacedTest : public ::testing::TestWithParam<Case> {};

// Momentum, clean copies, masters and Fisher sums of a tensor die with it, and nothing stumbles over them.
TEST_P(ReplacedTest, AParameterThatLeftItsGroupIsForgotten) {
  for (const bool removed : {false, true}) {
    SSAM opt = make(GetParam());
    opt.train();
    step(opt);
    step(opt);
    std::vector<Tensor>& params = params_of(opt);
    const c10::weak_intrusive_ptr<c10::TensorImpl> old(params[1].getIntrusivePtr());
    const c10::TensorImpl* address = params[1].unsafeGetTensorImpl();
    if (removed) {
      params.erase(params.begin() + 1);
    } else {
      params[1] = parameter(torch::cat({params[1], params[1]}));  // densified: other rows than before
    }
    std::stringstream file;
    torch::save(opt, file);
    const auto saved = opt.state_dict().toGenericDict().at("state").toGenericDict();
    for (const auto& entry : saved) EXPECT_LT(entry.key().toInt(), removed ? 2 : 3);
    EXPECT_EQ(saved.size(), 2U);  // those that stayed
    step(opt);
    opt.eval();
    opt.train();
    step(opt);
    opt.eval();
    EXPECT_EQ(opt.state().count(const_cast<c10::TensorImpl*>(address)), 0U);
    EXPECT_TRUE(old.expired()) << "it is still alive";
    SSAM resumed = make(GetParam());
    if (removed) params_of(resumed).pop_back();
    if (!removed) params_of(resumed)[1] = parameter(torch::zeros({6, 2}).to(GetParam().dtype));
    torch::load(resumed, file);
    EXPECT_EQ(resumed.seed(), 1);
  }
}

TEST_P(ReplacedTest, APerturbedOneThatLeavesGetsItsCleanBitsBackAndNoNewNoise) {
  SSAM opt = make(GetParam());
  opt.train();
  step(opt);
  const bool kept = GetParam().options.keep_perturbed();
  opt.eval();
  const Tensor clean = params_of(opt)[1].detach().clone();
  opt.train();
  const Tensor left = params_of(opt)[1];
  EXPECT_NE(same_bits(left, clean), kept);
  params_of(opt).erase(params_of(opt).begin() + 1);
  step(opt);
  opt.eval();
  if (GetParam().options.memory() == "copy") {
    EXPECT_TRUE(same_bits(left, clean));
  } else {
    EXPECT_TRUE(torch::allclose(left, clean, 1e-6, 1e-6));
  }
  const Tensor back = left.detach().clone();
  opt.train();
  EXPECT_TRUE(same_bits(left, back));
}

// A removed tensor moves the places of those after it; from the next draw on they have that place's noise.
TEST_P(ReplacedTest, ThoseThatStayGoOnAsIfPlacedSoFromTheStart) {
  SSAM opt = make(GetParam());
  opt.train();
  step(opt);
  opt.eval();
  params_of(opt).erase(params_of(opt).begin() + 1);
  const auto values = copies(params_of(opt));
  SSAM fresh({parameter(values[0]), parameter(values[1])}, GetParam().options);
  fresh.load_state_dict(opt.state_dict().deepcopy());
  for (SSAM* one : {&opt, &fresh}) {
    one->train();
    step(*one);
    one->eval();
  }
  EXPECT_TRUE(same_bits(copies(params_of(opt)), copies(params_of(fresh))));
}

INSTANTIATE_TEST_SUITE_P(Options, ReplacedTest, ::testing::ValuesIn(cases()), [](const auto& info) {
  std::string name;
  for (const char* c = info.param.name; *c != 0; ++c) name += std::isalpha(*c) ? std::string(1, *c) : "";
  return name;
});

TEST(ReplacedStateTest, StateThatIsMovedToTheNewTensorGoesOn) {
  SSAM opt = make({"fisher", SSAMOptions(0.1).noise_std(0.3).seed(1).momentum(0.5).scale("fisher")});
  SSAM same = make({"fisher", SSAMOptions(0.1).noise_std(0.3).seed(1).momentum(0.5).scale("fisher")});
  for (SSAM* one : {&opt, &same}) step(*one);
  const Tensor old = params_of(opt)[1], next = parameter(old);
  opt.state()[next.unsafeGetTensorImpl()] = opt.state().at(old.unsafeGetTensorImpl())->clone();
  params_of(opt)[1] = next;
  for (SSAM* one : {&opt, &same}) step(*one);
  EXPECT_TRUE(same_bits(copies(params_of(opt)), copies(params_of(same))));
}

TEST(FrozenTest, FrozenTensorsOfAnyDtypeCountForThePlaceAndForNothingElse) {
  for (const bool kept : {false, true}) {
    for (const auto& frozen : {torch::ones(5, torch::kLong), torch::ones({2, 2}, torch::kChar),
                               torch::ones(3, torch::kComplexFloat), torch::ones(3, torch::kBool), torch::ones(4)}) {
      const auto options = SSAMOptions(0.1).noise_std(0.3).seed(1).momentum(0.5).keep_perturbed(kept);
      const Tensor w = parameter(torch::ones(7)), same = parameter(torch::ones(7));
      SSAM opt({frozen.clone(), w}, options), other({torch::ones(1), same}, options);
      for (SSAM* one : {&opt, &other}) {
        one->train();
        for (int k = 0; k < 2; ++k) {
          one->zero_grad();
          const Tensor& p = params_of(*one)[1];
          if (kept) {
            loss_of({p}).backward();
          } else {
            const auto pass = one->perturb();
            loss_of({p}).backward();
          }
          one->step();
        }
        one->eval();
      }
      EXPECT_TRUE(same_bits(w, same)) << frozen.dtype();
      EXPECT_TRUE(same_bits(params_of(opt)[0], frozen));
      std::stringstream file;
      torch::save(opt, file);
      torch::load(opt, file);
      EXPECT_EQ(opt.state_dict().toGenericDict().at("state").toGenericDict().size(), 1U);
      WeightNoise noise({frozen, w}, WeightNoiseOptions(0.3).seed(1)),
          others({torch::ones(1), w}, WeightNoiseOptions(0.3).seed(1));
      EXPECT_TRUE(same_bits(noise.noise(w), others.noise(w)));
      EXPECT_NO_THROW({ const auto pass = noise.applied(); });
    }
  }
}

TEST(FrozenTest, WithoutACopyOnlyTensorsThatArePerturbedNeedToBeFloatOrDouble) {
  const Tensor w = parameter(torch::ones(3)), half = torch::ones(3, torch::kHalf);
  const auto options = SSAMOptions(0.1).noise_std(0.3).memory("regenerate");
  SSAM opt({half, w}, options);
  EXPECT_NO_THROW({ const auto pass = opt.perturb(); });
  half.requires_grad_(true);
  EXPECT_MESSAGE(opt.perturb(), "16-bit weights do not survive");
}

TEST(FrozenTest, TensorsThatCannotBePerturbedAreRefusedWhereTheyRequireGradientsOrStandAlone) {
  const Tensor w = parameter(torch::ones(3));
  EXPECT_MESSAGE(SSAM({w, torch::ones(3, torch::kComplexFloat).requires_grad_(true)}),
                 "is ComplexFloat; expected a dense");
  EXPECT_MESSAGE(SSAM({w, torch::ones({3, 3}).to_sparse()}), "is sparse; expected a dense");
  EXPECT_MESSAGE(SSAM({torch::ones(3, torch::kLong)}), "is Long; expected a dense");
}

}  // namespace
}  // namespace torch_ssam
