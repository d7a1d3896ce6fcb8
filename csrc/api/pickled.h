// Reading values that Python pickled: dicts of plain values and tensors, with messages that name the key.
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <string>

namespace torch_ssam::detail {

using Dict = c10::impl::GenericDict;

inline Dict new_dict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }

// The value as a dict; `what` names it in the message.
Dict as_dict(const c10::IValue& value, const std::string& what);

// The value of a key, or None where the dict has no such key.
c10::IValue value_of(const Dict& dict, const c10::IValue& key);

// Python writes 0 where C++ expects 0.0, so numbers are read as either.
double as_double(const c10::IValue& value, const std::string& what);
std::int64_t as_int(const c10::IValue& value, const std::string& what);
bool as_bool(const c10::IValue& value, const std::string& what);
std::string as_string(const c10::IValue& value, const std::string& what);

}  // namespace torch_ssam::detail
