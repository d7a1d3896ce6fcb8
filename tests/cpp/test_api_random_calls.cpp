// Random wrong calls of SSAM, WeightNoise and DiagonalLinear: a result or a c10::Error, nothing else, and after an
// error the clean weights have the bits they had. What the messages say is in test_api_errors.cpp. 2,400 objects here,
// TORCH_SSAM_STRESS times as many in `make stress`.
#include "api_testing.h"
#include "random_calls.h"

namespace torch_ssam {
namespace {

using namespace testing;
using torch::optim::OptimizerParamGroup;

Tensor odd_tensor(Chance& chance) {
  const auto dtype =
      chance.one_of({torch::kFloat, torch::kDouble, torch::kHalf, torch::kLong, torch::kBool, torch::kComplexFloat});
  const auto shape = chance.one_of<std::vector<std::int64_t>>({{}, {0}, {1}, {3}, {5, 4}, {2, 3, 4}, {3, 0, 2}});
  const Tensor plain = torch::ones(shape, dtype);
  switch (chance.below(8)) {
    case 0:
      return Tensor();
    case 1:
      return plain.to(torch::kMeta);
    case 2:
      return plain.dim() > 0 ? plain.to_sparse() : plain;
    case 3:
      return torch::ones({1}, dtype).expand({5});
    case 4:
      return torch::ones({4, 5}, dtype).t();
    case 5:
      return parameter(torch::ones(3)) * 2;
    case 6:
      return torch::full({3}, NAN).requires_grad_(true);
    default:
      return plain;
  }
}

SSAMOptions odd_options(Chance& chance) {
  SSAMOptions options(0.1);
  options.momentum(0.5).noise_std(0.3).keep_perturbed(chance.one_in(3));
  if (chance.one_in(6)) options.memory("regenerate");
  if (chance.one_in(6)) options.scale("filter");
  for (std::int64_t changes = chance.below(3); changes > 0; --changes) {
    switch (chance.below(16)) {
      case 0:
        options.lr(chance.number());
        break;
      case 1:
        options.noise_std(chance.number());
        break;
      case 2:
        options.momentum(chance.number());
        break;
      case 3:
        options.dampening(chance.number());
        break;
      case 4:
        options.weight_decay(chance.number());
        break;
      case 5:
        options.nesterov(true);
        break;
      case 6:
        options.maximize(true);
        break;
      case 7:
        options.distribution(chance.word());
        break;
      case 8:
        options.scale(chance.word());
        break;
      case 9:
        options.fisher_decay(chance.number());
        break;
      case 10:
        options.fisher_factor(chance.number());
        break;
      case 11:
        options.samples(chance.integer());
        break;
      case 12:
        options.clean_weight(chance.number());
        break;
      case 13:
        options.radius(chance.number());
        break;
      case 14:
        options.memory(chance.word());
        break;
      default:
        options.seed(chance.integer());
        break;
    }
  }
  return options;
}

void backward(const std::vector<Tensor>& params) {
  Tensor loss = torch::zeros({}, torch::kDouble);
  for (const Tensor& p : params) loss = loss + (p.to(torch::kDouble) + 0.5).square().sum();
  loss.backward();
}

c10::IValue odd_state(Chance& chance, const SSAM& opt) {
  switch (chance.below(4)) {
    case 0:
      return {};
    case 1:
      return c10::IValue(odd_tensor(chance));
    case 2:
      return c10::impl::GenericDict(c10::StringType::get(), c10::AnyType::get());
    default: {
      auto state = opt.state_dict().toGenericDict();
      auto keys = std::vector<c10::IValue>();
      for (const auto& entry : state) keys.push_back(entry.key());
      state.insert_or_assign(keys[static_cast<std::size_t>(chance.below(static_cast<std::int64_t>(keys.size())))],
                             c10::IValue(chance.number()));
      return state;
    }
  }
}

// One call that may be wrong. True where it may have written the clean weights.
bool call(Chance& chance, SSAM& opt, const std::vector<Tensor>& params) {
  switch (chance.below(12)) {
    case 0: {
      const auto pass = opt.perturb();
      backward(params);
      return false;
    }
    case 1: {
      const auto pass = opt.perturb();
      const auto inner = opt.perturb();
      return false;
    }
    case 2: {
      const auto pass = opt.perturb();
      opt.step();
      return true;
    }
    case 3:
      for ([[maybe_unused]] const auto k : opt.perturbations()) backward(params);
      return false;
    case 4:
      for (const auto& [x, y] : opt.perturbations(odd_tensor(chance), odd_tensor(chance))) backward(params);
      return false;
    case 5:
      opt.step([&] { return odd_tensor(chance); });
      return true;
    case 6:
      opt.step([&] {
        backward(params);
        return torch::ones({});
      });
      return true;
    case 7:
      opt.train(chance.one_in(2));
      return false;
    case 8: {  // dtype, layout and shape as they come: a gradient of autograd's own always fits
      Tensor param = params[static_cast<std::size_t>(chance.below(static_cast<std::int64_t>(params.size())))];
      const Tensor grad = odd_tensor(chance);
      if (grad.defined() && grad.sizes() != param.sizes() && chance.one_in(2)) return false;
      param.mutable_grad() = grad;
      opt.step();
      return true;
    }
    case 9:
      opt.load_state_dict(odd_state(chance, opt));
      return false;
    case 10: {
      std::vector<Tensor> more;
      for (std::int64_t k = chance.below(3); k > 0; --k) more.push_back(odd_tensor(chance));
      if (chance.one_in(3)) more.push_back(params[0]);
      opt.add_param_group(OptimizerParamGroup(more, std::make_unique<SSAMOptions>(odd_options(chance))));
      return false;
    }
    default: {
      auto& options = static_cast<SSAMOptions&>(opt.param_groups()[0].options());
      const SSAMOptions good = options;
      options = odd_options(chance);
      try {
        opt.step();
      } catch (const c10::Error&) {
        options = good;
        throw;
      }
      options = good;
      return true;
    }
  }
}

TEST(RandomCallsTest, WrongCallsOfSsamLeaveTheCleanWeights) {
  std::int64_t refused = 0, made = 0, calls = 0;
  Chance chance(1);
  SCOPED_TRACE("seed " + std::to_string(chance.seed()));
  for (std::int64_t number = 0; number < 800 * Chance::stress(); ++number) {
    const auto params = parameters(chance.one_of({torch::kFloat, torch::kDouble, torch::kBFloat16}));
    auto clean = copies(params);
    auto given = params;
    if (chance.one_in(4)) given.push_back(odd_tensor(chance));
    std::optional<SSAM> opt;
    try {
      opt.emplace(given, odd_options(chance));
    } catch (const c10::Error&) {
      ++refused;
      ASSERT_TRUE(same_bits(params, clean)) << "object " << number;
      continue;
    }
    ++made;
    const bool exact = static_cast<const SSAMOptions&>(opt->param_groups()[0].options()).memory() == "copy";
    for (int k = 0; k < 6; ++k, ++calls) {
      bool writes = true;
      std::string error;
      try {
        writes = call(chance, *opt, params);
      } catch (const c10::Error& refusal) {
        error = refusal.what_without_backtrace();
        ++refused;
        writes = false;
      }
      opt->eval();
      if (writes || !exact) {
        clean = copies(params);
      } else {
        ASSERT_TRUE(same_bits(params, clean)) << "object " << number << ", call " << k << ": " << error;
      }
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(made, 0);
  EXPECT_GT(calls, 0);
}

TEST(RandomCallsTest, WrongCallsOfWeightNoiseLeaveTheCleanWeights) {
  std::int64_t refused = 0, made = 0;
  Chance chance(2);
  SCOPED_TRACE("seed " + std::to_string(chance.seed()));
  for (std::int64_t number = 0; number < 800 * Chance::stress(); ++number) {
    const auto params = parameters(chance.one_of({torch::kFloat, torch::kDouble, torch::kHalf}));
    const auto clean = copies(params);
    auto given = params;
    if (chance.one_in(4)) given.push_back(odd_tensor(chance));
    WeightNoiseOptions options(chance.one_in(3) ? chance.number() : 0.2);
    if (chance.one_in(4)) options.distribution(chance.word());
    if (chance.one_in(4)) options.scale(chance.word());
    if (chance.one_in(8)) options.memory(chance.word());
    if (chance.one_in(2)) options.seed(chance.integer());
    try {
      WeightNoise noise(given, options);
      ++made;
      const auto before = noise.draw();
      try {
        noise.noise(chance.one_in(2) ? params[0] : odd_tensor(chance), chance.integer());
        const auto first = noise.applied(chance.integer(), chance.one_in(2), chance.one_in(2));
        const auto second = noise.applied();
      } catch (const c10::Error&) {
        ++refused;
      }
      EXPECT_GE(noise.draw(), before);
    } catch (const c10::Error&) {
      ++refused;
    }
    ASSERT_TRUE(options.memory() != "copy" || same_bits(params, clean)) << "object " << number;
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(made, 0);
}

TEST(RandomCallsTest, WrongCallsOfDiagonalLinearLeaveItsWeight) {
  std::int64_t refused = 0, made = 0;
  Chance chance(3);
  SCOPED_TRACE("seed " + std::to_string(chance.seed()));
  for (std::int64_t number = 0; number < 800 * Chance::stress(); ++number) {
    DiagonalLinearOptions options(chance.one_in(4) ? chance.integer() : 3, chance.one_in(4) ? chance.integer() : 2);
    if (chance.one_in(4)) options.readout(chance.word());
    if (chance.one_in(4)) options.init_scale(chance.numbers());
    if (chance.one_in(4)) options.noise_std(chance.number());
    if (chance.one_in(4)) options.seed(chance.integer());
    try {
      DiagonalLinear layer(options);
      ++made;
      const auto weight = copies({layer->weight});
      try {
        const Tensor out = layer->forward(odd_tensor(chance));
        out.sum().backward();
      } catch (const c10::Error&) {
        ++refused;
      }
      ASSERT_TRUE(same_bits({layer->weight}, weight)) << "object " << number;
    } catch (const c10::Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(made, 0);
}

}  // namespace
}  // namespace torch_ssam
