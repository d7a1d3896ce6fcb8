// master_dtype: the clean weights of 16-bit parameters in Float, kept from step to step ("master weights"). A parameter
// with a master holds its rounding, or that of master + noise; what is smaller than half an ulp of the parameter counts
// in the master (arXiv 1710.03740, section 3.1). Whatever others write to a clean parameter counts too.
// Tests: tests/cpp/test_api_masters.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "noise/saved.h"

namespace torch_ssam::detail {

// The masters of an optimizer's parameters. They last from step to step, perturbed or not.
class Masters {
 public:
  // Whether a clean parameter is to have one, where its group asks for masters.
  static bool wanted(bool asked, const at::Tensor& param) { return asked && param.scalar_type() != at::kFloat; }

  // The masters of parameters of one device that are clean: taken from them where there are none, and in each element
  // that others wrote, also through `p.data()`, which no version counts. An edit of some weights leaves the others as
  // fine as they were, and loading the same weights again changes nothing.
  std::vector<SavedPtr> of(const std::vector<at::Tensor>& params);
  Saved* find(const at::Tensor& param) const;  // null where there is none

  void set(const at::Tensor& param, at::Tensor master);  // whose rounding the parameter then holds
  void forget(const at::Tensor& param);
  void keep_only(const Keys& keys);

 private:
  const SavedPtr& made(const at::Tensor& param);

  SavedMap saved_;
};

}  // namespace torch_ssam::detail
