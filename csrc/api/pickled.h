// Reading values that Python pickled: dicts of plain values and tensors, with messages that name the key.
// Tests: tests/cpp/test_api_checkpoint.cpp.
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace torch_ssam::detail {

using Dict = c10::impl::GenericDict;

inline Dict new_dict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }

// The value as a dict; `what` names it in the message.
Dict as_dict(const c10::IValue& value, const std::string& what);

// The value of a key, or None where the dict has no such key.
c10::IValue value_of(const Dict& dict, const c10::IValue& key);

// Python writes 0 where C++ expects 0.0, so numbers are read as either.
double as_double(const c10::IValue& value, const std::string& what);
std::tuple<double, double> as_pair(const c10::IValue& value, const std::string& what);  // a tuple, or a list
std::int64_t as_int(const c10::IValue& value, const std::string& what);
bool as_bool(const c10::IValue& value, const std::string& what);
std::int64_t as_draw(const c10::IValue& value);  // an integer >= 0
std::int64_t as_step(const c10::IValue& value);  // of a parameter: a whole number >= 0, or a tensor of one
std::string as_string(const c10::IValue& value, const std::string& what);

// The pickle with every integer of the opcode LONG1 in eight bytes: Python writes as few as it needs, and LibTorch's
// reader takes no other number of them. Anything unknown ends the rewriting, and is the reader's to report.
std::string widen_integers(std::string_view pickle);

}  // namespace torch_ssam::detail
