// Tensors of parameter groups and their places: which ones a call is about, in which order, on which device.
// A tensor's place is its position over all groups, frozen ones counted; the noise of an element depends on it.
// Tests: tests/cpp/test_api_noise.cpp, test_api_ssam.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <unordered_set>
#include <vector>

namespace torch_ssam::detail {

using Groups = std::vector<torch::optim::OptimizerParamGroup>;

// What a tensor is known by, as in torch::optim::Optimizer::state.
using Key = const c10::TensorImpl*;
inline Key key_of(const at::Tensor& param) { return param.unsafeGetTensorImpl(); }

// Tensors of one group and their places.
struct Members {
  std::vector<at::Tensor> params;
  std::vector<std::int64_t> places;

  bool empty() const { return params.empty(); }
  void reserve(std::size_t count) {
    params.reserve(count);
    places.reserve(count);
  }
  void push_back(const at::Tensor& param, std::int64_t place) {
    params.push_back(param);
    places.push_back(place);
  }

  // Those whose tensor is chosen.
  template <typename Chosen>
  Members where(const Chosen& chosen) const {
    Members some;
    for (std::size_t i = 0; i < params.size(); ++i) {
      if (chosen(params[i])) some.push_back(params[i], places[i]);
    }
    return some;
  }
  bool all_trainable() const;  // whether all require gradients
  Members trainable() const;   // those that do

  // Visits the members of each device; nearly always one part.
  void by_device(const std::function<void(at::Device, const Members&)>& visit) const;
};

using Keys = std::unordered_set<Key>;

// The members of each group. Made anew only where a group's tensors are others than last time.
class Placement {
 public:
  // Looks at the groups; whether their tensors are others than last time.
  bool look(const Groups& groups);
  void look_again() { again_ = true; }  // has `look` say next time that they are others

  const std::vector<Members>& members() const { return known_; }  // of each group all tensors, frozen ones too
  Keys keys() const;

 private:
  std::vector<Members> known_;
  bool again_ = false;
};

}  // namespace torch_ssam::detail
