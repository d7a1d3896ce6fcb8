// Parameters as optimizers are given them: what can be perturbed, and what cannot, said at construction rather than at
// the first step. Python's twin is noise/parameters.py. Tests: tests/cpp/test_api_errors.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "noise/members.h"

namespace torch_ssam::detail {

// memory "regenerate" takes dtypes in which two roundings a step are no more than those of SGD itself.
void check_regenerated(const std::vector<at::Tensor>& params);

// A tensor of two or more dimensions has to have the one that counts its filters.
void check_channel_dim(const at::Tensor& param, std::size_t place, std::int64_t channel_dim);

// A group's tensors, checked, each once; those of `others` may not be among them. One that does not require gradients
// only counts for the places, and may be of any dtype beside one that can be perturbed.
std::vector<at::Tensor> check_params(const std::vector<at::Tensor>& params, const Groups& others);

}  // namespace torch_ssam::detail
