// What the noise of each weight is multiplied by: one number for each row, computed from the weights, or each its own.
// The formulas are csrc/math/scale.h's. Tests: tests/cpp/test_api_scale.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "noise/saved.h"
#include "operators.h"

namespace torch_ssam::detail {

// The noise of one parameter group: what the operators are told, and what they are not.
struct GroupNoise {
  ops::Noise noise;
  std::string scale = "isotropic";  // as the options name it
  bool regenerate = false;
  bool masters = false;  // whether 16-bit tensors have masters
  double fisher_factor = 0;
  std::int64_t channel_dim = 0;
};

// The filters of a tensor, counted by this dimension, or the whole tensor where it has less than two.
inline std::int64_t rows_of(const at::Tensor& param, std::int64_t channel_dim) {
  return param.dim() < 2 ? 1 : param.size(channel_dim);
}

// Tensors as operators take rows: with the dimension that counts their filters first, in the same memory.
std::vector<at::Tensor> filters_first(std::vector<at::Tensor> tensors, std::int64_t channel_dim);

// A scale with one number for each row, from the clean weights: which (`kind` of the operator row_scales_), and whether
// the tensor is one row. As ROW_SCALES in Python's noise/options.py.
struct RowScale {
  const char* kind;
  bool whole;
};
std::optional<RowScale> row_scale_of(const std::string& scale);  // none for the others

// Numbers by rows, and the sums of squared gradients that scale "fisher" divides by.
class Scales {
 public:
  // What the operators are told of the group's noise; row scales are computed from the clean weights.
  ops::Noise of(const GroupNoise& group, const std::vector<SavedPtr>& saved, const std::vector<at::Tensor>& clean);

  // F <- decay F + sum of g^2 of each filter, from the gradients of a step.
  void observe(const Members& with_grad, double decay, std::int64_t channel_dim);

  at::Tensor fisher_of(const at::Tensor& param, std::int64_t channel_dim);  // F of a tensor's filters, zeros at first
  at::Tensor known_fisher(const at::Tensor& param) const;                   // undefined where there is none
  void set_fisher(const at::Tensor& param, at::Tensor sums);                // undefined for none
  void keep_only(const Keys& keys);

 private:
  struct Sums {
    at::Tensor param, sums;
  };
  std::unordered_map<Key, Sums> fisher_;
};

}  // namespace torch_ssam::detail
