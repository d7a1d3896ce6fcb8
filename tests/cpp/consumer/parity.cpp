// Trains the models of tests/python/test_cpp_parity.py in C++: `parity <cases> <results>`. Both are pickles; each case
// is a dict that names model, mode, options and steps and holds weights, data and, to resume, optimizer state. The
// result has the weights, the optimizer's state_dict and the losses, which Python compares bit for bit with its own.
#include <torch/torch.h>
#include <torch_ssam/torch_ssam.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace {

using Dict = c10::impl::GenericDict;
using torch::Tensor;

Dict new_dict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }

torch::nn::Sequential make_model(const std::string& name, bool own_noise, std::int64_t seed) {
  torch::nn::Sequential model;
  if (name == "mlp") {
    model->push_back(torch::nn::Linear(6, 33));
    model->push_back(torch::nn::Tanh());
    model->push_back(torch::nn::Linear(33, 3));
  } else if (name == "cnn") {
    model->push_back(torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 4, 3).padding(1)));
    model->push_back(torch::nn::BatchNorm2d(4));
    model->push_back(torch::nn::ReLU());
    model->push_back(torch::nn::Flatten());
    model->push_back(torch::nn::Linear(4 * 6 * 6, 3));
  } else {
    TORCH_CHECK(name == "diagonal", "unknown model ", name);
    model->push_back(torch::nn::Linear(6, 65));
    model->push_back(torch_ssam::DiagonalLinear(
        torch_ssam::DiagonalLinearOptions(65, 3).noise_std(own_noise ? 0.1 : 0.0).seed(seed)));
    model->push_back(torch::nn::Linear(65, 3));
  }
  return model;
}

double number(const c10::IValue& value) {
  return value.isInt() ? static_cast<double>(value.toInt()) : value.toDouble();
}

// The options of each update; whether the name is one of them.
bool set_option(torch_ssam::SSAMOptions& options, const std::string& name, const c10::IValue& value) {
  if (name == "momentum")
    options.momentum(number(value));
  else if (name == "dampening")
    options.dampening(number(value));
  else if (name == "nesterov")
    options.nesterov(value.toBool());
  else
    return false;
  return true;
}

bool set_option(torch_ssam::SSAMAdamWOptions& options, const std::string& name, const c10::IValue& value) {
  if (name == "betas")
    options.betas({number(value.toTupleRef().elements()[0]), number(value.toTupleRef().elements()[1])});
  else if (name == "eps")
    options.eps(number(value));
  else if (name == "amsgrad")
    options.amsgrad(value.toBool());
  else
    return false;
  return true;
}

template <typename Options>
Options options_from(const Dict& given) {
  Options options;
  for (const auto& item : given) {
    const std::string name = item.key().toStringRef();
    const c10::IValue value = item.value();
    if (set_option(options, name, value)) continue;
    if (name == "lr")
      options.lr(number(value));
    else if (name == "noise_std")
      options.noise_std(number(value));
    else if (name == "weight_decay")
      options.weight_decay(number(value));
    else if (name == "maximize")
      options.maximize(value.toBool());
    else if (name == "distribution")
      options.distribution(value.toStringRef());
    else if (name == "scale")
      options.scale(value.toStringRef());
    else if (name == "fisher_decay")
      options.fisher_decay(number(value));
    else if (name == "fisher_factor")
      options.fisher_factor(number(value));
    else if (name == "samples")
      options.samples(value.toInt());
    else if (name == "antithetic")
      options.antithetic(value.toBool());
    else if (name == "clean_weight")
      options.clean_weight(number(value));
    else if (name == "weight_clip")
      options.weight_clip(number(value));
    else if (name == "channel_dim")
      options.channel_dim(static_cast<std::int64_t>(number(value)));
    else if (name == "radius")
      options.radius(number(value));
    else if (name == "keep_perturbed")
      options.keep_perturbed(value.toBool());
    else if (name == "memory")
      options.memory(value.toStringRef());
    else if (name == "master_dtype")
      options.master_dtype(torch::kFloat);
    else if (name == "seed")
      options.seed(value.toOptional<std::int64_t>());
    else
      TORCH_CHECK(false, "unknown option ", name);
  }
  return options;
}

