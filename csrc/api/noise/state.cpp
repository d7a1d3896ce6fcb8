// See state.h.
#include "noise/state.h"

#include <ATen/core/grad_mode.h>

#include "noise/parameters.h"

namespace torch_ssam::detail {

void NoiseState::keep_only(const Keys& keys) {
  SavedWeights::keep_only(keys);
  scales.keep_only(keys);
}

void NoiseState::apply(const Members& members, const GroupNoise& group) {
  const at::NoGradGuard no_grad;
  look_at_size(members, group);
  if (!active()) {
    perturb(members, group);
    return;
  }
  restore(members.where([&](const at::Tensor& p) { return is_regenerated(p); }).params);
  const Members again = members.where([&](const at::Tensor& p) { return is_applied(p); });
  perturb(members.where([&](const at::Tensor& p) { return !is_applied(p); }), group);
  apply_from_clean(again, group);
}

void NoiseState::look_at_size(const Members& members, const GroupNoise& group) {
  size_.look(members, group, [this](const at::Tensor& param) { return clean_of(param); });
}

void NoiseState::perturb(const Members& members, const GroupNoise& group) {
  const auto mastered = [&](const at::Tensor& p) { return Masters::wanted(group.masters, p); };
  const Members without = group.masters ? members.where([&](const at::Tensor& p) { return !mastered(p); }) : members;
  forget_masters(without.params);
  members.where(mastered).by_device([&](at::Device, const Members& part) { perturb_masters(part, group); });
  without.by_device([&](at::Device, const Members& part) {
    group.regenerate ? perturb_in_place(part, group.noise) : save_and_perturb(part, group);
  });
}

void NoiseState::save_and_perturb(const Members& members, const GroupNoise& group) {
  std::vector<SavedPtr> saved;
  std::vector<at::Tensor> copies;
  for (const at::Tensor& p : members.params) {
    saved.push_back(copy_of(p));
    copies.push_back(saved.back()->copy);
  }
  ops::perturb_(members.params, copies, generator.on(members.params[0].device()), members.places,
                scales.of(group, saved, members.params));
  note_applied(members, saved);
}

void NoiseState::perturb_masters(const Members& members, const GroupNoise& group) {
  const std::vector<SavedPtr> saved = masters_.of(members.params);
  std::vector<at::Tensor> masters;
  for (const SavedPtr& one : saved) masters.push_back(one->copy);
  ops::perturb_from_clean_(members.params, masters, generator.on(members.params[0].device()), members.places,
                           scales.of(group, saved, masters));
  note_applied(members, saved);
}

void NoiseState::perturb_in_place(const Members& members, const ops::Noise& noise) {
  check_regenerated(members.params);
  const auto recipe = recipe_of(generator.on(members.params[0].device()), noise);
  std::vector<SavedPtr> saved;
  for (const at::Tensor& p : members.params) {
    saved.push_back(std::make_shared<Saved>(p));
    saved.back()->recipe = recipe;
  }
  add(members, *recipe);
  note_applied(members, saved);
}

void NoiseState::apply_from_clean(const Members& members, const GroupNoise& group) {
  const at::NoGradGuard no_grad;
  members.by_device([&](at::Device device, const Members& part) {
    std::vector<SavedPtr> saved;
    for (const at::Tensor& p : part.params) saved.push_back(applied(p));
    const std::vector<at::Tensor> clean = clean_of(part.params);
    ops::perturb_from_clean_(part.params, clean, generator.on(device), part.places, scales.of(group, saved, clean));
    written(part.params);
  });
}

at::Tensor NoiseState::noise_of(const at::Tensor& param, std::int64_t place, const GroupNoise& group) {
  const at::NoGradGuard no_grad;
  const at::Tensor clean = clean_of(param).detach();
  const ops::Noise noise = scales.of(group, {std::make_shared<Saved>(param, clean)}, {clean});
  return ops::perturbed(clean, generator.on(param.device()), place, noise, /*noise_only=*/true);
}

}  // namespace torch_ssam::detail
