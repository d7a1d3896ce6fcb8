// The update of SSAM: which tensors go into one operator call, in which state. The arithmetic is
// csrc/math/rules/sgd.h's, behind the operators; the order is that of Python's optim/ssam.py. Tests:
// tests/cpp/test_api_ssam.cpp.
#include <algorithm>
#include <utility>

#include "noise/scope.h"
#include "optim/options.h"

namespace torch_ssam {

using detail::Members;

// Tensors that one operator call serves: one device, momentum started or not, perturbed or not, with a master or not.
struct SSAM::Part {
  at::Device device;
  bool first, applied, mastered;
  std::vector<at::Tensor> params, grads, momentum_buffers;
  std::vector<std::int64_t> places;
};

namespace {

// The numbers of csrc/math/rules/sgd.h in its order.
ops::Update update_of(const SSAMOptions& o, bool first_step, std::size_t tensors) {
  return {"sgd",
          {o.lr(), o.momentum(), o.dampening(), o.weight_decay(), o.nesterov() ? 1.0 : 0.0, o.maximize() ? 1.0 : 0.0},
          std::vector<std::int64_t>(first_step ? tensors : 0, 1)};
}

}  // namespace

SSAMParamState& SSAM::state_of(const at::Tensor& param) {
  auto& state = state_[param.unsafeGetTensorImpl()];
  if (!state) state = std::make_unique<SSAMParamState>();
  return static_cast<SSAMParamState&>(*state);
}

at::Tensor SSAM::momentum_buffer(const at::Tensor& param) const {
  const auto found = state_.find(param.unsafeGetTensorImpl());
  return found == state_.end() ? at::Tensor() : static_cast<SSAMParamState&>(*found->second).momentum_buffer();
}

// With scale "fisher": F <- fisher_decay F + sum of g^2, from the gradients of a step that trains.
void SSAM::observe(const SSAMOptions& options, const Members& with_grad) {
  if (options.scale() != "fisher" || options.lr() == 0) return;
  drive_->noise.scales.observe(with_grad, options.fisher_decay());
  for (const at::Tensor& p : with_grad.params) state_of(p).fisher() = drive_->noise.scales.known_fisher(p);
}

// After the operator succeeded: a refused step must not leave momentum that looks started.
void SSAM::keep_momentum(const Part& part) {
  for (std::size_t i = 0; i < part.momentum_buffers.size() && (part.first || part.mastered); ++i) {
    state_of(part.params[i]).momentum_buffer() = part.momentum_buffers[i];
  }
}

std::vector<SSAM::Part> SSAM::alike(const Members& members, const SSAMOptions& options) {
  const bool has_momentum = options.momentum() != 0;
  std::vector<Part> parts;
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    const at::Tensor& p = members.params[i];
    at::Tensor buffer = has_momentum ? momentum_buffer(p) : at::Tensor();
    const bool first = has_momentum && !buffer.defined();
    const bool applied = drive_->noise.is_applied(p);
    const bool mastered = drive_->noise.has_master(p, options.master_dtype().has_value());
    const at::Device device = p.device();
    const auto serves = [&](const Part& part) {
      return part.device == device && part.first == first && part.applied == applied && part.mastered == mastered;
    };
    auto part = std::find_if(parts.begin(), parts.end(), serves);
    if (part == parts.end()) {
      part = parts.insert(part, Part{device, first, applied, mastered, {}, {}, {}, {}});
      part->params.reserve(members.params.size());
      part->grads.reserve(members.params.size());
    }
    part->params.push_back(p);
    part->grads.push_back(p.grad());
    part->places.push_back(members.places[i]);
    if (has_momentum) {
      if (first) {
        buffer = ops::empty_like(mastered ? drive_->noise.master_of(p) : p).zero_();
      } else if (!mastered && buffer.scalar_type() != p.scalar_type()) {  // of steps before module->to(dtype)
        buffer = state_of(p).momentum_buffer() = buffer.to(p.scalar_type());
      }
      part->momentum_buffers.push_back(mastered ? buffer.to(at::kFloat) : std::move(buffer));
    }
  }
  return parts;
}

