// The step of a fused optimizer: which tensors go into one operator call, in which state. The arithmetic is
// csrc/math's, behind the operators; the order is that of Python's optim/fused.py. Tests: tests/cpp/test_api_ssam.cpp,
// test_api_fused.cpp.
#include <torch_ssam/optim/fused.h>

#include <algorithm>
#include <utility>

#include "noise/options.h"
#include "noise/parameters.h"
#include "noise/scope.h"

namespace torch_ssam {

using detail::Members;

// Tensors that one operator call serves: one device, at their first step or not, perturbed or not, with a master or
// not.
struct FusedOptimizer::Part {
  at::Device device;
  bool first, applied, mastered;
  Members members = {};
  std::vector<at::Tensor> grads = {};
  std::vector<NoiseParamState*> states = {};  // null where there is none
  std::vector<at::Tensor> buffers = {};       // the first of every tensor, then the second of every tensor
  bool renewed = false;                       // whether buffers are others than in the state
  ops::Update update = {};
};

std::vector<FusedOptimizer::Part> FusedOptimizer::parts_of(const FusedOptions& options, const Members& members) {
  detail::NoiseState& noise = drive_->noise;
  const std::size_t buffers = count_buffers(options);
  const bool counted = counts_steps();
  std::vector<Part> parts;
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    const at::Tensor& p = members.params[i];
    if (!p.grad().defined()) continue;
    NoiseParamState* state = buffers == 0 && !counted ? nullptr : find_state(p);
    bool first = false;
    for (std::size_t b = 0; b < buffers && !counted; ++b) first |= state == nullptr || !state->buffer(b).defined();
    const bool applied = noise.is_applied(p);
    const bool mastered = noise.has_master(p, options.master_dtype().has_value());
    const at::Device device = p.device();
    const auto serves = [&](const Part& part) {
      return part.device == device && part.first == first && part.applied == applied && part.mastered == mastered;
    };
    auto part = std::find_if(parts.begin(), parts.end(), serves);
    if (part == parts.end()) {  // nearly always one
      part = parts.insert(part, Part{device, first, applied, mastered});
      part->members.reserve(members.params.size());
      part->grads.reserve(members.params.size());
      part->states.reserve(members.params.size());
      part->buffers.reserve(buffers * members.params.size());
    }
    part->members.push_back(p, members.places[i]);
    part->grads.push_back(p.grad());
    part->states.push_back(state);
  }
  for (Part& part : parts) {
    for (std::size_t b = 0; b < buffers; ++b) {
      for (std::size_t i = 0; i < part.states.size(); ++i) {
        const at::Tensor& p = part.members.params[i];
        const at::ScalarType dtype = part.mastered ? at::kFloat : p.scalar_type();
        at::Tensor buffer = part.states[i] == nullptr ? at::Tensor() : part.states[i]->buffer(b);
        part.renewed |= !buffer.defined() || buffer.scalar_type() != dtype;
        if (!buffer.defined()) {
          buffer = ops::empty_like(p, dtype).zero_();
        } else {
          buffer = buffer.to(dtype);  // of steps before module->to(dtype), or without masters
        }
        part.buffers.push_back(std::move(buffer));
      }
    }
    part.update = update_of(options);
    if (counted) {
      for (const NoiseParamState* state : part.states) {
        part.update.steps.push_back(state == nullptr ? 1 : state->step() + 1);
      }
    } else if (part.first) {
      part.update.steps.assign(part.states.size(), 1);
    }
  }
  return parts;
}

// After the operator succeeded: a refused step must not leave state that looks started.
void FusedOptimizer::keep_state(const Part& part) {
  const std::vector<at::Tensor>& params = part.members.params;
  for (std::size_t i = 0; i < part.buffers.size() && part.renewed; ++i) {
    state_of(params[i % params.size()]).buffer(i / params.size()) = part.buffers[i];
  }
  if (!counts_steps()) return;
  for (std::size_t i = 0; i < params.size(); ++i) {
    (part.states[i] == nullptr ? state_of(params[i]) : *part.states[i]).step() = part.update.steps[i];
  }
}

// Clean weights (saved copies of perturbed tensors, else the tensors themselves) <- their update.
void FusedOptimizer::update_parts(const FusedOptions& options, const Members& members) {
  detail::NoiseState& noise = drive_->noise;
  for (const Part& part : parts_of(options, members)) {
    const std::vector<at::Tensor>& params = part.members.params;
    if (part.applied) {
      ops::update_(noise.clean_of(params), part.grads, part.buffers, part.update);
    } else if (part.mastered) {  // the parameters get the rounding in the same pass over memory
      ops::update_and_perturb_(params, noise.masters_of(part.members), part.grads, part.buffers,
                               noise.generator.on(part.device), part.members.places, part.update, ops::Noise{});
      noise.written(params);
    } else {
      noise.forget_masters(params);
      ops::update_(params, part.grads, part.buffers, part.update);
      noise.written(params);
    }
    keep_state(part);
  }
}

// The same, with clipping, the projection onto the group's ball and the sums that scale "fisher" keeps.
void FusedOptimizer::update_group(const FusedOptions& options, const Members& members) {
  update_parts(options, members);
  if (options.weight_clip() && options.get_lr() != 0) clip(options, members);
  if (options.radius()) project(options, members.trainable());
  observe(options, members);
}

