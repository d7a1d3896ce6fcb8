// How SSAM is driven: groups, perturb(), perturbations(), step(closure), train() and eval(). The order of operator
// calls, draws and scalings is that of Python's optim/base.py, so that the same run gives the same bits.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch_ssam/ssam.h>

#include <limits>

#include "noise/options.h"
#include "noise/parameters.h"
#include "noise/seeds.h"
#include "optim/counted.h"
#include "optim/options.h"
#include "optim/passes.h"

namespace torch_ssam {

using detail::check_common;
using detail::Loop;
using torch::optim::OptimizerParamGroup;

namespace {

const char* const kWays =
    "Drive it in one of these ways: (1) { auto perturbed = opt.perturb(); loss.backward(); } and then opt.step(); "
    "(2) opt.step(closure); (3) for (auto pass : opt.perturbations()) loss.backward(); and then opt.step(); "
    "(4) construct it with keep_perturbed(true), call opt.train() once, and keep a plain loop.";

const char* const kEmptyPass =
    "A pass has ended in which no grad changed: backward() belongs inside of it as well as the forward pass, and "
    "gradients that are computed otherwise are assigned inside. ";

}  // namespace

SSAM::SSAM(std::vector<at::Tensor> params, SSAMOptions defaults)
    : SSAM({OptimizerParamGroup(std::move(params))}, std::move(defaults)) {}

SSAM::SSAM(const std::vector<OptimizerParamGroup>& param_groups, SSAMOptions defaults)
    : Optimizer(std::vector<OptimizerParamGroup>{}, std::make_unique<SSAMOptions>(defaults)),
      drive_(std::make_shared<detail::Drive>(detail::resolve_seed(defaults.seed()))) {
  detail::check_options(defaults);
  std::size_t count = 0;
  for (const OptimizerParamGroup& group : param_groups) count += group.params().size();
  TORCH_CHECK_VALUE(count > 0, "torch_ssam: SSAM got an empty list of parameters; expected model->parameters().");
  drive_->owner = this;
  for (const OptimizerParamGroup& group : param_groups) add_param_group(group);
}

SSAM::SSAM(SSAM&& other) noexcept : Optimizer(std::move(other)), drive_(std::move(other.drive_)) {
  if (drive_) drive_->owner = this;
}

SSAM::~SSAM() {
  if (!drive_) return;  // moved from
  drive_->owner = nullptr;
  if (!drive_->training) return;
  try {
    if (const std::string changed = drive_->noise.restore(); !changed.empty()) detail::warn_quietly(changed);
  } catch (const std::exception& error) {
    detail::warn_quietly(std::string("torch_ssam: the clean weights could not be put back: ") + error.what());
  }
}

// --- groups and options

SSAMOptions& SSAM::options_of(std::size_t group) {
  auto* options = dynamic_cast<SSAMOptions*>(&param_groups_[group].options());
  TORCH_CHECK(options != nullptr, "torch_ssam: parameter group ", group,
              " has options of another optimizer; expected torch_ssam::SSAMOptions.");
  return *options;
}

const SSAMOptions& SSAM::options_of(std::size_t group) const { return const_cast<SSAM*>(this)->options_of(group); }

void SSAM::add_param_group(const OptimizerParamGroup& param_group) {
  const auto& defaults = static_cast<const SSAMOptions&>(*defaults_);
  SSAMOptions options = defaults;
  if (param_group.has_options()) {
    const auto* given = dynamic_cast<const SSAMOptions*>(&param_group.options());
    TORCH_CHECK(given != nullptr,
                "torch_ssam: the options of a parameter group are of another optimizer; expected "
                "std::make_unique<torch_ssam::SSAMOptions>(...), or none.");
    detail::check_group_seed(given->seed(), seed());
    options = *given;
    options.inherit(defaults);
  }
  detail::check_options(options);
  if (!param_groups_.empty()) check_common(options, first_options());
  std::vector<at::Tensor> params = detail::check_params(param_group.params(), param_groups_);
  if (options.memory() == detail::kRegenerate) detail::check_regenerated(params);
  detail::check_masters(options, params);
  Optimizer::add_param_group(OptimizerParamGroup(std::move(params)));
  // After, not with it: LibTorch 2.13 replaces group options that are not of its own optimizers by the defaults.
  param_groups_.back().set_options(std::make_unique<SSAMOptions>(options));
  if (drive_->training) {
    const auto is_clean = [&](const at::Tensor& p) { return !drive_->noise.is_applied(p); };
    for_each_group([&](const SSAMOptions& group, const detail::Members& members) {
      if (group.noise_std() == 0) return;
      drive_->noise.apply(members.trainable().where(is_clean), noise_of(group, 0, false));
    });
    note_clean();
  }
}

std::int64_t SSAM::seed() const { return drive_->noise.generator.seed(); }
std::int64_t SSAM::draw() const { return drive_->noise.generator.draw(); }

bool SSAM::noisy() const {
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    if (options_of(g).noise_std() > 0) return true;
  }
  return false;
}

