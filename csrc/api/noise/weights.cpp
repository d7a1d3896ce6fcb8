// See weights.h.
#include "noise/weights.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch_ssam/perturbation.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "operators.h"

namespace torch_ssam::detail {

void warn_quietly(const std::string& message) noexcept {
  try {
    TORCH_WARN(message);
  } catch (...) {
  }
}

void throw_changed(const std::string& message) {
  throw PerturbedWeightsChanged({__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)}, message);
}

// --- which tensors

const std::vector<Members>& SavedWeights::placed(const Groups& groups, const std::function<void(const Keys&)>& forget) {
  if (!placement_.look(groups)) return placement_.members();
  Keys keys = placement_.keys();
  for (const auto& [key, saved] : applied_) {
    if (saved != nullptr && keys.insert(key).second) placement_.look_again();  // when it is clean
  }
  keep_only(keys);
  if (forget) forget(keys);
  ++changes_;
  return placement_.members();
}

void SavedWeights::keep_only(const Keys& keys) {
  const auto left = [&](const auto& item) { return keys.count(item.first) == 0; };
  std::erase_if(copies_, left);
  std::erase_if(applied_, left);
  masters_.keep_only(keys);
}

const SavedPtr& SavedWeights::applied(const at::Tensor& param) const {
  static const SavedPtr none;
  const auto found = applied_.find(key_of(param));
  return found == applied_.end() ? none : found->second;
}

bool SavedWeights::is_regenerated(const at::Tensor& param) const {
  const SavedPtr& saved = applied(param);
  return saved != nullptr && saved->recipe != nullptr;
}

at::Tensor SavedWeights::clean_of(const at::Tensor& param) const {
  const SavedPtr& saved = applied(param);
  return saved == nullptr ? param : saved->clean();
}

std::vector<at::Tensor> SavedWeights::clean_of(const std::vector<at::Tensor>& params) const {
  std::vector<at::Tensor> clean;
  clean.reserve(params.size());
  for (const at::Tensor& p : params) clean.push_back(clean_of(p));
  return clean;
}

SavedPtr SavedWeights::copy_of(const at::Tensor& param) {
  SavedPtr& saved = copies_[key_of(param)];
  if (saved == nullptr) saved = std::make_shared<Saved>(param);
  if (!saved->fits()) saved->copy = ops::empty_like(param);
  return saved;
}

void SavedWeights::note_applied(const Members& members, const std::vector<SavedPtr>& saved) {
  for (std::size_t i = 0; i < saved.size(); ++i) {
    saved[i]->place = members.places[i];
    applied_[key_of(members.params[i])] = saved[i];
    if (saved[i]->recipe != nullptr) copies_.erase(key_of(members.params[i]));
  }
  count_applied_ += saved.size();
  ++changes_;
  written(members.params);
}

void SavedWeights::forget_applied(const at::Tensor& param) {
  applied_[key_of(param)].reset();
  --count_applied_;
}

// --- masters

bool SavedWeights::has_master(const at::Tensor& param, bool asked) const {
  const SavedPtr& saved = applied(param);
  return saved == nullptr ? Masters::wanted(asked, param) : saved->is_master;
}

std::vector<at::Tensor> SavedWeights::masters_of(const Members& members) {
  const auto is_clean = [&](const at::Tensor& p) { return !is_applied(p); };
  members.where(is_clean).by_device([&](at::Device, const Members& part) { masters_.of(part.params); });
  std::vector<at::Tensor> masters;
  masters.reserve(members.params.size());
  for (const at::Tensor& p : members.params)
    masters.push_back((is_clean(p) ? masters_.find(p) : applied(p).get())->copy);
  return masters;
}

at::Tensor SavedWeights::known_master(const at::Tensor& param) const {
  const Saved* saved = masters_.find(param);
  return saved == nullptr ? at::Tensor() : saved->copy;
}

void SavedWeights::set_master(const at::Tensor& param, at::Tensor master) {
  if (master.defined()) {
    masters_.set(param, std::move(master));
  } else {
    masters_.forget(param);
  }
}

void SavedWeights::forget_masters(const std::vector<at::Tensor>& params) {
  for (const at::Tensor& p : params) {
    if (!is_applied(p)) masters_.forget(p);
  }
}

void SavedWeights::written(const std::vector<at::Tensor>& params) {
  at::autocast::clear_cache();  // it keeps casts of the weights until its block ends
  for (const at::Tensor& p : params) {
    p.unsafeGetTensorImpl()->bump_version();
    Saved* saved = applied(p).get();
    if (saved == nullptr) saved = masters_.find(p);
    if (saved != nullptr) saved->note();
  }
}

// --- noise off

void SavedWeights::ready_to_update() {
  std::vector<at::Tensor> special;
  bool changed = false;
  for (const auto& [key, saved] : applied_) {
    if (saved == nullptr) continue;
    changed |= saved->changed();
    if (saved->recipe != nullptr || !saved->param.requires_grad()) special.push_back(saved->param);
  }
  if (changed) throw_changed(restore());
  if (!special.empty()) restore(special);
}

std::string SavedWeights::restore() {
  std::vector<SavedPtr> all;
  all.reserve(count_applied_);
  for (const auto& [key, saved] : applied_) {
    if (saved != nullptr) all.push_back(saved);
  }
  return restore_these(all);
}

void SavedWeights::restore(const std::vector<at::Tensor>& params) {
  std::vector<SavedPtr> some;
  for (const at::Tensor& p : params) {
    if (is_applied(p)) some.push_back(applied(p));
  }
  if (const std::string message = restore_these(some); !message.empty()) throw_changed(message);
}

namespace {

std::string describe_changed(std::vector<SavedPtr> changed) {
  const auto by_place = [](const SavedPtr& a, const SavedPtr& b) { return a->place < b->place; };
  std::sort(changed.begin(), changed.end(), by_place);
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

}  // namespace

std::string SavedWeights::restore_these(const std::vector<SavedPtr>& saved) {
  if (saved.empty()) return {};
  const at::NoGradGuard no_grad;
  Members ours;
  std::vector<std::pair<std::shared_ptr<const Recipe>, Members>> regenerated;
  std::vector<SavedPtr> changed;
  for (const SavedPtr& one : saved) {
    if (one->changed()) {
      changed.push_back(one);
      continue;
    }
    if (one->recipe == nullptr) {
      ours.push_back(one->param, one->place);
      continue;
    }
    const auto has_recipe = [&](const auto& part) { return part.first == one->recipe; };
    auto part = std::find_if(regenerated.begin(), regenerated.end(), has_recipe);
    if (part == regenerated.end()) part = regenerated.insert(part, {one->recipe, {}});
    part->second.push_back(one->param, one->place);
  }
  for (const auto& [recipe, members] : regenerated) {
    add(members, recipe->mirrored());
    // One by one: where a later operator refuses, noise that is off must not be taken off again.
    for (const at::Tensor& p : members.params) {
      forget_applied(p);
      p.unsafeGetTensorImpl()->bump_version();
    }
    at::autocast::clear_cache();
    ++changes_;
  }
  ours.by_device([&](at::Device, const Members& part) { ops::restore_(part.params, clean_of(part.params)); });
  for (const at::Tensor& p : ours.params) forget_applied(p);
  for (const SavedPtr& one : changed) forget_applied(one->param);
  ++changes_;
  written(ours.params);
  return changed.empty() ? std::string() : describe_changed(changed);
}

}  // namespace torch_ssam::detail
