// The base of optimizers with other updates: a second one, with options and a buffer of its own names, which counts
// each tensor's steps, is the forty lines below, and has the ways to drive, the options, the checkpoints and the bits
// of SSAM, whose rule it uses.
#include <torch/optim/serialize.h>
#include <torch/serialize/archive.h>

#include <sstream>

#include "api/operators.h"
#include "api_testing.h"

#define HEAVY_BALL_OPTIONS(X)                       \
  X(double, lr, 0.25, at_least(0), "learning rate") \
  X(double, mass, 0.5, from_up_to(0, 1), "of the ball")

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

class HeavyBallOptions : public FusedSetters<HeavyBallOptions> {
  TORCH_SSAM_OPTIONS_OF_UPDATE(HeavyBallOptions, HEAVY_BALL_OPTIONS)

 public:
  HeavyBallOptions() = default;
  HeavyBallOptions(double learning_rate) { lr(learning_rate); }
};

struct HeavyBallParamState : NoiseParamState {
  HeavyBallParamState() : NoiseParamState({"velocity"}) {}
  std::unique_ptr<torch::optim::OptimizerParamState> clone() const override {
    return std::make_unique<HeavyBallParamState>(*this);
  }
};

class HeavyBall : public FusedOptimizer {
 public:
  explicit HeavyBall(std::vector<OptimizerParamGroup> groups, HeavyBallOptions defaults = {})
      : FusedOptimizer(std::make_unique<HeavyBallOptions>(defaults)) {
    add_groups(groups);
  }

 private:
  const char* name() const override { return "HeavyBall"; }
  void check_update(const FusedOptions& /*options*/) const override {}
  std::unique_ptr<NoiseParamState> new_state() const override { return std::make_unique<HeavyBallParamState>(); }
  std::size_t count_buffers(const FusedOptions& options) const override { return of(options).mass() != 0 ? 1 : 0; }
  ops::Update update_of(const FusedOptions& o) const override {
    return {"sgd", {of(o).lr(), of(o).mass(), 0, 0, 0, o.maximize() ? 1.0 : 0.0}};
  }
  bool counts_steps() const override { return true; }
  void write(torch::serialize::OutputArchive& archive) const override {
    torch::optim::serialize<HeavyBallParamState, HeavyBallOptions>(archive, *this);
  }
  void read(torch::serialize::InputArchive& archive) override {
    torch::optim::serialize<HeavyBallParamState, HeavyBallOptions>(archive, *this);
  }
  static const HeavyBallOptions& of(const FusedOptions& o) { return static_cast<const HeavyBallOptions&>(o); }
};

std::vector<OptimizerParamGroup> groups_of(const std::vector<Tensor>& params) {
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<Tensor>(params.begin(), params.begin() + 2));
  groups.emplace_back(std::vector<Tensor>(params.begin() + 2, params.end()));
  return groups;
}

void step(NoiseDriver& opt, const std::vector<Tensor>& params, bool kept) {
  opt.zero_grad();
  if (kept) {
    loss_of(params).backward();
  } else {
    for ([[maybe_unused]] const auto k : opt.perturbations()) loss_of(params).backward();
  }
  opt.step();
}

// What the options of both optimizers have in common.
template <typename Options>
std::vector<Options> cases(Options base) {
  std::vector<Options> all(7, base.noise_std(0.2).seed(3));
  all[1].keep_perturbed(true);
  all[2].keep_perturbed(true).memory("regenerate");
  all[3].scale("fisher").radius(2.0);
  all[4].samples(2).antithetic(true).clean_weight(0.25).maximize(true);
  all[5].master_dtype(torch::kFloat);
  all[6].master_dtype(torch::kFloat).keep_perturbed(true).scale("filter");
  return all;
}

