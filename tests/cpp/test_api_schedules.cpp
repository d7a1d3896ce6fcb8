// AdaptiveNoiseStd: the change against closed forms, the rule, that a look leaves no trace in either way of holding
// noise, saved and refused. Python's twin is tests/python/test_adaptive_noise.py.
#ifdef USE_DISTRIBUTED
#include <torch/csrc/distributed/c10d/Backend.hpp>
#endif

#include <cmath>
#include <limits>
#include <memory>
#include <sstream>

#include "api_testing.h"

namespace torch_ssam::testing {
namespace {

struct Linear : torch::nn::Module {
  Tensor weight = register_parameter("weight", torch::tensor({1.0, -2.0, 0.5}, torch::kDouble));
  Tensor forward(const Tensor& x) { return x.matmul(weight); }
};

struct Net : torch::nn::Module {
  torch::nn::Linear first = register_module("first", torch::nn::Linear(5, 7));
  torch::nn::BatchNorm1d norm = register_module("norm", torch::nn::BatchNorm1d(7));
  torch::nn::Dropout dropout = register_module("dropout", torch::nn::Dropout(0.3));
  torch::nn::Linear last = register_module("last", torch::nn::Linear(7, 3));
  Tensor forward(const Tensor& x) { return last(dropout(torch::tanh(norm(first(x))))); }
};

Tensor rows(std::int64_t count, std::int64_t features, torch::Dtype dtype = torch::kDouble) {
  torch::manual_seed(3);
  return torch::randn({count, features}, torch::kDouble).to(dtype);
}

// A schedule whose looks see these two outputs.
struct Told {
  explicit Told(const AdaptiveNoiseStdOptions& options, std::vector<double> noise_std = {0.1}) {
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (const double std : noise_std) {
      groups.emplace_back(std::vector<Tensor>{parameter(torch::ones({2}))},
                          std::make_unique<SSAMOptions>(SSAMOptions(0.1).noise_std(std)));
    }
    opt = std::make_unique<SSAM>(groups, SSAMOptions(0.1).seed(0));
    schedule = std::make_unique<AdaptiveNoiseStd>(*opt, model, options);
  }
  void look(const Tensor& clean, const Tensor& noisy) {
    int calls = 0;
    schedule->step([&] { return calls++ == 0 ? clean : noisy; });
  }
  // Of clean outputs -1 and 1, so that the squared change is the share of the variance.
  void look(double change) {
    const Tensor clean = torch::tensor({-1.0, 1.0}, torch::kDouble);
    look(clean, clean + std::sqrt(change));
  }
  Linear model;
  std::unique_ptr<SSAM> opt;
  std::unique_ptr<AdaptiveNoiseStd> schedule;
};

AdaptiveNoiseStdOptions by_mse(double target = 0.2) { return AdaptiveNoiseStdOptions(target).measure("mse").every(1); }

TEST(AdaptiveNoiseStdTest, MseOfALinearModelIsThatOfTheNoiseOverTheVariance) {
  Linear model;
  SSAM opt(model.parameters(), SSAMOptions(0.1).noise_std(0.1).seed(5));
  WeightNoise noise(model.parameters(), WeightNoiseOptions(0.1).seed(5));
  const Tensor x = rows(50, 3), n = noise.noise(model.weight);
  AdaptiveNoiseStd schedule(opt, model, by_mse());
  schedule.step([&] { return model.forward(x); });
  const Tensor y = model.forward(x).detach();
  const double expected = (x.matmul(n).square().mean() / (y - y.mean()).square().mean()).item<double>();
  EXPECT_NEAR(*schedule.last_change(), expected, 1e-12 * expected);
}

TEST(AdaptiveNoiseStdTest, KlOfTwoClassesIsThatOfTwoBernoulliDistributions) {
  Linear model;
  SSAM opt(model.parameters(), SSAMOptions(0.1).noise_std(0.1).seed(5));
  WeightNoise noise(model.parameters(), WeightNoiseOptions(0.1).seed(5));
  const Tensor x = rows(50, 3), w = model.weight.detach(), n = noise.noise(model.weight);
  AdaptiveNoiseStd schedule(opt, model);
  schedule.step([&] {
    const Tensor z = model.forward(x);
    return torch::stack({z, torch::zeros_like(z)}, -1);
  });
  const Tensor p = torch::sigmoid(x.matmul(w)), q = torch::sigmoid(x.matmul(w + n));
  const Tensor kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log();
  EXPECT_NEAR(*schedule.last_change(), kl.mean().item<double>(), 1e-12);
}

TEST(AdaptiveNoiseStdTest, LogNoiseStdMovesByTheClampedShareOfTheTarget) {
  for (const auto& [change, moves] : std::vector<std::pair<double, double>>{
           {0.0, 0.1}, {0.1, 0.05}, {0.2, 0.0}, {0.3, -0.05}, {0.4, -0.1}, {9.0, -0.1}}) {
    Told told(by_mse(), {0.1, 0.02, 0.0});
    told.look(change);
    const std::vector<double> found = told.schedule->get_last_noise_std();
    EXPECT_NEAR(found[0], 0.1 * std::exp(moves), 1e-12) << change;
    EXPECT_NEAR(found[1], 0.02 * std::exp(moves), 1e-12) << change;
    EXPECT_EQ(found[2], 0.0);
  }
}

TEST(AdaptiveNoiseStdTest, OutputsThatAreNotFiniteLowerTheNoise) {
  for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    for (const char* measure : {"kl", "mse"}) {
      Told told(AdaptiveNoiseStdOptions(0.05).measure(measure));
      const Tensor clean = torch::tensor({{0.0, 1.0}, {2.0, 0.0}}, torch::kDouble);
      told.look(clean, clean + bad);
      EXPECT_NEAR(told.schedule->get_last_noise_std()[0], 0.1 * std::exp(-0.1), 1e-12) << measure << " " << bad;
    }
  }
}

TEST(AdaptiveNoiseStdTest, TheLargestNoiseStdIsBoundedAndNeverReachesZero) {
  Told told(by_mse().rate(2.0), {0.1, 0.4});
  for (int k = 0; k < 3; ++k) told.look(0.0);
  EXPECT_NEAR(told.schedule->get_last_noise_std()[0], 0.125, 1e-12);
  EXPECT_NEAR(told.schedule->get_last_noise_std()[1], 0.5, 1e-12);
  for (int k = 0; k < 30; ++k) told.look(9.0);
  EXPECT_NEAR(told.schedule->get_last_noise_std()[1] * 1e12, 1.0, 1e-9);
}

TEST(AdaptiveNoiseStdTest, EverySaysWhichStepsLookAndTheFirstDoes) {
  Told told(AdaptiveNoiseStdOptions().measure("mse").every(3));
  std::vector<std::int64_t> looked;
  for (int k = 0; k < 7; ++k) {
    told.schedule->step([&] {
      looked.push_back(told.schedule->last_epoch());
      return torch::tensor({0.0, 1.0});
    });
  }
  EXPECT_EQ(looked, (std::vector<std::int64_t>{-1, -1, 2, 2, 5, 5}));
  EXPECT_EQ(told.schedule->last_epoch(), 6);
}

template <typename Optimizer, typename Options>
void expect_no_trace(const Options& options) {
  const Tensor x = rows(12, 5, torch::kFloat), y = rows(12, 3, torch::kFloat);
  std::vector<std::vector<Tensor>> ends;
  for (const bool looks : {false, true}) {
    torch::manual_seed(0);
    Net net;
    Optimizer opt(net.parameters(), options);
    AdaptiveNoiseStd schedule(opt, net, AdaptiveNoiseStdOptions().every(1));
    opt.train();
    for (int k = 0; k < 4; ++k) {
      opt.zero_grad();
      const auto loss = [&] { return (net.forward(x) - y).square().mean(); };
      if (options.keep_perturbed()) {
        loss().backward();
      } else {
        auto pass = opt.perturb();
        loss().backward();
      }
      opt.step();
      if (!looks) continue;
      const double std = schedule.get_last_noise_std()[0];
      schedule.step([&] { return net.forward(x); });
      EXPECT_GT(*schedule.last_change(), 0.0);
      for (auto& group : opt.param_groups()) static_cast<Options&>(group.options()).noise_std(std);
    }
    std::vector<Tensor> end = copies(net.parameters());  // noisy ones too
    opt.eval();
    for (const Tensor& t : copies(net.parameters())) end.push_back(t);
    for (const Tensor& t : copies(net.buffers())) end.push_back(t);
    end.push_back(torch::rand({3}));  // torch's generator has drawn as much
    end.push_back(torch::tensor(opt.draw()));
    ends.push_back(end);
  }
  EXPECT_TRUE(same_bits(ends[0], ends[1]));
}

TEST(AdaptiveNoiseStdTest, ALookLeavesNoTrace) {
  for (const bool kept : {false, true}) {
    expect_no_trace<SSAM>(SSAMOptions(0.1).momentum(0.9).noise_std(0.05).keep_perturbed(kept).seed(3));
    expect_no_trace<SSAMAdamW>(SSAMAdamWOptions(0.01).noise_std(0.05).keep_perturbed(kept).seed(3));
  }
}

TEST(AdaptiveNoiseStdTest, AnErrorOfTheModelLeavesCleanWeightsOrTheSameNoise) {
  for (const bool kept : {false, true}) {
    Linear model;
    SSAM opt(model.parameters(), SSAMOptions(0.1).noise_std(0.1).keep_perturbed(kept).seed(3));
    AdaptiveNoiseStd schedule(opt, model, by_mse());
    opt.train();
    const Tensor before = model.weight.detach().clone();
    int calls = 0;
    EXPECT_THROW(schedule.step([&]() -> Tensor {
      if (++calls == 2) throw std::runtime_error("mine");
      return model.forward(rows(4, 3));
    }),
                 std::runtime_error);
    EXPECT_TRUE(same_bits(model.weight, before)) << kept;
    EXPECT_EQ(schedule.last_epoch(), -1);
    EXPECT_EQ(opt.draw(), 0);
  }
}

TEST(AdaptiveNoiseStdTest, SavesAndLoadsItsCountAndChange) {
  Told told(by_mse());
  told.look(0.1);
  told.look(0.3);
  std::stringstream file;
  torch::save(*told.schedule, file);
  Told other(by_mse());
  torch::load(*other.schedule, file);
  EXPECT_EQ(other.schedule->last_epoch(), 1);
  EXPECT_EQ(other.schedule->last_change(), told.schedule->last_change());
  std::stringstream nothing;
  torch::save(torch::ones({1}), nothing);
  EXPECT_THROW(torch::load(*other.schedule, nothing), c10::Error);
}

void expect_refused(const std::function<void()>& call, const std::string& message) {
  try {
    call();
    ADD_FAILURE() << "not refused: " << message;
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find(message), std::string::npos) << error.what();
  }
}

