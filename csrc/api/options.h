// Checks of the hyperparameters that the C++ fronts own, with the bounds and wording of Python's noise/options.py.
// Shapes, dtypes and devices are the operators' to check. Tests: tests/cpp/test_api_errors.cpp.
#pragma once

#include <torch_ssam/ssam.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace torch_ssam::detail {

inline constexpr const char* kRegenerate = "regenerate";

double check_number(const char* name, double value, double low = 0, bool open_low = false);
void check_count(const char* name, std::int64_t value, std::int64_t low, std::int64_t high);
void check_noise(double noise_std, const std::string& distribution, const std::string& scale,
                 const std::string& memory);
void check_sgd(const SSAMOptions& options);  // those of the update
void check_options(const SSAMOptions& options);
void check_common(const SSAMOptions& options, const SSAMOptions& first);
std::int64_t passes_of(const SSAMOptions& options);

// memory "regenerate" takes dtypes in which two roundings a step are no more than those of SGD itself.
void check_regenerated(const std::vector<at::Tensor>& params);

// Float masters would be coarser than Double parameters.
void check_masters(const SSAMOptions& options, const std::vector<at::Tensor>& params);

// One seed serves all groups: a group may only repeat it.
void check_group_seed(std::optional<std::int64_t> of_group, std::int64_t seed);

// A group's tensors, checked, each once; those of `others` may not be among them.
std::vector<at::Tensor> check_params(const std::vector<at::Tensor>& params,
                                     const std::vector<torch::optim::OptimizerParamGroup>& others);

// As given, or drawn from torch's default generator exactly as Python draws it.
std::int64_t resolve_seed(std::optional<std::int64_t> seed);

}  // namespace torch_ssam::detail
