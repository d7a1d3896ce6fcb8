// What goes together among the options of optimizers, and what all groups share. The options and their ranges are in
// <torch_ssam/optim/options.h>. Python's twins are optim/options.py and noise/masters.py.
// Tests: tests/cpp/test_api_errors.cpp, test_api_masters.cpp.
#pragma once

#include <torch_ssam/optim/options.h>

#include <vector>

namespace torch_ssam::detail {

// Those of the groups of one optimizer: how many passes a step makes.
void check_common(const FusedOptions& options, const FusedOptions& first);

// Masters go with copies, and Float ones would be coarser than Double parameters.
void check_masters(const FusedOptions& options);
void check_masters(const FusedOptions& options, const std::vector<at::Tensor>& params);

}  // namespace torch_ssam::detail
