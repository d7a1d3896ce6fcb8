// See noise_state.h.
#include "noise_state.h"

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "options.h"

namespace torch_ssam::detail {

void for_each_device(const Members& members, const std::function<void(at::Device, const Members&)>& visit) {
  if (members.params.empty()) return;
  const at::Device first = members.params[0].device();
  const auto is_first = [&](const at::Tensor& p) { return p.device() == first; };
  if (std::all_of(members.params.begin(), members.params.end(), is_first)) {
    visit(first, members);
    return;
  }
  std::vector<std::pair<at::Device, Members>> parts;
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    const at::Device device = members.params[i].device();
    auto part = std::find_if(parts.begin(), parts.end(), [&](const auto& p) { return p.first == device; });
    if (part == parts.end()) part = parts.insert(parts.end(), {device, {}});
    part->second.push_back(members.params[i], members.places[i]);
  }
  for (const auto& [device, part] : parts) visit(device, part);
}

void warn_quietly(const std::string& message) noexcept {
  try {
    TORCH_WARN(message);
  } catch (...) {
  }
}

void throw_changed(const std::string& message) {
  throw PerturbedWeightsChanged({__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)}, message);
}

// --- seed and draw

std::int64_t NoiseState::draw() const {
  return generators_.empty() ? draw_ : generators_.front()[1].item<std::int64_t>();
}

void NoiseState::set_generator(std::int64_t seed, std::int64_t draw) {
  const at::NoGradGuard no_grad;
  seed_ = seed;
  draw_ = draw;
  for (at::Tensor& generator : generators_) generator.copy_(at::tensor({seed, draw}, at::kLong));
}

at::Tensor NoiseState::generator(at::Device device) {
  for (const at::Tensor& generator : generators_) {
    if (generator.device() == device) return generator;
  }
  TORCH_CHECK(device.is_cpu() || device.is_cuda(), "torch_ssam: no kernels for device type '", device.type(),
              "'; expected cpu or cuda.");
  const c10::InferenceMode normal(false);  // it outlives an InferenceMode around us
  generators_.push_back(at::tensor({seed_, draw()}, at::kLong).to(device));
  return generators_.back();
}

void NoiseState::advance() {
  if (generators_.empty()) ++draw_;
  for (const at::Tensor& generator : generators_) ops::advance_(generator);
}

// --- which tensors

void NoiseState::Slot::note() {
  version = param._version();
  data = param.const_data_ptr();
}

// Writes in place move the version, set_data moves the address.
bool NoiseState::Slot::is_as_we_left_it() const {
  return param._version() == version && param.const_data_ptr() == data;
}

const NoiseState::Slot* NoiseState::find(const at::Tensor& param) const {
  const auto found = index_.find(param.unsafeGetTensorImpl());
  return found == index_.end() ? nullptr : &slots_[found->second];
}

NoiseState::Slot& NoiseState::slot_of(const at::Tensor& param) {
  const auto [found, added] = index_.try_emplace(param.unsafeGetTensorImpl(), slots_.size());
  if (added) {
    slots_.emplace_back();
    slots_.back().param = param;
  }
  return slots_[found->second];
}

const at::Tensor& NoiseState::Slot::copy() {
  if (!clean.defined() || clean.sizes() != param.sizes() || clean.dtype() != param.dtype() ||
      clean.device() != param.device()) {
    clean = ops::empty_like(param);
  }
  return clean;
}

bool NoiseState::is_applied(const at::Tensor& param) const {
  const Slot* slot = find(param);
  return slot != nullptr && slot->applied;
}

at::Tensor NoiseState::clean_of(const at::Tensor& param) const {
  const Slot* slot = find(param);
  if (slot == nullptr || !slot->applied) return param;
  if (slot->recipe == nullptr) return slot->clean;
  ops::Noise noise = slot->recipe->noise;
  noise.negate = !noise.negate;
  return ops::perturbed(param.detach(), slot->recipe->generator, slot->place, noise);
}

bool NoiseState::is_regenerated(const at::Tensor& param) const {
  const Slot* slot = find(param);
  return slot != nullptr && slot->applied && slot->recipe != nullptr;
}

std::vector<at::Tensor> NoiseState::clean_of(const std::vector<at::Tensor>& params) const {
  std::vector<at::Tensor> clean;
  clean.reserve(params.size());
  for (const at::Tensor& p : params) clean.push_back(clean_of(p));
  return clean;
}

