// See <torch_ssam/optim/param_state.h>.
#include <ATen/Functions.h>
#include <torch/serialize/archive.h>
#include <torch_ssam/optim/param_state.h>

#include <algorithm>

#include "pickled.h"

namespace torch_ssam {

void NoiseParamState::each(const std::function<void(const char*, const at::Tensor&)>& visit) const {
  for (std::size_t i = 0; i < names_.size(); ++i) visit(names_[i], buffers_[i]);
  visit("clean", clean_);
  visit("fisher", fisher_);
  visit("master", master_);
}

void NoiseParamState::each(const std::function<void(const char*, at::Tensor&)>& visit) {
  std::as_const(*this).each(
      [&](const char* name, const at::Tensor& tensor) { visit(name, const_cast<at::Tensor&>(tensor)); });
}

bool NoiseParamState::empty() const {
  bool empty = step_ == 0;
  each([&](const char*, const at::Tensor& tensor) { empty &= !tensor.defined(); });
  return empty;
}

void NoiseParamState::serialize(torch::serialize::OutputArchive& archive) const {
  each([&](const char* name, const at::Tensor& tensor) {
    if (tensor.defined()) archive.write(name, c10::IValue(tensor));
  });
  if (step_ > 0) archive.write("step", c10::IValue(step_));  // as torch::optim::AdamWParamState
}

void NoiseParamState::serialize(torch::serialize::InputArchive& archive) {
  std::vector<std::string> known = {"step"};
  each([&](const char* name, at::Tensor& tensor) {
    known.emplace_back(name);
    // None where torch::optim::AdamW keeps no largest average.
    if (c10::IValue value; archive.try_read(name, value) && !value.isNone()) tensor = value.toTensor();
  });
  if (c10::IValue value; archive.try_read("step", value)) step_ = detail::as_step(value);
  const std::vector<std::string> keys = archive.keys();
  has_others_ = std::any_of(keys.begin(), keys.end(), [&](const std::string& key) {
    return std::find(known.begin(), known.end(), key) == known.end();
  });
}

bool operator==(const NoiseParamState& a, const NoiseParamState& b) {
  const auto tensors_of = [](const NoiseParamState& state) {
    std::vector<at::Tensor> tensors;
    state.each([&](const char*, const at::Tensor& tensor) { tensors.push_back(tensor); });
    return tensors;
  };
  const std::vector<at::Tensor> ours = tensors_of(a), theirs = tensors_of(b);
  const auto same = [](const at::Tensor& x, const at::Tensor& y) {
    return x.defined() == y.defined() && (!x.defined() || at::equal(x, y));
  };
  return a.step() == b.step() && std::equal(ours.begin(), ours.end(), theirs.begin(), theirs.end(), same);
}

}  // namespace torch_ssam
