// The update of SSAM: which tensors go into one operator call, in which state. The arithmetic is csrc/math/update.h's,
// behind the operators; the order is that of Python's _ssam.py. Tests: tests/cpp/test_api_ssam.cpp.
#include <ATen/Functions.h>

#include "ssam_members.h"

namespace torch_ssam {

// Tensors that one operator call serves: one device, momentum started or not, perturbed or not.
struct SSAM::Part {
  at::Device device;
  bool first, applied;
  std::vector<at::Tensor> params, grads, momentum_buffers;
  std::vector<std::int64_t> places;
};

namespace {

ops::Update update_of(const SSAMOptions& o, bool first_step) {
  return {o.lr(), o.momentum(), o.dampening(), o.weight_decay(), o.nesterov(), o.maximize(), first_step};
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

// After the operator succeeded: a refused step must not leave momentum that looks started.
void SSAM::keep_momentum(const Part& part) {
  if (!part.first) return;
  for (std::size_t i = 0; i < part.params.size(); ++i) {
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
    const at::Device device = p.device();
    auto part = parts.begin();
    while (part != parts.end() && !(part->device == device && part->first == first && part->applied == applied)) ++part;
    if (part == parts.end()) {
      part = parts.insert(part, Part{device, first, applied, {}, {}, {}, {}});
      part->params.reserve(members.params.size());
      part->grads.reserve(members.params.size());
    }
    part->params.push_back(p);
    part->grads.push_back(p.grad());
    part->places.push_back(members.places[i]);
    if (has_momentum) {
      part->momentum_buffers.push_back(first ? at::zeros_like(p) : std::move(buffer));
    }
  }
  return parts;
}

// Clean weights (saved copies of perturbed tensors, else the tensors themselves) <- their update.
void SSAM::update_group(const SSAMOptions& options, const Members& members) {
  detail::NoiseState& noise = drive_->noise;
  Members with_grad;
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    if (members.params[i].grad().defined()) with_grad.push_back(members.params[i], members.places[i]);
  }
  for (const Part& part : alike(with_grad, options)) {
    if (part.applied) {
      ops::update_(noise.clean_of(part.params), part.grads, part.momentum_buffers, update_of(options, part.first));
    } else {
      ops::update_(part.params, part.grads, part.momentum_buffers, update_of(options, part.first));
      noise.written(part.params);
    }
    keep_momentum(part);
  }
  if (options.radius() && !members.params.empty()) {
    ops::project_(noise.clean_of(members.params), *options.radius());
    for (const at::Tensor& p : members.params) {
      if (!noise.is_applied(p)) noise.written({p});
    }
  }
}

void SSAM::update() {
  for_each_group([&](const SSAMOptions& options, const Members& members) { update_group(options, members); });
}

// Of perturbed tensors: updates the clean weights and writes clean + next noise, in one pass over memory where it can.
void SSAM::update_and_perturb() {
  detail::NoiseState& noise = drive_->noise;
  if (noise.changed()) {
    if (const std::string changed = noise.restore(); !changed.empty()) detail::throw_changed(changed);
  }
  for_each_group([&](const SSAMOptions& options, const Members& members) {
    const ops::Noise next{options.noise_std(), options.distribution(), 0, false, /*draw_offset=*/1};
    Members kept, fused, without_grad;
    for (std::size_t i = 0; i < members.params.size(); ++i) {
      const at::Tensor& p = members.params[i];
      if (noise.is_applied(p)) kept.push_back(p, members.places[i]);
      (p.grad().defined() ? fused : without_grad).push_back(p, members.places[i]);
    }
    if (options.noise_std() == 0 || options.radius() || kept.params.size() < members.params.size()) {
      // Rare: noise switched on or off here, or a projection between update and noise.
      update_group(options, members);
      if (options.noise_std() == 0) {
        noise.restore(kept.params);
      } else {
        noise.apply(members, next);
      }
      return;
    }
    for (const Part& part : alike(fused, options)) {
      ops::update_and_perturb_(part.params, noise.clean_of(part.params), part.grads, part.momentum_buffers,
                               noise.generator(part.device), part.places, update_of(options, part.first), next);
      noise.written(part.params);
      keep_momentum(part);
    }
    noise.apply_from_clean(without_grad, next);
  });
  noise.restore_frozen();
}

}  // namespace torch_ssam