// --- masters

bool NoiseState::has_master(const at::Tensor& param, bool wanted) const {
  const Slot* slot = find(param);
  if (slot != nullptr && slot->applied) return slot->uses_master();
  return wanted && param.scalar_type() != at::kFloat;
}

at::Tensor NoiseState::master_of(const at::Tensor& param) {
  Slot& slot = slot_of(param);
  if (slot.uses_master() || (slot.rounded && slot.is_as_we_left_it())) return slot.master;
  const at::NoGradGuard no_grad;
  const c10::InferenceMode normal(false);  // it outlives an InferenceMode around us
  const at::Tensor now = param.detach();
  if (!slot.master.defined() || slot.master.sizes() != now.sizes()) {
    slot.master = now.to(at::kFloat);
  } else {
    if (slot.master.device() != now.device()) slot.master = slot.master.to(now.device());
    const at::Tensor same = slot.master.to(now.scalar_type()) == now;
    slot.master.copy_(at::where(same, slot.master, now.to(at::kFloat)));
  }
  slot.rounded = true;
  slot.note();
  return slot.master;
}

const at::Tensor& NoiseState::known_master(const at::Tensor& param) const {
  static const at::Tensor none;
  const Slot* slot = find(param);
  return slot == nullptr ? none : slot->master;
}

void NoiseState::set_master(const at::Tensor& param, at::Tensor master) {
  if (!master.defined() && find(param) == nullptr) return;
  Slot& slot = slot_of(param);
  slot.master = std::move(master);
  slot.rounded = false;
}

void NoiseState::forget_masters(const std::vector<at::Tensor>& params) {
  for (const at::Tensor& p : params) {
    if (!is_applied(p)) set_master(p, {});
  }
}

// --- noise on and off

// What the operators are told of the group's noise; the scales of rows are computed from the clean weights.
ops::Noise NoiseState::scaled(const GroupNoise& group, const std::vector<at::Tensor>& params,
                              const std::vector<at::Tensor>& clean) {
  ops::Noise noise = group.noise;
  if (group.scale == "element") noise.scale = "element";
  if (!is_by_rows(group.scale)) return noise;
  noise.scale = "rows";
  std::vector<at::Tensor> fisher;
  for (const at::Tensor& p : params) {
    const std::int64_t rows = group.scale == "tensor" ? 1 : rows_of(p);
    at::Tensor& known = slot_of(p).row_scales;
    if (!known.defined() || known.numel() != rows || known.device() != p.device()) {
      known = ops::zeros_of_rows(p, rows);
    }
    noise.row_scales.push_back(known);
    if (group.scale == "fisher") fisher.push_back(group.fisher_of(p));
  }
  ops::row_scales_(noise.row_scales, clean, fisher, group.fisher_factor);
  return noise;
}

void NoiseState::look_at_size(const Members& members, const GroupNoise& group) {
  if (members.params.empty() || group.scale != "isotropic") return;
  double& limit = size_limits_[members.places.front()];
  const double noise_std = group.noise.noise_std;
  if (noise_std <= limit) return;
  limit = 2 * noise_std;
  const at::NoGradGuard no_grad;
  double smallest = 0;
  std::size_t worst = 0, count = 0;
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    const at::Tensor& p = members.params[i];
    if (p.dim() < 2 || p.numel() == 0 || !p.requires_grad()) continue;
    const at::Tensor clean = clean_of(p).detach();
    const at::ScalarType wide = clean.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const double norm = at::linalg_vector_norm(clean, 2, c10::nullopt, false, wide).item().toDouble();
    const double rms = norm / std::sqrt(static_cast<double>(p.numel()));
    if (!(rms > 0 && rms < 2 * noise_std)) continue;
    if (count++ == 0 || rms < smallest) {
      smallest = rms;
      worst = i;
    }
  }
  if (count == 0) return;
  std::ostringstream text;
  text << "torch_ssam: noise_std " << noise_std << " is " << noise_std / smallest << " times the RMS weight "
       << smallest << " of parameter " << members.places[worst] << " of shape " << members.params[worst].sizes();
  if (count > 1) text << ", and more than half of it for " << count - 1 << (count > 2 ? " others" : " other");
  text << ": noise of that size drowns weights. Take a noise_std below " << smallest / 2
       << ", a smaller one in a group of its own for such tensors, or scale(\"filter\"), under which noise_std is a "
          "part "
          "of each filter's norm.";
  warn_quietly(text.str());
}

