// What an update rule says of itself: operators, loops and launches take a rule as a template argument and know nothing
// else of it. A rule is a struct with its numbers as members, in double, and
//   kName, kNumbers, from(numbers)   how a call names it, and its numbers in the order in which a call gives them
//   kBuffers                         the names of what it keeps beside every weight, as many as it may ever have
//   kCountsSteps                     whether a call has to say which step each tensor is at
//   Kind, kKinds, kind_of(rule), buffers_of(kind)   variants that are compiled apart; a variant has the first buffers
//   params<opmath_t>(rule, step), set_lr(params, lr)   what the elements of a tensor share. `step` counts from 1; 0
//                                    where the call does not say. A GPU may read lr from its memory, after params
//   update_element<kind>(clean, grad, buffers, params)   the new clean weight; writes the buffers
// How to add one: docs/adding_an_update_rule.md. Tests: tests/cpp/test_math.cpp, test_kernels.cpp, test_ops_update.py.
#pragma once

#include "../portable.h"

namespace torch_ssam::math {

// What a number may be, in figures and in words. Kernels compute in float for every dtype but float64.
struct Range {
  double low, high;
  const char* text;
  bool whole = false;
};
inline constexpr Range kNonnegative{0.0, 0x1.fffffep+127, "a finite number >= 0 (and within float32's range)"};
inline constexpr Range kBelowOne{0.0, 0x1.fffffffffffffp-1, "a number >= 0 and < 1"};
inline constexpr Range kFinite{-0x1.fffffffffffffp+1023, 0x1.fffffffffffffp+1023, "a finite number"};
inline constexpr Range kZeroOrOne{0.0, 1.0, "0 or 1", true};

struct RuleNumber {
  const char* name;
  Range range;
};

template <typename... Each>
struct RuleList {};

template <typename Rule>
inline constexpr int kRuleNumbers = static_cast<int>(sizeof(Rule::kNumbers) / sizeof(Rule::kNumbers[0]));
template <typename Rule>
inline constexpr int kMostBuffers = static_cast<int>(sizeof(Rule::kBuffers) / sizeof(Rule::kBuffers[0]));

}  // namespace torch_ssam::math
