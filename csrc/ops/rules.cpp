// The check of rules.h: ranges are the rule's own (csrc/math/rules); what two numbers may not be together is here.
#include "rules.h"

#include <type_traits>

namespace torch_ssam {
namespace {

template <typename Rule>
void check_together(const Rule&) {}  // of rules whose numbers go with one another

void check_together(const math::Sgd& rule) {
  TORCH_SSAM_CHECK(!rule.nesterov || (rule.momentum > 0 && rule.dampening == 0), "nesterov=True with momentum ",
                   rule.momentum, " and dampening ", rule.dampening,
                   "; Nesterov momentum expects momentum > 0 and dampening 0.");
}

template <typename Rule>
std::string names_of_numbers() {
  std::string names;
  for (const math::RuleNumber& number : Rule::kNumbers) names += (names.empty() ? "" : ", ") + std::string(number.name);
  return names;
}

template <typename Rule>
Rule checked(const std::vector<double>& numbers) {
  TORCH_SSAM_CHECK(numbers.size() == static_cast<size_t>(math::kRuleNumbers<Rule>), "numbers has ", numbers.size(),
                   " entries; the rule '", Rule::kName, "' expects ", math::kRuleNumbers<Rule>, ": ",
                   names_of_numbers<Rule>(), ".");
  for (size_t i = 0; i < numbers.size(); ++i) {
    const auto& [name, range] = Rule::kNumbers[i];
    const double value = numbers[i];
    TORCH_SSAM_CHECK(value >= range.low && value <= range.high &&
                         (!range.whole || value == static_cast<double>(static_cast<int64_t>(value))),
                     name, " is ", value, "; expected ", range.text, ".");
  }
  const Rule rule = Rule::from(numbers.data());
  check_together(rule);
  return rule;
}

template <typename... Rules>
UpdateRule find(math::RuleList<Rules...>, const std::string& name, const std::vector<double>& numbers) {
  std::optional<UpdateRule> found;
  ((name == Rules::kName ? void(found = checked<Rules>(numbers)) : void()), ...);
  TORCH_SSAM_CHECK(found.has_value(), "rule is '", name,
                   "'; expected one of: ", (std::string() + ... + (std::string(Rules::kName) + " ")),
                   "(csrc/math/rules.h).");
  return *found;
}

}  // namespace

UpdateRule check_rule(const std::string& name, const std::vector<double>& numbers) {
  return find(math::Rules{}, name, numbers);
}

}  // namespace torch_ssam
