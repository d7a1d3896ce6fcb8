// The passes of one step. See passes.h.
#include "optim/passes.h"

#include <exception>

namespace torch_ssam {

namespace detail {

std::vector<Pass> passes_of_step(const FusedOptions& options, std::size_t most) {
  std::vector<Pass> passes;
  for (std::int64_t k = 0; k < options.samples() && passes.size() < most; ++k) {
    passes.push_back({k, false, false});
    if (options.antithetic() && passes.size() < most) passes.push_back({k, true, false});
  }
  if (options.clean_weight() > 0 && passes.size() < most) passes.push_back({0, false, true});
  return passes;
}

std::vector<double> weights_of(const std::vector<Pass>& passes, const std::vector<double>& shares,
                               double clean_weight) {
  double noisy = 0;
  bool has_clean = false;
  for (std::size_t k = 0; k < passes.size(); ++k) {
    has_clean |= passes[k].clean;
    if (!passes[k].clean) noisy += shares[k];
  }
  const double rest = has_clean ? 1.0 - clean_weight : 1.0;
  std::vector<double> weights;
  for (std::size_t k = 0; k < passes.size(); ++k) {
    weights.push_back(passes[k].clean ? clean_weight : rest * shares[k] / noisy);
  }
  return weights;
}

bool HeldGradients::is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

void HeldGradients::take(const at::Tensor& param, double weight) {
  const at::Tensor& grad = param.grad();
  if (!grad.defined()) return;
  const at::NoGradGuard no_grad;
  const at::ScalarType dtype = grad.scalar_type();
  at::Tensor part = is_half(grad) ? grad.detach().to(at::kFloat) : grad.detach();
  if (const auto found = index_.find(param.unsafeGetTensorImpl()); found == index_.end()) {
    held_.push_back({param, part.mul_(weight), dtype});  // may throw: noted after that
    index_[param.unsafeGetTensorImpl()] = held_.size() - 1;
  } else if (at::Tensor& sum = held_[found->second].sum; sum.layout() != part.layout()) {
    sum = sum.to_dense() + part.to_dense().mul(weight);  // sparse in one pass and dense in another
  } else {
    sum.add_(part, weight);
  }
  param.mutable_grad().reset();
}

void HeldGradients::put_back() {
  for (Held& one : held_) one.param.mutable_grad() = one.sum.to(one.dtype);
  held_.clear();
  index_.clear();
}

Perturbation Loop::make_pass() const {
  TORCH_CHECK(drive->owner != nullptr, "torch_ssam: the optimizer is gone, so its perturbations() cannot go on.");
  drive->owner->begin_pass();
  if (!passes[current].clean) drive->owner->watch_gradients();
  Perturbation made(drive, /*advances=*/false);
  if (!passes[current].clean) drive->owner->apply_noise(passes[current].sample, passes[current].negate);
  return made;
}

void Loop::scale_grads(double factor) const {
  if (drive->owner != nullptr) drive->owner->scale_grads(factor);
}

void Loop::hold_grads() {
  if (drive->owner == nullptr) return;
  for (const auto& group : drive->owner->param_groups()) {
    for (const at::Tensor& p : group.params()) {
      if (HeldGradients::is_half(p)) held.take(p, scale);
    }
  }
}

void Loop::enter() {
  hold_grads();
  if (weights[current] != scale) {
    scale_grads(scale / weights[current]);
    scale = weights[current];
  }
  pass.emplace(make_pass());
}

void Loop::start() {
  TORCH_CHECK(!started, "torch_ssam: this range of perturbations() was looped over already; call it again.");
  started = true;
  enter();
}

void Loop::next() {
  pass->restore();
  pass.reset();
  ++current;
  if (current < passes.size()) {
    enter();
  } else {
    finish();
  }
}

void Loop::finish() {
  if (!started || finished) return;
  finished = true;
  hold_grads();
  if (scale != 1.0) scale_grads(scale);
  scale = 1.0;
  held.put_back();
  drive->noise.generator.advance();
}

}  // namespace detail

Perturbations::Perturbations(std::unique_ptr<detail::Loop> loop) : loop_(std::move(loop)) {}
Perturbations::Perturbations(Perturbations&&) noexcept = default;

// After `break` or an exception: the pass that was left in the middle counts for nothing.
Perturbations::~Perturbations() {
  if (!loop_) return;
  try {
    if (loop_->pass) loop_->pass->exceptions_ = -1;
    loop_->pass.reset();
    loop_->finish();
  } catch (const c10::Error& error) {
    detail::warn_quietly(error.what_without_backtrace());
  } catch (const std::exception& error) {
    detail::warn_quietly(std::string("torch_ssam: the end of perturbations() failed: ") + error.what());
  }
}

Perturbations::Iterator Perturbations::begin() {
  loop_->start();
  return Iterator(loop_.get());
}

std::pair<std::int64_t, std::int64_t> Perturbations::part(std::int64_t pass) const {
  TORCH_CHECK_INDEX(pass >= 0 && pass < static_cast<std::int64_t>(loop_->parts.size()), "torch_ssam: pass ", pass,
                    " of a loop with ", loop_->parts.size(), " parts of a batch.");
  return loop_->parts[static_cast<std::size_t>(pass)];
}

std::int64_t Perturbations::Iterator::operator*() const { return static_cast<std::int64_t>(loop_->current); }

Perturbations::Iterator& Perturbations::Iterator::operator++() {
  loop_->next();
  return *this;
}

bool Perturbations::Iterator::operator==(std::default_sentinel_t) const {
  return loop_->current >= loop_->passes.size();
}

}  // namespace torch_ssam
