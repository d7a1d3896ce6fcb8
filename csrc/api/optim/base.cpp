// How an optimizer with noise is driven: perturb(), perturbations(), step(closure), train() and eval(). The order of
// operator calls, draws and scalings is that of Python's optim/base.py, so that the same run gives the same bits.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch_ssam/optim/base.h>

#include <limits>

#include "noise/options.h"
#include "optim/counted.h"
#include "optim/passes.h"

namespace torch_ssam {

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

NoiseDriver::NoiseDriver(std::unique_ptr<FusedOptions> defaults) : NoiseOptimizer(std::move(defaults)) {
  drive_->owner = this;
}

NoiseDriver::NoiseDriver(NoiseDriver&& other) noexcept : NoiseOptimizer(std::move(other)) {
  if (drive_) drive_->owner = this;
}

NoiseDriver::~NoiseDriver() {
  if (!drive_) return;  // moved from
  drive_->owner = nullptr;
  if (!drive_->training) return;
  try {
    if (const std::string changed = drive_->noise.restore(); !changed.empty()) detail::warn_quietly(changed);
  } catch (const std::exception& error) {
    detail::warn_quietly(std::string("torch_ssam: the clean weights could not be put back: ") + error.what());
  }
}

bool NoiseDriver::noisy() const {
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    if (options_of(g).noise_std() > 0) return true;
  }
  return false;
}

// Whether every learning rate is 0: a step then trains nothing.
bool NoiseDriver::idle() const {
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    if (options_of(g).get_lr() != 0) return false;
  }
  return true;
}

// --- passes

void NoiseDriver::report_changed() {
  if (!drive_->changed.empty()) detail::throw_changed(std::exchange(drive_->changed, {}));
}

void NoiseDriver::begin_pass() {
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
bool NoiseDriver::without_gradients() const {
  if (!drive_->pass_without_gradient) return false;
  for (const OptimizerParamGroup& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      if (p.grad().defined()) return false;
    }
  }
  return true;
}

// A pass that completes without a changed gradient counts for nothing, and takes nothing from the passes before it.
void NoiseDriver::watch_gradients() {
  if (drive_->fresh) return;
  drive_->completed = [drive = drive_.get(), watch = detail::GradientWatch(param_groups_)] {
    if (drive->owner == nullptr) return;
    (watch.changed(drive->owner->param_groups()) ? drive->fresh : drive->pass_without_gradient) = true;
  };
}

void NoiseDriver::apply_noise(std::int64_t sample, bool negate) {
  for_each_group([&](const FusedOptions& options, const detail::Members& members) {
    if (options.noise_std() == 0) return;
    drive_->noise.apply(members.trainable(), detail::noise_of(options, sample, negate));
  });
}

Perturbation NoiseDriver::perturb() {
  const FusedOptions& options = first_options();
  TORCH_CHECK(detail::count_passes(options) == 1, "torch_ssam: perturb() is one pass and the options ask for ",
              detail::count_passes(options), " a step (samples ", options.samples(), ", antithetic ",
              options.antithetic(), ", clean_weight ", options.clean_weight(),
              "). Use for (auto pass : opt.perturbations()).");
  begin_pass();
  watch_gradients();
  Perturbation pass(drive_, /*advances=*/true);
  apply_noise(0, false);
  return pass;
}

Perturbations NoiseDriver::perturbations() { return split_over({}); }

Perturbations NoiseDriver::split_over(at::TensorList inputs) {
  begin_pass();
  const FusedOptions& options = first_options();
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

void NoiseDriver::scale_grads(double factor) {
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

at::Tensor NoiseDriver::step(LossClosure closure) {
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

at::Tensor NoiseDriver::step_kept(const LossClosure& closure) {
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

at::Tensor NoiseDriver::run_closure(const LossClosure& closure) {
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

void NoiseDriver::zero_grad(bool set_to_none) {
  Optimizer::zero_grad(set_to_none);
  drive_->fresh = false;
  if (drive_->inside_pass) watch_gradients();
}

void NoiseDriver::train(bool mode) {
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

void NoiseDriver::eval() {
  settle();
  if (!drive_->training && (!drive_->noise.active() || drive_->inside_pass)) return;
  drive_->training = false;
  const std::string changed = drive_->noise.restore();
  note_clean();
  if (!changed.empty()) detail::throw_changed(changed);
}

}  // namespace torch_ssam