void NoiseState::apply(const Members& members, const GroupNoise& group) {
  const at::NoGradGuard no_grad;
  look_at_size(members, group);
  Members fresh, again;
  std::vector<at::Tensor> regenerated;
  for (const at::Tensor& p : members.params) {
    if (is_regenerated(p)) regenerated.push_back(p);
  }
  if (!regenerated.empty()) restore(regenerated);
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    (is_applied(members.params[i]) ? again : fresh).push_back(members.params[i], members.places[i]);
  }
  Members with_master, without;
  for (std::size_t i = 0; i < fresh.params.size(); ++i) {
    const at::Tensor& p = fresh.params[i];
    (has_master(p, group.masters) ? with_master : without).push_back(p, fresh.places[i]);
  }
  forget_masters(without.params);
  for_each_device(with_master, [&](at::Device, const Members& part) { perturb_masters(part, group); });
  for_each_device(without, [&](at::Device, const Members& part) {
    group.regenerate ? perturb_in_place(part, group.noise) : save_and_perturb(part, group);
  });
  apply_from_clean(again, group);
}

void NoiseState::save_and_perturb(const Members& members, const GroupNoise& group) {
  std::vector<at::Tensor> clean;
  clean.reserve(members.params.size());
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    clean.push_back(slot_of(members.params[i]).copy());
  }
  ops::perturb_(members.params, clean, generator(members.params[0].device()), members.places,
                scaled(group, members.params, members.params));
  note_applied(members);
}

// Master + noise: there is nothing to save.
void NoiseState::perturb_masters(const Members& members, const GroupNoise& group) {
  std::vector<at::Tensor> masters;
  masters.reserve(members.params.size());
  for (const at::Tensor& p : members.params) masters.push_back(master_of(p));
  ops::perturb_from_clean_(members.params, masters, generator(members.params[0].device()), members.places,
                           scaled(group, members.params, masters));
  for (std::size_t i = 0; i < members.params.size(); ++i) slot_of(members.params[i]).clean = masters[i];
  note_applied(members);
}

void NoiseState::note_applied(const Members& members) {
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    Slot& slot = slot_of(members.params[i]);
    slot.place = members.places[i];
    slot.applied = true;
  }
  applied_ += members.params.size();
  ++changes_;
  written(members.params);
}

void NoiseState::perturb_in_place(const Members& members, ops::Noise noise) {
  check_regenerated(members.params);
  const at::Tensor& shared = generator(members.params[0].device());
  const auto recipe = std::make_shared<Recipe>(Recipe{ops::empty_like(shared).copy_(shared), noise});
  if (noise.draw_offset != 0) ops::advance_(recipe->generator, noise.draw_offset);
  recipe->noise.draw_offset = 0;
  ops::perturb_from_clean_(members.params, members.params, recipe->generator, members.places, recipe->noise);
  for (const at::Tensor& p : members.params) {
    slot_of(p).recipe = recipe;
    slot_of(p).clean.reset();
  }
  note_applied(members);
}

void NoiseState::apply_from_clean(const Members& members, const GroupNoise& group) {
  const at::NoGradGuard no_grad;
  for_each_device(members, [&](at::Device device, const Members& part) {
    const std::vector<at::Tensor> clean = clean_of(part.params);
    ops::perturb_from_clean_(part.params, clean, generator(device), part.places, scaled(group, part.params, clean));
    written(part.params);
  });
}

at::Tensor NoiseState::noise_of(const at::Tensor& param, std::int64_t place, const GroupNoise& group) {
  const at::NoGradGuard no_grad;
  const at::Tensor clean = clean_of(param).detach();
  return ops::perturbed(clean, generator(param.device()), place, scaled(group, {param}, {clean}), /*noise_only=*/true);
}

void NoiseState::written(const std::vector<at::Tensor>& params) {
  at::autocast::clear_cache();  // it keeps casts of the weights until its block ends
  for (const at::Tensor& p : params) {
    p.unsafeGetTensorImpl()->bump_version();
    const auto found = index_.find(p.unsafeGetTensorImpl());
    if (found == index_.end()) continue;
    Slot& slot = slots_[found->second];
    slot.rounded = !slot.applied && slot.master.defined();
    if (slot.applied || slot.rounded) slot.note();
  }
}