TEST(AdaptiveNoiseStdTest, AFunctionIsAMeasureToo) {
  const Tensor clean = torch::tensor({1, 2}), noisy = torch::tensor({4, 2});  // which no name of ours would take
  const auto farthest = [](const Tensor& a, const Tensor& b) { return (b - a).abs().max().item<double>(); };
  const auto as_tensor = [](const Tensor& a, const Tensor& b) { return (b - a).abs().max(); };
  for (const OutputChange& measure : {OutputChange(farthest), OutputChange(as_tensor)}) {
    Told told(AdaptiveNoiseStdOptions(4).measure(measure).every(1));
    told.look(clean, noisy);
    EXPECT_EQ(*told.schedule->last_change(), 3.0);
    EXPECT_NEAR(told.schedule->get_last_noise_std()[0], 0.1 * std::exp(0.1 * 0.25), 1e-12);
  }
}

TEST(AdaptiveNoiseStdTest, RanksTakeTheMeanOfTheirChanges) {
  std::vector<double> given;
  Told told(by_mse().mean_over_ranks([&](double change) {
    given.push_back(change);
    return 0.3;  // of 0.1 here and 0.5 elsewhere
  }));
  told.look(0.1);
  EXPECT_NEAR(given.at(0), 0.1, 1e-12);
  EXPECT_EQ(*told.schedule->last_change(), 0.3);
  EXPECT_NEAR(told.schedule->get_last_noise_std()[0], 0.1 * std::exp(-0.05), 1e-12);
  Told other(by_mse().mean_over_ranks([](double) { return std::nan(""); }));
  other.look(0.1);
  EXPECT_NEAR(other.schedule->get_last_noise_std()[0], 0.1 * std::exp(-0.1), 1e-12);
}

