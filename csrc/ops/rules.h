// A call's update rule: which of csrc/math/rules.h it names, with its numbers checked. Tests: test_ops_errors.py.
#pragma once

#include <variant>

#include "../math/rules.h"
#include "tensors.h"

namespace torch_ssam {

template <typename List>
struct AnyRule;
template <typename... Rules>
struct AnyRule<math::RuleList<Rules...>> {
  using type = std::variant<Rules...>;
};
using UpdateRule = AnyRule<math::Rules>::type;

UpdateRule check_rule(const std::string& name, const std::vector<double>& numbers);

}  // namespace torch_ssam
