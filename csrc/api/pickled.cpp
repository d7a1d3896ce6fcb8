// See pickled.h.
#include "pickled.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace torch_ssam::detail {

Dict as_dict(const c10::IValue& value, const std::string& what) {
  TORCH_CHECK_VALUE(value.isGenericDict(), "torch_ssam: ", what, " is ", value.isNone() ? "missing" : value.tagKind(),
                    "; expected a dict.");
  return value.toGenericDict();
}

c10::IValue value_of(const Dict& dict, const c10::IValue& key) {
  const auto found = dict.find(key);
  return found == dict.end() ? c10::IValue() : found->value();
}

double as_double(const c10::IValue& value, const std::string& what) {
  if (value.isTensor() && value.toTensor().numel() == 1) return value.toTensor().item<double>();
  TORCH_CHECK_VALUE(value.isDouble() || value.isInt(), "torch_ssam: ", what, " is ", value.tagKind(),
                    "; expected a number.");
  return value.isInt() ? static_cast<double>(value.toInt()) : value.toDouble();
}

std::tuple<double, double> as_pair(const c10::IValue& value, const std::string& what) {
  std::vector<c10::IValue> both;
  if (value.isTuple()) both = value.toTupleRef().elements().vec();
  if (value.isList()) both = value.toListRef().vec();
  TORCH_CHECK_VALUE(both.size() == 2, "torch_ssam: ", what, " is ", value.tagKind(), "; expected a pair of numbers.");
  return {as_double(both[0], what + "[0]"), as_double(both[1], what + "[1]")};
}

std::int64_t as_int(const c10::IValue& value, const std::string& what) {
  TORCH_CHECK_VALUE(value.isInt(), "torch_ssam: ", what, " is ", value.tagKind(), "; expected an integer.");
  return value.toInt();
}

std::int64_t as_draw(const c10::IValue& value) {
  const std::int64_t draw = as_int(value, "draw");
  TORCH_CHECK_VALUE(draw >= 0, "torch_ssam: draw is ", draw, "; expected an integer >= 0.");
  return draw;
}

std::int64_t as_step(const c10::IValue& value) {
  if (value.isInt() && value.toInt() >= 0) return value.toInt();
  const double step = as_double(value, "the step of a parameter");
  TORCH_CHECK_VALUE(step >= 0 && step < 0x1p53 && step == std::floor(step), "torch_ssam: the step of a parameter is ",
                    step, "; expected a whole number >= 0.");
  return static_cast<std::int64_t>(step);
}

bool as_bool(const c10::IValue& value, const std::string& what) {
  TORCH_CHECK_VALUE(value.isBool(), "torch_ssam: ", what, " is ", value.tagKind(), "; expected true or false.");
  return value.toBool();
}

std::string as_string(const c10::IValue& value, const std::string& what) {
  TORCH_CHECK_VALUE(value.isString(), "torch_ssam: ", what, " is ", value.tagKind(), "; expected a string.");
  return value.toStringRef();
}

namespace {

constexpr char kLong1 = '\x8a';

// Bytes that follow an opcode of pickle protocol 2, or nothing for an opcode of another protocol.
std::optional<std::size_t> argument_bytes(std::string_view pickle, std::size_t at) {
  const auto number = [&](std::size_t bytes) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < bytes && at + 1 + i < pickle.size(); ++i) {
      value |= std::uint32_t{static_cast<unsigned char>(pickle[at + 1 + i])} << 8 * i;
    }
    return bytes + value;
  };
  const auto lines = [&](int count) {
    std::size_t end = at;
    while (count-- > 0) end = std::min(pickle.find('\n', end + 1), pickle.size());
    return end - at;
  };
  const auto is_one_of = [&](std::string_view opcodes) { return opcodes.find(pickle[at]) != opcodes.npos; };
  if (is_one_of("(.012NQRab}del]ost)u\x81\x85\x86\x87\x88\x89")) return 0;
  if (is_one_of("Khq\x80")) return 1;
  if (is_one_of("M")) return 2;
  if (is_one_of("Jjr")) return 4;
  if (is_one_of("G")) return 8;
  if (is_one_of("FILPSVgp")) return lines(1);
  if (is_one_of("ci")) return lines(2);
  if (is_one_of("U\x8a")) return number(1);
  if (is_one_of("TX\x8b")) return number(4);
  return std::nullopt;
}

}  // namespace

std::string widen_integers(std::string_view pickle) {
  std::string result;
  std::size_t at = 0;
  while (at < pickle.size()) {
    const std::optional<std::size_t> bytes = argument_bytes(pickle, at);
    if (!bytes || *bytes >= pickle.size() - at) break;
    const std::string_view argument = pickle.substr(at + 1, *bytes);
    if (pickle[at] == kLong1 && argument.size() < 9) {
      const bool negative = argument.size() > 1 && (argument.back() & 0x80) != 0;
      result += pickle[at];
      result += '\x08';
      result += argument.substr(1);
      result.append(9 - argument.size(), negative ? '\xff' : '\0');
    } else {
      result += pickle.substr(at, 1 + *bytes);
    }
    at += 1 + *bytes;
  }
  result += pickle.substr(at);
  return result;
}

}  // namespace torch_ssam::detail
