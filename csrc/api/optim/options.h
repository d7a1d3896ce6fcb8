// The options of updates, and what all groups of an optimizer share. Python's twin is optim/options.py.
// Tests: tests/cpp/test_api_errors.cpp, test_api_masters.cpp.
#pragma once

#include <torch_ssam/ssam.h>

#include <vector>

namespace torch_ssam::detail {

void check_sgd(const SSAMOptions& options);  // those of the update
void check_options(const SSAMOptions& options);
void check_common(const SSAMOptions& options, const SSAMOptions& first);

// Float masters would be coarser than Double parameters.
void check_masters(const SSAMOptions& options, const std::vector<at::Tensor>& params);

}  // namespace torch_ssam::detail