// change(clean weights): masters, whose roundings clean tensors then hold, saved copies, or the tensors themselves.
template <typename Change>
void FusedOptimizer::change_clean(const FusedOptions& options, const Members& members, const Change& change) {
  if (members.empty()) return;
  detail::NoiseState& noise = drive_->noise;
  const auto mastered = [&](const at::Tensor& p) { return noise.has_master(p, options.master_dtype().has_value()); };
  const std::vector<at::Tensor> all_masters = noise.masters_of(members.where(mastered));
  auto master = all_masters.begin();
  std::vector<at::Tensor> clean, rounded, masters, written;
  for (const at::Tensor& p : members.params) {
    const bool has_master = mastered(p);
    clean.push_back(has_master ? *master++ : noise.clean_of(p));
    if (noise.is_applied(p)) continue;
    written.push_back(p);
    if (!has_master) continue;
    rounded.push_back(p);
    masters.push_back(clean.back());
  }
  change(clean);
  if (!rounded.empty()) ops::restore_(rounded, masters);
  noise.written(written);
}

// The filters of what the step updated.
void FusedOptimizer::clip(const FusedOptions& options, const Members& members) {
  const Members with_filters = members.where([](const at::Tensor& p) { return p.grad().defined() && p.dim() >= 2; });
  with_filters.by_device([&](at::Device, const Members& part) {
    change_clean(options, part, [&](const std::vector<at::Tensor>& clean) {
      ops::clip_rows_(detail::filters_first(clean, options.channel_dim()), *options.weight_clip());
    });
  });
}

void FusedOptimizer::project(const FusedOptions& options, const Members& stacked) {
  change_clean(options, stacked,
               [&](const std::vector<at::Tensor>& clean) { ops::project_(clean, *options.radius()); });
}

// With scale "fisher": F <- fisher_decay F + sum of g^2, from the gradients of a step that trains.
void FusedOptimizer::observe(const FusedOptions& options, const Members& members) {
  if (options.scale() != "fisher" || options.get_lr() == 0) return;
  const Members with_grad = members.where([](const at::Tensor& p) { return p.grad().defined(); });
  drive_->noise.scales.observe(with_grad, options.fisher_decay(), options.channel_dim());
  for (const at::Tensor& p : with_grad.params) state_of(p).fisher() = drive_->noise.scales.known_fisher(p);
}

// One operator call checks all before it writes; of several (groups, devices, tensors whose state starts later), none
// may fail after another wrote.
void FusedOptimizer::check_before_update() const {
  std::size_t place = 0;
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    check_options(options_of(g));
    const std::int64_t channel_dim = options_of(g).channel_dim();
    for (const at::Tensor& p : param_groups_[g].params()) {
      TORCH_CHECK_VALUE(
          !p.grad().defined() || p.grad().layout() == at::kStrided, "torch_ssam: the gradient of parameter ", place,
          " is sparse; expected a dense one. Use sparse(false) in the embedding, or give the parameter an "
          "optimizer of its own.");
      detail::check_channel_dim(p, place, channel_dim);
      ++place;
    }
  }
}

// As torch.optim does, a gradient that is there is used, also that of a tensor frozen since.
void FusedOptimizer::update() {
  check_before_update();
  for_each_group([&](const FusedOptions& options, const Members& members) { update_group(options, members); });
}

void FusedOptimizer::update_and_perturb() {
  detail::NoiseState& noise = drive_->noise;
  noise.ready_to_update();
  check_before_update();
  for_each_group([&](const FusedOptions& options, const Members& everything) {
    const detail::GroupNoise next = detail::noise_of(options, 0, false, /*draw_offset=*/1);
    const bool some_are_frozen = !everything.all_trainable();
    const Members some = some_are_frozen ? everything.trainable() : Members();
    const Members& members = some_are_frozen ? some : everything;
    const auto is_applied = [&](const at::Tensor& p) { return noise.is_applied(p); };
    if (options.noise_std() != 0) noise.look_at_size(members, next);
    const bool by_rows = detail::row_scale_of(options.scale()).has_value();
    const bool all_applied = std::all_of(members.params.begin(), members.params.end(), is_applied);
    if (by_rows || options.noise_std() == 0 || options.radius() || options.weight_clip() || !all_applied) {
      // Clipping, norms of the new weights, or a projection of them, come between update and noise; or noise is
      // switched on or off here.
      update_group(options, everything);
      if (options.noise_std() == 0) {
        noise.restore(members.where(is_applied).params);
      } else {
        noise.apply(members, next);
      }
      return;
    }
    for (const Part& part : parts_of(options, members)) {
      ops::Noise how = next.noise;
      how.scale = options.scale();
      const std::vector<at::Tensor>& params = part.members.params;
      ops::update_and_perturb_(params, noise.clean_of(params), part.grads, part.buffers,
                               noise.generator.on(part.device), part.members.places, part.update, how);
      noise.written(params);
      keep_state(part);
    }
    if (some_are_frozen) {
      update_parts(options, everything.where([](const at::Tensor& p) { return !p.requires_grad(); }));
    }
    noise.apply_from_clean(members.where([](const at::Tensor& p) { return !p.grad().defined(); }), next);
  });
}

}  // namespace torch_ssam