// Clean weights (saved copies of perturbed tensors, else the tensors themselves) <- their update.
void SSAM::update_parts(const SSAMOptions& options, const Members& with_grad) {
  detail::NoiseState& noise = drive_->noise;
  for (const Part& part : alike(with_grad, options)) {
    if (part.applied) {
      ops::update_(noise.clean_of(part.params), part.grads, part.momentum_buffers,
                   update_of(options, part.first, part.params.size()));
    } else if (part.mastered) {  // the parameters get the rounding in the same pass over memory
      std::vector<at::Tensor> masters;
      for (const at::Tensor& p : part.params) masters.push_back(noise.master_of(p));
      ops::update_and_perturb_(part.params, masters, part.grads, part.momentum_buffers, noise.generator.on(part.device),
                               part.places, update_of(options, part.first, part.params.size()), ops::Noise{});
      noise.written(part.params);
    } else {
      noise.forget_masters(part.params);
      ops::update_(part.params, part.grads, part.momentum_buffers, update_of(options, part.first, part.params.size()));
      noise.written(part.params);
    }
    keep_momentum(part);
  }
}

// The same, with the projection onto the group's ball and the sums that scale "fisher" keeps.
void SSAM::update_group(const SSAMOptions& options, const Members& members) {
  const Members with_grad = members.where([](const at::Tensor& p) { return p.grad().defined(); });
  update_parts(options, with_grad);
  if (options.radius()) project(options, members.trainable());
  observe(options, with_grad);
}

void SSAM::project(const SSAMOptions& options, const Members& stacked) {
  if (stacked.empty()) return;
  detail::NoiseState& noise = drive_->noise;
  std::vector<at::Tensor> clean, rounded, masters, written;
  for (const at::Tensor& p : stacked.params) {
    const bool applied = noise.is_applied(p);
    const bool mastered = noise.has_master(p, options.master_dtype().has_value());
    clean.push_back(mastered ? noise.master_of(p) : noise.clean_of(p));
    if (applied) continue;
    written.push_back(p);
    if (!mastered) continue;
    rounded.push_back(p);
    masters.push_back(clean.back());
  }
  ops::project_(clean, *options.radius());
  if (!rounded.empty()) ops::restore_(rounded, masters);
  noise.written(written);
}

// One operator call checks all before it writes; of several (groups, devices, tensors whose momentum starts later),
// none may fail after another wrote.
void SSAM::check_before_update() const {
  std::size_t place = 0;
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    detail::check_options(options_of(g));
    for (const at::Tensor& p : param_groups_[g].params()) {
      TORCH_CHECK_VALUE(
          !p.grad().defined() || p.grad().layout() == at::kStrided, "torch_ssam: the gradient of parameter ", place,
          " is sparse; expected a dense one. Use sparse(false) in the embedding, or give the parameter an "
          "optimizer of its own.");
      ++place;
    }
  }
}

// As torch.optim does, a gradient that is there is used, also that of a tensor frozen since.
void SSAM::update() {
  check_before_update();
  for_each_group([&](const SSAMOptions& options, const Members& members) { update_group(options, members); });
}

// Of perturbed tensors: updates the clean weights and writes clean + next noise, in one pass over memory where it can.
void SSAM::update_and_perturb() {
  detail::NoiseState& noise = drive_->noise;
  noise.ready_to_update();
  check_before_update();
  for_each_group([&](const SSAMOptions& options, const Members& everything) {
    const detail::GroupNoise next = noise_of(options, 0, false, /*draw_offset=*/1);
    const auto is_applied = [&](const at::Tensor& p) { return noise.is_applied(p); };
    const Members members = everything.trainable();
    const Members kept = members.where(is_applied);
    if (options.noise_std() != 0) noise.look_at_size(members, next);
    const bool by_rows = detail::is_by_rows(options.scale());
    if (by_rows || options.noise_std() == 0 || options.radius() || kept.params.size() < members.params.size()) {
      // Norms of the new weights, or a projection to them, come between update and noise; or noise is switched on or
      // off here.
      update_group(options, everything);
      if (options.noise_std() == 0) {
        noise.restore(kept.params);
      } else {
        noise.apply(members, next);
      }
      return;
    }
    const auto has_grad = [](const at::Tensor& p) { return p.grad().defined(); };
    for (const Part& part : alike(members.where(has_grad), options)) {
      ops::Noise how = next.noise;
      how.scale = options.scale();
      ops::update_and_perturb_(part.params, noise.clean_of(part.params), part.grads, part.momentum_buffers,
                               noise.generator.on(part.device), part.places,
                               update_of(options, part.first, part.params.size()), how);
      noise.written(part.params);
      keep_momentum(part);
    }
    update_parts(options, everything.where([&](const at::Tensor& p) { return !p.requires_grad() && has_grad(p); }));
    noise.apply_from_clean(members.where([&](const at::Tensor& p) { return !has_grad(p); }), next);
  });
}

}  // namespace torch_ssam