std::unique_ptr<torch_ssam::NoiseDriver> make_optimizer(const std::string& name, const torch::nn::Sequential& model,
                                                        const Dict& options) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto params = model->parameters();
  groups.emplace_back(std::vector<Tensor>(params.begin(), params.begin() + 2));
  groups.emplace_back(std::vector<Tensor>(params.begin() + 2, params.end()));
  if (name == "SSAMAdamW") {
    return std::make_unique<torch_ssam::SSAMAdamW>(groups, options_from<torch_ssam::SSAMAdamWOptions>(options));
  }
  return std::make_unique<torch_ssam::SSAM>(groups, options_from<torch_ssam::SSAMOptions>(options));
}

Dict run(const Dict& given) {
  const std::string mode = given.at("mode").toStringRef();
  torch::nn::Sequential model =
      make_model(given.at("model").toStringRef(), given.at("own_noise").toBool(), given.at("layer_seed").toInt());
  const bool sixteen = given.at("dtype").toStringRef() == "bfloat16";
  const torch::Dtype dtype = sixteen ? torch::kBFloat16 : torch::kFloat;
  for (auto& p : model->parameters()) p.set_data(p.to(dtype));
  for (auto& b : model->buffers()) {  // Module::to would make counters floating-point too
    if (b.is_floating_point()) b.set_data(b.to(dtype));
  }
  torch_ssam::load_state_dict(*model, given.at("weights"));
  torch::manual_seed(static_cast<std::uint64_t>(given.at("manual_seed").toInt()));
  const auto optimizer = make_optimizer(given.at("rule").toStringRef(), model, given.at("options").toGenericDict());
  torch_ssam::NoiseDriver& opt = *optimizer;
  if (!given.at("optimizer").isNone()) opt.load_state_dict(given.at("optimizer"));
  const Tensor x = given.at("x").toTensor(), y = given.at("y").toTensor();
  std::vector<double> losses;
  const auto backward = [&](const Tensor& x_k, const Tensor& y_k) {
    const Tensor loss = torch::nn::functional::cross_entropy(model->forward(x_k.to(dtype)).to(torch::kFloat), y_k);
    loss.backward();
    return loss;
  };
  const auto note = [&](const Tensor& loss) { losses.push_back(loss.item<double>()); };
  std::optional<torch_ssam::AdaptiveNoiseStd> schedule;
  const std::string measure = given.at("adapts_by").toStringRef();
  if (!measure.empty()) {
    torch_ssam::AdaptiveNoiseStdOptions adapts(0.02);
    if (measure == "function") {
      adapts.measure([](const Tensor& clean, const Tensor& noisy) { return (noisy - clean).abs().mean(); });
    } else {
      adapts.measure(measure);
    }
    schedule.emplace(opt, *model, adapts.every(2).rate(0.5));
    if (!given.at("schedule").isNone()) schedule->load_state_dict(given.at("schedule"));
  }
  const auto look = [&] {
    if (schedule) schedule->step([&] { return model->forward(x.to(dtype)); });
  };
  opt.train();
  for (std::int64_t step = 0; step < given.at("steps").toInt(); ++step) {
    if (mode == "closure") {
      note(opt.step([&] {
        opt.zero_grad();
        return backward(x, y);
      }));
      look();
      continue;
    }
    opt.zero_grad();
    if (mode == "perturb") {
      auto perturbed = opt.perturb();
      note(backward(x, y));
    } else if (mode == "passes") {
      for ([[maybe_unused]] const auto k : opt.perturbations()) note(backward(x, y));
    } else if (mode == "split") {
      for (const auto& [x_k, y_k] : opt.perturbations(x, y)) note(backward(x_k, y_k));
    } else {
      TORCH_CHECK(mode == "kept" || mode == "plain", "unknown mode ", mode);
      note(backward(x, y));
    }
    opt.step();
    look();
  }
  Dict result = new_dict();
  result.insert("optimizer", opt.state_dict());  // in train it carries the clean weights
  result.insert("schedule", schedule ? schedule->state_dict() : c10::IValue());
  opt.eval();
  result.insert("weights", torch_ssam::state_dict(*model));
  result.insert("losses", torch::tensor(losses, torch::kDouble));
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: parity <cases> <results>\n");
    return 2;
  }
  try {
    const Dict cases = torch_ssam::read_pickle(argv[1]).toGenericDict();
    Dict results = new_dict();
    for (const auto& item : cases) results.insert(item.key(), run(item.value().toGenericDict()));
    torch_ssam::write_pickle(results, argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "parity: %s\n", error.what());
    return 1;
  }
  return 0;
}