bool NoiseState::changed() const {
  return std::any_of(slots_.begin(), slots_.end(), [](const Slot& s) { return s.applied && !s.is_as_we_left_it(); });
}

std::string NoiseState::restore() {
  std::vector<Slot*> slots;
  slots.reserve(applied_);
  for (Slot& slot : slots_) {
    if (slot.applied) slots.push_back(&slot);
  }
  return restore_slots(slots);
}

void NoiseState::restore(const std::vector<at::Tensor>& params) {
  std::vector<Slot*> slots;
  for (const at::Tensor& p : params) {
    const auto found = index_.find(p.unsafeGetTensorImpl());
    if (found != index_.end() && slots_[found->second].applied) slots.push_back(&slots_[found->second]);
  }
  const std::string message = restore_slots(slots);
  if (!message.empty()) throw_changed(message);
}

void NoiseState::restore_frozen() {
  std::vector<at::Tensor> frozen;
  for (const Slot& slot : slots_) {
    if (slot.applied && !slot.param.requires_grad()) frozen.push_back(slot.param);
  }
  if (!frozen.empty()) restore(frozen);
}

void NoiseState::restore_regenerated() {
  std::vector<at::Tensor> regenerated;
  for (const Slot& slot : slots_) {
    if (slot.applied && slot.recipe != nullptr) regenerated.push_back(slot.param);
  }
  if (!regenerated.empty()) restore(regenerated);
}

std::string NoiseState::restore_slots(const std::vector<Slot*>& slots) {
  const at::NoGradGuard no_grad;
  Members ours;
  std::vector<std::pair<std::shared_ptr<const Recipe>, Members>> regenerated;
  std::vector<const Slot*> changed;
  for (const Slot* slot : slots) {
    if (!slot->is_as_we_left_it()) {
      changed.push_back(slot);
      continue;
    }
    if (slot->recipe == nullptr) {
      ours.push_back(slot->param, slot->place);
      continue;
    }
    const auto has_recipe = [&](const auto& part) { return part.first == slot->recipe; };
    auto part = std::find_if(regenerated.begin(), regenerated.end(), has_recipe);
    if (part == regenerated.end()) part = regenerated.insert(part, {slot->recipe, {}});
    part->second.push_back(slot->param, slot->place);
  }
  for (const auto& [recipe, members] : regenerated) {
    ops::Noise noise = recipe->noise;
    noise.negate = !noise.negate;
    ops::perturb_from_clean_(members.params, members.params, recipe->generator, members.places, noise);
    // One by one: where a later operator refuses, noise that is off must not be taken off again.
    for (const at::Tensor& p : members.params) {
      Slot& slot = slot_of(p);
      slot.applied = false;
      slot.recipe.reset();
      p.unsafeGetTensorImpl()->bump_version();
    }
    at::autocast::clear_cache();
    applied_ -= members.params.size();
    ++changes_;
  }
  for_each_device(ours, [&](at::Device, const Members& part) { ops::restore_(part.params, clean_of(part.params)); });
  for (Slot* slot : slots) {
    if (!slot->applied) continue;
    if (slot->uses_master()) slot->clean.reset();
    slot->rounded = false;
    slot->applied = false;
    slot->recipe.reset();
    --applied_;
  }
  if (!slots.empty()) ++changes_;
  written(ours.params);
  if (changed.empty()) return {};
  std::ostringstream text;
  text << "torch_ssam: parameter" << (changed.size() > 1 ? "s " : " ");
  for (std::size_t i = 0; i < std::min<std::size_t>(changed.size(), 5); ++i) {
    text << (i ? ", " : "") << changed[i]->place << " of shape " << changed[i]->param.sizes();
  }
  if (changed.size() > 5) text << " and " << changed.size() - 5 << " more";
  text << (changed.size() > 1 ? " were" : " was")
       << " written to while holding perturbed weights: the new values were kept and are now taken as clean; all other "
          "parameters were restored. Load or edit weights outside perturb(), or after eval() with keep_perturbed.";
  return text.str();
}

}  // namespace torch_ssam::detail
