// Training runs that end in the same bits on every machine, as in tests/python/checkpoint_runs.py: the same model, the
// same gradients, the same layout of checkpoints, which Python reads too. Gradients are functions of single weights,
// made of float additions and multiplications that torch cannot fuse. write_checkpoints.cpp writes checkpoints with one
// version, test_api_old_checkpoints.cpp goes on from them with every later one.
#pragma once

#include <torch/torch.h>
#include <torch_ssam/torch_ssam.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace torch_ssam::testing {

using Dict = c10::impl::GenericDict;
using torch::Tensor;
using torch::optim::OptimizerParamGroup;

inline Dict new_dict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }

inline c10::impl::GenericList list_of(const std::vector<Tensor>& tensors) {
  c10::impl::GenericList list(c10::AnyType::get());
  for (const Tensor& t : tensors) list.push_back(t.detach().clone());
  return list;
}

// How a run is made. What stands in a checkpoint is not in it, save what an optimizer keeps as constructed.
struct TrainingRun {
  std::string model = "tensors", drive = "perturb", saved = "as it is", dtype = "float32";
  std::int64_t steps = 3, more = 3;
  std::int64_t groups = 0;  // 0: none, a list of parameters
  bool keep_perturbed = false;
  std::vector<bool> masters{false};  // of each group
  std::int64_t depth = 2;            // of the DiagonalLinear
  bool readout = false;
};

inline Dict describe(const TrainingRun& run) {
  Dict found = new_dict(), options = new_dict(), layer = new_dict();
  const auto master = [](bool has) { return has ? c10::IValue("float32") : c10::IValue(); };
  for (const auto& [name, value] : {std::pair("model", run.model), std::pair("drive", run.drive),
                                    std::pair("saved", run.saved), std::pair("dtype", run.dtype)}) {
    found.insert(name, value);
  }
  found.insert("front", "SSAM");
  found.insert("steps", run.steps);
  found.insert("more", run.more);
  options.insert("lr", 0.5);
  options.insert("noise_std", 0.5);
  options.insert("seed", 1);
  options.insert("keep_perturbed", run.keep_perturbed);
  if (run.groups == 0) options.insert("master_dtype", master(run.masters[0]));
  found.insert("options", options);
  if (run.groups > 0) {
    c10::impl::GenericList groups(c10::AnyType::get());
    for (std::int64_t g = 0; g < run.groups; ++g) {
      Dict group = new_dict();
      group.insert("master_dtype", master(run.masters[static_cast<std::size_t>(g)]));
      groups.push_back(group);
    }
    found.insert("groups", groups);
  }
  layer.insert("depth", run.depth);
  layer.insert("readout", run.readout ? c10::IValue("sum") : c10::IValue());
  layer.insert("noise_std", 0.25);
  found.insert("layer", layer);
  return found;
}

inline TrainingRun described(const Dict& found) {
  TrainingRun run;
  run.model = found.at("model").toStringRef();
  run.drive = found.at("drive").toStringRef();
  run.saved = found.at("saved").toStringRef();
  run.dtype = found.at("dtype").toStringRef();
  run.steps = found.at("steps").toInt();
  run.more = found.at("more").toInt();
  const Dict options = found.at("options").toGenericDict(), layer = found.at("layer").toGenericDict();
  run.keep_perturbed = options.at("keep_perturbed").toBool();
  if (found.contains("groups")) {
    run.masters.clear();
    for (const c10::IValue& group : found.at("groups").toListRef()) {
      run.masters.push_back(!group.toGenericDict().at("master_dtype").isNone());
    }
    run.groups = static_cast<std::int64_t>(run.masters.size());
  } else {
    run.masters = {!options.at("master_dtype").isNone()};
  }
  run.depth = layer.at("depth").toInt();
  run.readout = !layer.at("readout").isNone();
  return run;
}

inline torch::Dtype dtype_of(const TrainingRun& run) {
  if (run.dtype == "float64") return torch::kDouble;
  if (run.dtype == "bfloat16") return torch::kBFloat16;
  return run.dtype == "float16" ? torch::kHalf : torch::kFloat;
}

// --- model and gradients

class Model : public torch::nn::Module {
 public:
  Model(const TrainingRun& run, std::uint64_t seed) {
    torch::manual_seed(seed);
    const auto values = [&](at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble).to(dtype_of(run)); };
    if (run.model == "tensors") {
      register_parameter("conv", values({4, 2, 3, 3}));
      const Tensor linear = register_parameter("linear", values({5, 7}));
      register_parameter("bias", values({7}));
      register_parameter("frozen", values({3, 2}), /*requires_grad=*/false);
      register_parameter("transposed", values({6, 4}).t());
      register_parameter("scalar", values({}));
      register_parameter("tied", linear);
    } else {
      DiagonalLinearOptions options(7, run.depth);
      options.noise_std(0.25).seed(-5);
      if (run.readout) options.readout("sum");
      diagonal = register_module("diagonal", DiagonalLinear(options));
      diagonal->to(dtype_of(run));
      const torch::NoGradGuard no_grad;
      diagonal->weight.copy_(values(diagonal->weight.sizes()));
    }
  }

  // In the order of registration, each once.
  std::vector<Tensor> tensors() const {
    std::vector<Tensor> found;
    for (const Tensor& p : parameters()) {
      bool known = false;
      for (const Tensor& other : found) known = known || other.is_same(p);
      if (!known) found.push_back(p);
    }
    return found;
  }

  DiagonalLinear diagonal = nullptr;
};