// What mean_over() asks of a process group, as c10d's have it; of three ranks, whose others have 0.25 together.
struct OfThree : c10::intrusive_ptr_target {
  struct Work {
    void wait() { *sum += 0.25; }
    Tensor* sum;
  };
  std::shared_ptr<Work> allreduce(std::vector<Tensor>& tensors) { return std::make_shared<Work>(Work{&tensors.at(0)}); }
  int getSize() const { return 3; }
};

TEST(AdaptiveNoiseStdTest, AGroupGivesTheMean) {
  const MeanOverRanks mean = mean_over(c10::make_intrusive<OfThree>());
  EXPECT_EQ(mean(0.5), 0.25);
  EXPECT_TRUE(std::isnan(mean(std::nan(""))));
}

#ifdef USE_DISTRIBUTED
// One of c10d's own kind, of two ranks of which the other has 0.25 too.
struct OfTwo : c10d::Backend {
  struct Done : c10d::Work {
    bool wait(std::chrono::milliseconds) override { return true; }
  };
  OfTwo() : c10d::Backend(0, 2) {}
  const std::string getBackendName() const override { return "of two"; }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<Tensor>& tensors, const c10d::AllreduceOptions&) override {
    tensors.at(0) += 0.25;
    return c10::make_intrusive<Done>();
  }
};

