// See masters.h.
#include "noise/masters.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include "operators.h"

namespace torch_ssam::detail {

namespace {

SavedPtr new_master(const at::Tensor& param, at::Tensor master) {
  auto saved = std::make_shared<Saved>(param, std::move(master));
  saved->is_master = true;
  return saved;
}

}  // namespace

// One that fits the parameter, with whatever values it has.
const SavedPtr& Masters::made(const at::Tensor& param) {
  SavedPtr& saved = saved_[key_of(param)];
  if (saved == nullptr) saved = new_master(param, {});
  at::Tensor& master = saved->copy;
  const c10::InferenceMode normal(false);  // it outlives an InferenceMode around us
  if (!master.defined() || master.sizes() != param.sizes()) {
    master = param.detach().to(at::kFloat);
  } else if (master.device() != param.device()) {
    master = master.to(param.device());
  }
  return saved;
}

std::vector<SavedPtr> Masters::of(const std::vector<at::Tensor>& params) {
  const at::NoGradGuard no_grad;
  std::vector<SavedPtr> found;
  std::vector<at::Tensor> masters;
  for (const at::Tensor& p : params) {
    found.push_back(made(p));
    masters.push_back(found.back()->copy);
  }
  ops::follow_(masters, params);
  return found;
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