inline Tensor pattern(const Tensor& like, std::int64_t shift) {
  const Tensor index = torch::arange(like.numel(), torch::kLong).reshape(like.sizes());
  return ((index * 37 + shift).remainder(17) - 8).to(like.scalar_type()) / 16;
}

inline Tensor gradient(const Tensor& param, std::int64_t place, std::int64_t step) {
  Tensor w = param.detach();
  if (w.scalar_type() != torch::kDouble) w = w.to(torch::kFloat);
  Tensor g = w * 0.75;
  g = g + w * w * 0.125;
  g = g - pattern(w, 11 * place + 5 * step);
  return g.to(param.scalar_type());
}

inline void backward(Model& model, std::int64_t step) {
  if (model.diagonal) {
    const Tensor x = pattern(torch::empty({3, model.diagonal->weight.size(1)}, model.diagonal->weight.options()), step);
    const Tensor y = model.diagonal->forward(x);
    y.backward(gradient(y, 0, step));
    return;
  }
  const std::vector<Tensor> params = model.tensors();
  for (std::size_t i = 0; i < params.size(); ++i) {
    if (params[i].requires_grad()) params[i].backward(gradient(params[i], static_cast<std::int64_t>(i), step));
  }
}

// --- optimizer and training

// Groups as Python's make_groups; `options` has one entry for each, or is empty.
inline SSAM make_optimizer(const Model& model, const SSAMOptions& defaults, const std::vector<SSAMOptions>& options) {
  const std::vector<Tensor> params = model.tensors();
  if (options.empty()) return SSAM(params, defaults);
  std::vector<OptimizerParamGroup> groups;
  const auto bound = [&](std::size_t g) {
    return static_cast<std::ptrdiff_t>(
        std::nearbyint(static_cast<double>(g * params.size()) / static_cast<double>(options.size())));
  };
  for (std::size_t g = 0; g < options.size(); ++g) {
    groups.emplace_back(std::vector<Tensor>(params.begin() + bound(g), params.begin() + bound(g + 1)),
                        std::make_unique<SSAMOptions>(options[g]));
  }
  return SSAM(groups, defaults);
}

// The optimizer into which a checkpoint is loaded: options of which nothing may remain, but for those that stay.
inline SSAM make_other_optimizer(const TrainingRun& run, const Model& model) {
  SSAMOptions defaults = SSAMOptions(0.5).noise_std(0.5).seed(1).keep_perturbed(run.keep_perturbed);
  if (run.groups == 0 && run.masters[0]) defaults.master_dtype(torch::kFloat);
  std::vector<SSAMOptions> options(static_cast<std::size_t>(run.groups));
  for (std::size_t g = 0; g < options.size(); ++g) {
    if (run.masters[g]) options[g].master_dtype(torch::kFloat);
  }
  return make_optimizer(model, defaults, options);
}

inline void train(const TrainingRun& run, SSAM& opt, Model& model, std::int64_t first, std::int64_t count) {
  opt.train();
  for (std::int64_t step = first; step < first + count; ++step) {
    if (run.drive == "closure") {
      opt.step([&] {
        opt.zero_grad();
        backward(model, step);
        return torch::full({}, 0.5);
      });
      continue;
    }
    opt.zero_grad();
    if (run.drive == "kept") {
      backward(model, step);
    } else if (run.drive == "perturbations") {
      for ([[maybe_unused]] const auto k : opt.perturbations()) backward(model, step);
    } else {
      const auto perturbed = opt.perturb();
      backward(model, step);
    }
    opt.step();
  }
}

// Weights, state and options, then the weights in every pass of the next step.
inline Dict result_of(const TrainingRun& run, SSAM& opt, Model& model) {
  opt.eval();
  Dict found = new_dict();
  Dict weights = new_dict();
  for (const auto& item : state_dict(model).toGenericDict())
    weights.insert(item.key(), item.value().toTensor().clone());
  found.insert("model", weights);
  found.insert("opt", opt.state_dict());
  c10::impl::GenericList next(c10::AnyType::get());
  if (run.drive == "kept") {
    opt.train();
    next.push_back(list_of(model.tensors()));
    opt.eval();
  } else {
    for ([[maybe_unused]] const auto k : opt.perturbations()) next.push_back(list_of(model.tensors()));
  }
  found.insert("next", next);
  return found;
}

// --- WeightNoise

// The noise, and the weights with it, in the next draws.
inline c10::impl::GenericList noisy_weights(WeightNoise& noise, const Model& model, std::int64_t count) {
  c10::impl::GenericList found(c10::AnyType::get());
  for (std::int64_t k = 0; k < count; ++k) {
    std::vector<Tensor> values;
    for (const Tensor& p : model.tensors()) values.push_back(noise.noise(p, k));
    found.push_back(list_of(values));
    const auto perturbed = noise.applied(k, k % 2 == 1);
    found.push_back(list_of(model.tensors()));
  }
  return found;
}

}  // namespace torch_ssam::testing