TEST(AdaptiveNoiseStdTest, ABackendOfTorchDistributedIsAGroup) {
  EXPECT_EQ(mean_over(c10::intrusive_ptr<c10d::Backend>(c10::make_intrusive<OfTwo>()))(0.75), 0.5);
}
#endif

TEST(AdaptiveNoiseStdTest, AStateDictHoldsOptionsCountAndChange) {
  Told told(by_mse(0.7).rate(0.25).max_noise_std(0.75));
  told.look(0.1);
  Told other(AdaptiveNoiseStdOptions(0.05));
  other.schedule->load_state_dict(told.schedule->state_dict());
  EXPECT_EQ(other.schedule->last_epoch(), 0);
  EXPECT_EQ(other.schedule->last_change(), told.schedule->last_change());
  told.look(0.4);
  static_cast<SSAMOptions&>(other.opt->param_groups()[0].options())
      .noise_std(0.1 * std::exp(0.25 * (0.7 - *other.schedule->last_change()) / 0.7));
  other.look(0.4);
  EXPECT_EQ(other.schedule->last_epoch(), 1);
  EXPECT_EQ(other.schedule->last_change(), told.schedule->last_change());
  EXPECT_NEAR(other.schedule->get_last_noise_std()[0], told.schedule->get_last_noise_std()[0], 1e-12);
}

TEST(AdaptiveNoiseStdTest, AStateDictThatDoesNotFitChangesNothing) {
  Told told(by_mse());
  told.look(0.1);
  const std::vector<std::pair<const char*, c10::IValue>> wrong{
      {"target", 0.0},         {"target", "much"}, {"measure", "loss"}, {"every", 0},
      {"rate", c10::IValue()}, {"last_epoch", -2}, {"last_epoch", 1.5}, {"last_change", "much"}};
  for (const auto& [name, value] : wrong) {
    c10::impl::GenericDict state = told.schedule->state_dict().toGenericDict().copy();
    state.insert_or_assign("last_epoch", 7);
    state.insert_or_assign(name, value);
    EXPECT_THROW(told.schedule->load_state_dict(state), c10::Error) << name;
    EXPECT_EQ(told.schedule->last_epoch(), 0) << name;
  }
  EXPECT_THROW(told.schedule->load_state_dict(3), c10::Error);
}

TEST(AdaptiveNoiseStdTest, RefusesWhatCannotBeRight) {
  expect_refused([] { Told(AdaptiveNoiseStdOptions(0)); }, "target is 0");
  expect_refused([] { Told(AdaptiveNoiseStdOptions().measure("loss")); }, "measure is \"loss\"");
  using Number = std::function<double(const Tensor&, const Tensor&)>;
  expect_refused([] { Told(AdaptiveNoiseStdOptions().measure(Number())); }, "measure is an empty function");
  expect_refused([] { mean_over(c10::intrusive_ptr<OfThree>()); }, "got no process group");
  expect_refused([] { Told(AdaptiveNoiseStdOptions().every(0)); }, "every is 0");
  const auto several = [](const Tensor& a, const Tensor& b) { return b - a; };
  const auto none = [](const Tensor&, const Tensor&) { return Tensor(); };
  const Tensor pair = torch::ones({2});
  expect_refused([&] { Told(AdaptiveNoiseStdOptions().measure(several)).look(pair, pair); }, "a tensor of shape [2]");
  expect_refused([&] { Told(AdaptiveNoiseStdOptions().measure(none)).look(pair, pair); }, "measure gave no tensor");
  expect_refused([] { Told(AdaptiveNoiseStdOptions().rate(0)); }, "rate is 0");
  expect_refused([] { Told(AdaptiveNoiseStdOptions().max_noise_std(0.05)); }, "above max_noise_std 0.05");
  expect_refused([] { Told({}, {0.0, 0.0}); }, "noise_std is 0 in every group");
  const Tensor one = torch::ones({4, 1}), two = torch::ones({4, 2});
  expect_refused([&] { Told({}).look(one, one); }, "two classes or more");
  expect_refused([&] { Told(by_mse()).look(torch::ones({1, 2}), torch::ones({1, 2})); }, "one has no variance");
  expect_refused([&] { Told({}).look(two, torch::ones({3, 2})); }, "expected the same batch at both");
  expect_refused([&] { Told({}).look(two.to(torch::kLong), two.to(torch::kLong)); }, "one floating-point tensor");
  expect_refused([&] { Told({}).look(Tensor(), Tensor()); }, "gave no tensor");
  Told told(by_mse());
  auto pass = told.opt->perturb();
  expect_refused([&] { told.look(0.1); }, "inside perturb()");
}

}  // namespace
}  // namespace torch_ssam::testing