TEST(FusedTest, AnotherOptimizerHasTheBitsOfSsamInEveryWayToDriveIt) {
  const auto theirs = cases(SSAMOptions(0.05).momentum(0.75));
  const auto ours = cases(HeavyBallOptions(0.05).mass(0.75));
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const auto dtype = ours[i].master_dtype() ? torch::kBFloat16 : torch::kFloat;
    const auto a = parameters(dtype), b = parameters(dtype);
    SSAM ssam(groups_of(a), theirs[i]);
    HeavyBall heavy(groups_of(b), ours[i]);
    ssam.train();
    heavy.train();
    for (int k = 0; k < 3; ++k) {
      step(ssam, a, theirs[i].keep_perturbed());
      step(heavy, b, ours[i].keep_perturbed());
    }
    EXPECT_TRUE(same_bits(a, b)) << i;
    EXPECT_FALSE(same_bits(a, parameters(dtype))) << i;
    ssam.eval();
    heavy.eval();
    EXPECT_TRUE(same_bits(a, b)) << i;
  }
}

TEST(FusedTest, AnotherOptimizerResumesBitForBitInEitherFormat) {
  for (const HeavyBallOptions& options : cases(HeavyBallOptions(0.05).mass(0.75))) {
    const bool kept = options.keep_perturbed();
    const auto dtype = options.master_dtype() ? torch::kBFloat16 : torch::kFloat;
    const auto params = parameters(dtype);
    HeavyBall opt(groups_of(params), options);
    opt.train();
    for (int k = 0; k < 2; ++k) step(opt, params, kept);
    std::stringstream file;
    torch::save(opt, file);
    const c10::IValue dict = opt.state_dict().deepcopy();
    const auto weights = copies(params);
    for (int k = 0; k < 2; ++k) step(opt, params, kept);
    opt.eval();
    for (const bool pickled : {false, true}) {
      const auto again = parameters(dtype);
      HeavyBallOptions others = HeavyBallOptions(9).mass(0).keep_perturbed(kept);
      others.master_dtype() = options.master_dtype();  // stays as constructed
      HeavyBall resumed(groups_of(again), others);
      pickled ? resumed.load_state_dict(dict) : torch::load(resumed, file);
      {
        const torch::NoGradGuard no_grad;
        for (std::size_t i = 0; i < again.size(); ++i) again[i].copy_(weights[i]);
      }
      resumed.train();
      for (int k = 0; k < 2; ++k) step(resumed, again, kept);
      resumed.eval();
      if (options.memory() == "regenerate") continue;  // whose clean weights carry roundings
      EXPECT_TRUE(same_bits(again, params)) << kept << pickled;
    }
  }
}

TEST(FusedTest, ItsStateHasItsNamesAndItsOptionsAreCheckedInheritedAndCompared) {
  const auto params = parameters();
  std::vector<OptimizerParamGroup> groups = groups_of(params);
  groups[1].set_options(std::make_unique<HeavyBallOptions>(HeavyBallOptions().noise_std(0)));
  HeavyBall opt(groups, HeavyBallOptions(0.125).samples(2));
  const auto& second = static_cast<HeavyBallOptions&>(opt.param_groups()[1].options());
  EXPECT_EQ(second.lr(), 0.125);
  EXPECT_EQ(second.get_lr(), 0.125);
  EXPECT_EQ(second.mass(), 0.5);
  EXPECT_EQ(second.samples(), 2);
  EXPECT_EQ(second.noise_std(), 0);
  EXPECT_TRUE(second == static_cast<const HeavyBallOptions&>(second));
  EXPECT_FALSE(second == static_cast<HeavyBallOptions&>(opt.param_groups()[0].options()));
  step(opt, params, /*kept=*/false);
  const auto state = opt.state_dict().toGenericDict().at("state").toGenericDict();
  EXPECT_TRUE(state.at(0).toGenericDict().contains("velocity"));
  EXPECT_EQ(state.at(0).toGenericDict().at("step").toTensor().item<double>(), 1);
  EXPECT_MESSAGE(HeavyBall(groups_of(params), HeavyBallOptions().mass(1)),
                 "mass is 1; expected 0 <= mass < 1 (of the ball)");
  groups[1].set_options(std::make_unique<SSAMOptions>());
  EXPECT_MESSAGE(HeavyBall(groups), "expected std::make_unique<torch_ssam::HeavyBallOptions>(...), or none");
  EXPECT_MESSAGE(HeavyBall({}), "HeavyBall got an empty list of parameters");
}

}  // namespace
}  // namespace torch_ssam
