// AdaptiveNoiseStd: the measures, the rule, and a look that leaves no trace. Python's twins are schedules.py and
// noise/output_change.py, whose order of operations this follows. Tests: tests/cpp/test_api_schedules.cpp.
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <torch/serialize/archive.h>
#include <torch_ssam/schedules.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include "checks.h"
#include "pickled.h"

namespace torch_ssam {

namespace {

constexpr double kLowest = 1e-12;  // the largest noise_std is not lowered below: from 0 it could not rise again

FusedOptions& options_of_group(torch::optim::OptimizerParamGroup& group) {
  return static_cast<FusedOptions&>(group.options());
}

at::Tensor wide(const at::Tensor& outputs) {
  TORCH_CHECK_VALUE(outputs.defined() && outputs.is_floating_point(), "torch_ssam: outputs() gave ",
                    outputs.defined() ? c10::toString(outputs.scalar_type()) : "no tensor",
                    "; expected one floating-point tensor, such as the model's logits.");
  return outputs.to(outputs.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

double kl(const at::Tensor& clean, const at::Tensor& noisy) {
  TORCH_CHECK_VALUE(clean.dim() > 0 && clean.size(-1) > 1, "torch_ssam: measure \"kl\" got outputs of shape ",
                    clean.sizes(),
                    "; expected logits with two classes or more in the last dimension. Give those of one logit z as "
                    "torch::stack({z, torch::zeros_like(z)}, -1); for regression use \"mse\".");
  const at::Tensor p = clean.log_softmax(-1), q = noisy.log_softmax(-1), weights = p.exp();
  return at::where(weights == 0, 0.0, weights * (p - q)).sum(-1).mean().item<double>();
}

double mse(const at::Tensor& clean, const at::Tensor& noisy) {
  TORCH_CHECK_VALUE(clean.dim() > 0 && clean.size(0) > 1, "torch_ssam: measure \"mse\" got outputs of shape ",
                    clean.sizes(),
                    "; expected two examples or more along the first dimension, since one has no variance. Give a "
                    "batch of several.");
  return ((noisy - clean).square().sum() / (clean - clean.mean(0)).square().sum()).item<double>();
}

// One number of a measure that gives a tensor.
double number_of(const at::Tensor& found) {
  TORCH_CHECK_VALUE(found.defined() && found.numel() == 1, "torch_ssam: measure gave ",
                    found.defined() ? c10::str("a tensor of shape ", found.sizes()) : std::string("no tensor"),
                    "; expected one number, larger where noise changes more.");
  return found.item<double>();
}

double change(const OutputChange& measure, const at::Tensor& clean_outputs, const at::Tensor& noisy_outputs) {
  if (const auto* number = std::get_if<1>(&measure)) return (*number)(clean_outputs, noisy_outputs);
  if (const auto* tensor = std::get_if<2>(&measure)) return number_of((*tensor)(clean_outputs, noisy_outputs));
  const at::Tensor clean = wide(clean_outputs), noisy = wide(noisy_outputs);
  TORCH_CHECK_VALUE(clean.sizes() == noisy.sizes(), "torch_ssam: the outputs have shape ", clean.sizes(),
                    " at the clean weights and ", noisy.sizes(),
                    " at the noisy ones; expected the same batch at both.");
  return std::get<std::string>(measure) == "kl" ? kl(clean, noisy) : mse(clean, noisy);
}

// torch's random generators of the devices that tensors are on, as they were.
class RandomState {
 public:
  explicit RandomState(const std::vector<at::Tensor>& tensors) {
    std::vector<at::Device> devices{at::Device(at::kCPU)};
    for (const at::Tensor& tensor : tensors) {
      if (std::find(devices.begin(), devices.end(), tensor.device()) == devices.end()) {
        devices.push_back(tensor.device());
      }
    }
    for (const at::Device& device : devices) {
      at::Generator generator = at::globalContext().defaultGenerator(device);
      const std::lock_guard<std::mutex> lock(generator.mutex());
      states_.emplace_back(generator, generator.get_state());
    }
  }
  ~RandomState() { set(); }
  RandomState(const RandomState&) = delete;
  RandomState& operator=(const RandomState&) = delete;

  void set() {
    for (auto& [generator, state] : states_) {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(state);
    }
  }

 private:
  std::vector<std::pair<at::Generator, at::Tensor>> states_;
};

// The buffers of a model, put back when this ends.
class SavedBuffers {
 public:
  explicit SavedBuffers(const torch::nn::Module& model) {
    for (const at::Tensor& buffer : model.buffers()) saved_.emplace_back(buffer, buffer.clone());
  }
  ~SavedBuffers() {
    const at::NoGradGuard no_grad;
    for (auto& [buffer, bits] : saved_) buffer.copy_(bits);
  }
  SavedBuffers(const SavedBuffers&) = delete;
  SavedBuffers& operator=(const SavedBuffers&) = delete;

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> saved_;
};

void check_options(const AdaptiveNoiseStdOptions& options) {
  detail::check_number("target", options.target(), 0, /*open_low=*/true);
  const auto* name = std::get_if<std::string>(&options.measure());
  TORCH_CHECK_VALUE(name == nullptr || *name == "kl" || *name == "mse", "torch_ssam: measure is \"",
                    name == nullptr ? "" : *name,
                    "\"; expected \"kl\", \"mse\" or a function of (clean, noisy) outputs.");
  const auto* number = std::get_if<1>(&options.measure());
  const auto* tensor = std::get_if<2>(&options.measure());
  TORCH_CHECK_VALUE((number == nullptr || *number) && (tensor == nullptr || *tensor),
                    "torch_ssam: measure is an empty function; expected one of (clean, noisy) outputs.");
  detail::check_count("every", options.every(), 1, 4294967295);
  detail::check_number("rate", options.rate(), 0, /*open_low=*/true);
  detail::check_number("max_noise_std", options.max_noise_std(), 0, /*open_low=*/true);
}

}  // namespace

AdaptiveNoiseStd::AdaptiveNoiseStd(NoiseDriver& optimizer, torch::nn::Module& model, AdaptiveNoiseStdOptions options)
    : optimizer_(optimizer), model_(model), options_(std::move(options)) {
  check_options(options_);
  TORCH_CHECK_VALUE(largest() <= options_.max_noise_std(), "torch_ssam: noise_std is ", largest(),
                    ", above max_noise_std ", options_.max_noise_std(), "; expected a start below it.");
}

std::vector<double> AdaptiveNoiseStd::get_last_noise_std() const {
  std::vector<double> found;
  for (auto& group : optimizer_.param_groups()) found.push_back(options_of_group(group).noise_std());
  return found;
}

double AdaptiveNoiseStd::largest() const {
  const std::vector<double> all = get_last_noise_std();
  const double found = *std::max_element(all.begin(), all.end());
  TORCH_CHECK_VALUE(found > 0,
                    "torch_ssam: noise_std is 0 in every group: no multiple of it changes what the model says. Start "
                    "AdaptiveNoiseStd from a small positive one, such as 0.001.");
  return found;
}

void AdaptiveNoiseStd::step(const std::function<at::Tensor()>& outputs) {
  TORCH_CHECK_VALUE(outputs, "torch_ssam: step() got no function; expected one that gives the model's outputs.");
  const std::int64_t reached = last_epoch_ + 1;
  if (reached % options_.every() == 0) look(outputs);
  last_epoch_ = reached;
}

void AdaptiveNoiseStd::look(const std::function<at::Tensor()>& outputs) {
  const double before = largest();
  std::vector<at::Tensor> params;
  for (auto& group : optimizer_.param_groups()) {
    params.insert(params.end(), group.params().begin(), group.params().end());
  }
  RandomState random(params);
  const auto [clean, noisy] = optimizer_.clean_and_noisy([&] {
    random.set();
    const SavedBuffers buffers(model_);
    const at::Tensor found = outputs();
    return found.defined() ? found.clone() : found;  // which may be a buffer, or the place of the next outputs
  });
  const double found = change(options_.measure(), clean, noisy);
  last_change_ = options_.mean_over_ranks() ? options_.mean_over_ranks()(found) : found;
  const double part = (options_.target() - *last_change_) / options_.target();
  const double moved = std::exp(options_.rate() * (std::isfinite(part) ? std::clamp(part, -1.0, 1.0) : -1.0));
  const double factor = std::max(std::min(moved, options_.max_noise_std() / before), std::min(1.0, kLowest / before));
  for (auto& group : optimizer_.param_groups()) options_of_group(group).noise_std() *= factor;
}

c10::IValue AdaptiveNoiseStd::state_dict() const {
  detail::Dict dict = detail::new_dict();
  dict.insert("last_epoch", last_epoch_);
  dict.insert("target", options_.target());
  if (const auto* name = std::get_if<std::string>(&options_.measure())) dict.insert("measure", *name);
  dict.insert("every", options_.every());
  dict.insert("rate", options_.rate());
  dict.insert("max_noise_std", options_.max_noise_std());
  dict.insert("last_change", last_change_ ? c10::IValue(*last_change_) : c10::IValue());
  return dict;
}

void AdaptiveNoiseStd::load_state_dict(const c10::IValue& state_dict) {
  const detail::Dict dict = detail::as_dict(state_dict, "the schedule's state_dict");
  AdaptiveNoiseStdOptions options = options_;
  options.target(detail::as_double(detail::value_of(dict, "target"), "target"));
  const c10::IValue measure = detail::value_of(dict, "measure");
  if (!measure.isNone()) options.measure(detail::as_string(measure, "measure"));
  options.every(detail::as_int(detail::value_of(dict, "every"), "every"));
  options.rate(detail::as_double(detail::value_of(dict, "rate"), "rate"));
  options.max_noise_std(detail::as_double(detail::value_of(dict, "max_noise_std"), "max_noise_std"));
  check_options(options);
  const std::int64_t epoch = detail::as_int(detail::value_of(dict, "last_epoch"), "last_epoch");
  TORCH_CHECK_VALUE(epoch >= -1, "torch_ssam: last_epoch is ", epoch, "; expected -1 or more.");
  const c10::IValue found = detail::value_of(dict, "last_change");
  last_change_ = found.isNone() ? std::nullopt : std::optional<double>(detail::as_double(found, "last_change"));
  last_epoch_ = epoch;
  options_ = std::move(options);
}

void AdaptiveNoiseStd::save(torch::serialize::OutputArchive& archive) const {
  archive.write("last_epoch", c10::IValue(last_epoch_));
  if (last_change_) archive.write("last_change", c10::IValue(*last_change_));
}

void AdaptiveNoiseStd::load(torch::serialize::InputArchive& archive) {
  c10::IValue epoch, found;
  TORCH_CHECK_VALUE(archive.try_read("last_epoch", epoch) && epoch.isInt() && epoch.toInt() >= -1,
                    "torch_ssam: AdaptiveNoiseStd::load() found no count of steps; expected what save() wrote.");
  const bool looked = archive.try_read("last_change", found);
  TORCH_CHECK_VALUE(!looked || found.isDouble(),
                    "torch_ssam: AdaptiveNoiseStd::load() got a last change that is no "
                    "number; expected what save() wrote.");
  last_epoch_ = epoch.toInt();
  last_change_ = looked ? std::optional<double>(found.toDouble()) : std::nullopt;
}

torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                            const AdaptiveNoiseStd& schedule) {
  schedule.save(archive);
  return archive;
}

torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, AdaptiveNoiseStd& schedule) {
  schedule.load(archive);
  return archive;
}

}  // namespace torch_ssam
