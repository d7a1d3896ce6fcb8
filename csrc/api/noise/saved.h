// What puts a tensor's clean weights back, and whether others wrote to the tensor since we did: writes in place move a
// tensor's version, set_data moves its address. Tests: tests/cpp/test_api_driving.cpp, test_api_masters.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "noise/members.h"
#include "noise/regenerate.h"

namespace torch_ssam::detail {

// The clean weights of one tensor, as a copy, as a master, or (memory "regenerate") as a recipe to make them again.
struct Saved {
  explicit Saved(at::Tensor param_in, at::Tensor copy_in = {}) : param(std::move(param_in)), copy(std::move(copy_in)) {}

  at::Tensor param, copy;
  bool is_master = false;
  std::int64_t place = 0;
  std::shared_ptr<const Recipe> recipe = nullptr;
  at::Tensor row_scales = {};

  at::Tensor clean() const { return recipe ? without(param, place, *recipe) : copy; }
  bool fits() const;  // whether the copy has the tensor's shape, dtype and device

  void note() { left_ = Left{param._version(), param.const_data_ptr()}; }  // remembers the tensor as it is
  // Whether somebody else wrote to the tensor since it was noted.
  bool changed() const {
    return left_ && (param._version() != left_->version || param.const_data_ptr() != left_->data);
  }

 private:
  struct Left {
    std::int64_t version;
    const void* data;
  };
  std::optional<Left> left_ = std::nullopt;
};

using SavedPtr = std::shared_ptr<Saved>;
using SavedMap = std::unordered_map<Key, SavedPtr>;

inline bool Saved::fits() const {
  return copy.defined() && copy.sizes() == param.sizes() && copy.dtype() == param.dtype() &&
         copy.device() == param.device();
}

}  // namespace torch_ssam::detail
