// See masters.h.
#include "noise/masters.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

namespace torch_ssam::detail {

namespace {

// `known` where the parameter still holds its rounding, else the parameter: an edit of some weights leaves the others
// as fine as they were, and loading the same weights again changes nothing.
at::Tensor master_from(const at::Tensor& param, at::Tensor known) {
  const at::NoGradGuard no_grad;
  const c10::InferenceMode normal(false);  // it outlives an InferenceMode around us
  const at::Tensor now = param.detach();
  if (!known.defined() || known.sizes() != now.sizes()) return now.to(at::kFloat);
  if (known.device() != now.device()) known = known.to(now.device());
  const at::Tensor same = known.to(now.scalar_type()) == now;
  return known.copy_(at::where(same, known, now.to(at::kFloat)));
}

SavedPtr new_master(const at::Tensor& param, at::Tensor master) {
  auto saved = std::make_shared<Saved>(param, std::move(master));
  saved->is_master = true;
  return saved;
}

}  // namespace

SavedPtr Masters::of(const at::Tensor& param) {
  SavedPtr& saved = saved_[key_of(param)];
  if (saved == nullptr) saved = new_master(param, {});
  if (!saved->noted() || saved->changed()) {
    saved->copy = master_from(param, saved->copy);
    saved->note();
  }
  return saved;
}

Saved* Masters::find(const at::Tensor& param) const {
  const auto found = saved_.find(key_of(param));
  return found == saved_.end() ? nullptr : found->second.get();
}

void Masters::set(const at::Tensor& param, at::Tensor master) {
  saved_[key_of(param)] = new_master(param, std::move(master));
}

void Masters::forget(const at::Tensor& param) { saved_.erase(key_of(param)); }

void Masters::keep_only(const Keys& keys) {
  std::erase_if(saved_, [&](const auto& item) { return keys.count(item.first) == 0; });
}

}  // namespace torch_ssam::detail