// Each group with all of its tensors, frozen ones too.
void SSAM::for_each_group(const std::function<void(const SSAMOptions&, const detail::Members&)>& visit) {
  const std::vector<detail::Members>& placed = drive_->noise.placed(param_groups_);
  for (std::size_t g = 0; g < param_groups_.size(); ++g) visit(options_of(g), placed[g]);
}

// Whether every learning rate is 0: a step then trains nothing.
bool SSAM::idle() const {
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    if (options_of(g).lr() != 0) return false;
  }
  return true;
}

// --- passes

void SSAM::report_changed() {
  if (!drive_->changed.empty()) detail::throw_changed(std::exchange(drive_->changed, {}));
}

void SSAM::begin_pass() {
  TORCH_CHECK(!drive_->inside_pass,
              "torch_ssam: perturb() inside perturb(): the weights are perturbed already. Leave the first one before "
              "the next; for several draws a step use opt.perturbations() with samples(K).");
  TORCH_CHECK(!first_options().keep_perturbed(),
              "torch_ssam: perturb() on an optimizer with keep_perturbed: its weights stay perturbed after "
              "opt.train(). Run forward and backward plainly and call opt.step().");
  report_changed();
  settle();
}

// Whether a pass has left no gradient at all: a step then moves nothing.
bool SSAM::without_gradients() const {
  if (!drive_->pass_without_gradient) return false;
  for (const OptimizerParamGroup& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      if (p.grad().defined()) return false;
    }
  }
  return true;
}

// A pass that completes without a changed gradient counts for nothing, and takes nothing from the passes before it.
void SSAM::watch_gradients() {
  if (drive_->fresh) return;
  drive_->completed = [drive = drive_.get(), watch = detail::GradientWatch(param_groups_)] {
    if (drive->owner == nullptr) return;
    (watch.changed(drive->owner->param_groups()) ? drive->fresh : drive->pass_without_gradient) = true;
  };
}

detail::GroupNoise SSAM::noise_of(const SSAMOptions& options, std::int64_t sample, bool negate,
                                  std::int64_t draw_offset) {
  return {{options.noise_std(), options.distribution(), sample, negate, draw_offset},
          options.scale(),
          options.memory() == detail::kRegenerate,
          options.master_dtype().has_value(),
          options.fisher_factor()};
}

void SSAM::apply_noise(std::int64_t sample, bool negate) {
  for_each_group([&](const SSAMOptions& options, const detail::Members& members) {
    if (options.noise_std() == 0) return;
    drive_->noise.apply(members.trainable(), noise_of(options, sample, negate));
  });
}

Perturbation SSAM::perturb() {
  const SSAMOptions& options = first_options();
  TORCH_CHECK(detail::count_passes(options) == 1, "torch_ssam: perturb() is one pass and the options ask for ",
              detail::count_passes(options), " a step (samples ", options.samples(), ", antithetic ", options.antithetic(),
              ", clean_weight ", options.clean_weight(), "). Use for (auto pass : opt.perturbations()).");
  begin_pass();
  watch_gradients();
  Perturbation pass(drive_, /*advances=*/true);
  apply_noise(0, false);
  return pass;
}

Perturbations SSAM::perturbations() { return split_over({}); }

Perturbations SSAM::split_over(at::TensorList inputs) {
  begin_pass();
  const SSAMOptions& options = first_options();
  std::int64_t total = 0;
  for (const at::Tensor& input : inputs) {
    const std::int64_t rows = input.defined() && input.dim() > 0 ? input.size(0) : 0;
    if (&input == inputs.begin()) total = rows;
    TORCH_CHECK_VALUE(rows == total && rows > 0, "torch_ssam: perturbations() got inputs with ", total, " and ", rows,
                      " examples along dimension 0; expected the same number > 0 in each.");
  }
  const std::size_t most = inputs.empty() ? std::numeric_limits<std::size_t>::max() : static_cast<std::size_t>(total);
  auto loop = std::make_unique<Loop>(Loop{drive_, detail::passes_of_step(options, most), {}});
  const auto count = static_cast<std::int64_t>(loop->passes.size());
  std::vector<double> shares(loop->passes.size(), 1.0);
  for (std::int64_t k = 0; k < count && !inputs.empty(); ++k) {
    loop->parts.emplace_back(total * k / count, total * (k + 1) / count);
    shares[static_cast<std::size_t>(k)] = static_cast<double>(loop->parts.back().second - loop->parts.back().first);
  }
  loop->weights = detail::weights_of(loop->passes, shares, options.clean_weight());
  return Perturbations(std::move(loop));
}

