// The update rules there are. Operators, loops and launches serve each in this list. What a rule is: rules/rule.h.
#pragma once

#include "rules/sgd.h"

namespace torch_ssam::math {

using Rules = RuleList<Sgd>;

}  // namespace torch_ssam::math
