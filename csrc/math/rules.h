// The update rules there are. Operators, loops and launches serve each in this list. What a rule is: rules/rule.h.
#pragma once

#include "rules/adamw.h"
#include "rules/sgd.h"

namespace torch_ssam::math {

using Rules = RuleList<Sgd, AdamW>;

}  // namespace torch_ssam::math