void SSAM::scale_grads(double factor) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> grads;
  for (const OptimizerParamGroup& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      if (p.grad().defined()) grads.push_back(p.grad());
    }
  }
  if (!grads.empty()) at::_foreach_mul_(grads, factor);
}

// --- step

at::Tensor SSAM::step(LossClosure closure) {
  TORCH_CHECK(!drive_->inside_pass,
              "torch_ssam: step() inside perturb(): the weights are perturbed. Let the object that perturb() returned, "
              "or the loop over perturbations(), end first, then call step().");
  report_changed();
  if (first_options().keep_perturbed()) return step_kept(closure);
  settle();
  at::Tensor loss;
  if (closure) {
    loss = run_closure(closure);
  } else {
    TORCH_CHECK(drive_->fresh || !noisy() || idle() || without_gradients(),
                "torch_ssam: step() without a gradient at perturbed weights since the last step: this would train "
                "without noise. ",
                drive_->pass_without_gradient ? kEmptyPass : "", kWays);
  }
  const at::NoGradGuard no_grad;
  update();
  drive_->fresh = drive_->pass_without_gradient = false;
  return loss;
}

at::Tensor SSAM::step_kept(const LossClosure& closure) {
  TORCH_CHECK(drive_->training || idle(),
              "torch_ssam: step() on an optimizer with keep_perturbed that is in eval: call opt.train() before the "
              "first forward pass (again after construction, load and opt.eval()), so that gradients are taken at "
              "perturbed weights.");
  at::Tensor loss;
  if (closure) {
    const at::AutoGradMode enable_grad(true);
    loss = closure();
  }
  const at::NoGradGuard no_grad;
  if (!drive_->training) {
    update();
    return loss;
  }
  try {
    update_and_perturb();
    drive_->noise.generator.advance();
  } catch (...) {
    // Half of the tensors may hold the old noise: nobody should train on with that.
    drive_->training = false;
    const std::string changed = drive_->noise.restore();
    note_clean();
    if (!changed.empty()) detail::warn_quietly(changed);  // what is on its way matters more
    throw;
  }
  return loss;
}

at::Tensor SSAM::run_closure(const LossClosure& closure) {
  const std::vector<detail::Pass> passes =
      detail::passes_of_step(first_options(), std::numeric_limits<std::size_t>::max());
  if (passes.size() == 1) {
    Perturbation pass = perturb();
    const at::AutoGradMode enable_grad(true);
    at::Tensor loss = closure();
    pass.restore();
    drive_->fresh = true;  // whatever the closure did
    return loss;
  }
  Loop loop{drive_, passes, {}};
  const std::vector<double> weights =
      detail::weights_of(passes, std::vector<double>(passes.size(), 1.0), first_options().clean_weight());
  detail::HeldGradients total;
  at::Tensor mean_loss;
  // Whatever happens, grad becomes the sum so far and the next draw follows.
  const auto finish = [&] {
    const at::NoGradGuard no_grad;
    if (total.empty()) scale_grads(weights[0]);
    total.put_back();
    drive_->noise.generator.advance();
  };
  // What grad holds now counts in full unless the closure clears it: it goes in with the first pass, divided by its
  // weight.
  scale_grads(1.0 / weights[0]);
  try {
    for (; loop.current < passes.size(); ++loop.current) {
      const double weight = weights[loop.current];
      at::Tensor loss;
      {
        Perturbation pass = loop.make_pass();
        const at::AutoGradMode enable_grad(true);
        loss = closure();
        pass.restore();
        drive_->fresh = true;
      }
      const at::NoGradGuard no_grad;
      for (const OptimizerParamGroup& group : param_groups_) {
        for (const at::Tensor& p : group.params()) {
          total.take(p, weight);
        }
      }
      if (loss.defined()) {
        const at::Tensor part = loss.detach() * weight;
        mean_loss = mean_loss.defined() ? mean_loss + part : part;
      }
    }
  } catch (...) {
    finish();
    throw;
  }
  finish();
  return mean_loss;
}

// --- keep_perturbed

void SSAM::zero_grad(bool set_to_none) {
  Optimizer::zero_grad(set_to_none);
  drive_->fresh = false;
  if (drive_->inside_pass) watch_gradients();
}

void SSAM::train(bool mode) {
  if (!mode) {
    eval();
    return;
  }
  settle();
  if (!first_options().keep_perturbed() || drive_->training) return;
  report_changed();
  try {
    apply_noise(0, false);
  } catch (...) {
    if (const std::string changed = drive_->noise.restore(); !changed.empty()) detail::warn_quietly(changed);
    throw;
  }
  drive_->training = true;
  note_clean();
}

void SSAM::eval() {
  settle();
  if (!drive_->training && (!drive_->noise.active() || drive_->inside_pass)) return;
  drive_->training = false;
  const std::string changed = drive_->noise.restore();
  note_clean();
  if (!changed.empty()) detail::throw_changed(changed);
}

}  // namespace torch_ssam
