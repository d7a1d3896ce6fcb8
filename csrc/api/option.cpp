// What is made of the table of options: see option.h.
#include <torch/serialize/archive.h>
#include <torch_ssam/option.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "checks.h"
#include "pickled.h"

namespace torch_ssam {

using detail::NamedOption;
using detail::Option;
using detail::Range;

namespace {

template <typename T>
constexpr bool kIsDtype = std::is_same_v<T, std::optional<at::ScalarType>>;

void check(const NamedOption& option, double value) {
  const Range& range = option.range;
  if (std::isinf(range.high)) {
    detail::check_number(option.name, value, range.low, range.open_low, option.text);
    return;
  }
  TORCH_CHECK_VALUE(value >= range.low && (range.open_high ? value < range.high : value <= range.high),
                    "torch_ssam: ", option.name, " is ", value, "; expected ", range.low, " <= ", option.name,
                    range.open_high ? " < " : " <= ", range.high, " (", option.text, ").");
}

void check(const NamedOption& option, const Betas& value) {
  const std::string first = c10::str(option.name, "[0]"), second = c10::str(option.name, "[1]");
  check({first.c_str(), option.range, option.text, option.option}, std::get<0>(value));
  check({second.c_str(), option.range, option.text, option.option}, std::get<1>(value));
}

void check(const NamedOption& option, std::int64_t value) {
  detail::check_count(option.name, value, static_cast<std::int64_t>(option.range.low),
                      static_cast<std::int64_t>(option.range.high));
}

void check(const NamedOption& option, const std::string& value) {
  const auto& known = option.range.names;
  const auto end = std::find(known.begin(), known.end(), nullptr);
  if (std::find_if(known.begin(), end, [&](const char* name) { return value == name; }) != end) return;
  std::vector<std::string> names;
  for (auto name = known.begin(); name != end; ++name) names.push_back(c10::str("'", *name, "'"));
  const std::string expected = names.size() == 2 ? names[0] + " or " + names[1] : "one of " + c10::Join(", ", names);
  C10_THROW_ERROR(ValueError, c10::str("torch_ssam: ", option.name, " is '", value, "'; expected ", expected, "."));
}

void check(const NamedOption& option, const std::optional<double>& value) {
  if (value) check(option, *value);
}

void check(const NamedOption& option, const std::optional<at::ScalarType>& value) {
  TORCH_CHECK_VALUE(!value || *value == at::kFloat, "torch_ssam: ", option.name, " is ", value.value_or(at::kFloat),
                    "; expected ", option.text, ", or std::nullopt.");
}

void check(const NamedOption& /*option*/, bool /*value*/) {}

template <typename T>
c10::IValue as_ivalue(const T& value) {
  if constexpr (kIsDtype<T>) {
    return value ? c10::IValue("float32") : c10::IValue();  // Python's name
  } else {
    return value;
  }
}

template <typename T>
T from_ivalue(const c10::IValue& value, const std::string& name) {
  if constexpr (std::is_same_v<T, std::optional<double>>) {
    return value.isNone() ? T() : T(detail::as_double(value, name));
  } else if constexpr (std::is_same_v<T, double>) {
    return detail::as_double(value, name);
  } else if constexpr (std::is_same_v<T, Betas>) {
    return detail::as_pair(value, name);
  } else if constexpr (std::is_same_v<T, bool>) {
    return detail::as_bool(value, name);
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return detail::as_int(value, name);
  } else {
    return detail::as_string(value, name);
  }
}

}  // namespace

std::vector<NamedOption> GroupOptions::table_of(const GroupOptions& options) {
  std::vector<NamedOption> table;
  // `each` gives pointers through which options are set too; of a constant object they are only read.
  const_cast<GroupOptions&>(options).each([&](const NamedOption& option) { table.push_back(option); });
  return table;
}

void GroupOptions::inherit(const GroupOptions& defaults) {
  const std::vector<NamedOption> theirs = table_of(defaults);
  auto next = theirs.begin();
  each([&](const NamedOption& mine) {
    std::visit(
        [&](auto* option) {
          if (!option->given && option->value == option->initial) {
            option->value = std::get<decltype(option)>(next->option)->value;
          }
        },
        mine.option);
    ++next;
  });
}

bool operator==(const GroupOptions& a, const GroupOptions& b) {
  if (typeid(a) != typeid(b) || a.seed() != b.seed()) return false;
  const std::vector<NamedOption> ours = GroupOptions::table_of(a), theirs = GroupOptions::table_of(b);
  return std::equal(ours.begin(), ours.end(), theirs.begin(), [](const NamedOption& x, const NamedOption& y) {
    return std::visit([&](auto* option) { return option->value == std::get<decltype(option)>(y.option)->value; },
                      x.option);
  });
}

void GroupOptions::check_ranges() const {
  const_cast<GroupOptions&>(*this).each([](const NamedOption& named) {
    std::visit([&](const auto* option) { check(named, option->value); }, named.option);
  });
}

// --- checkpoints

void GroupOptions::write(c10::function_ref<void(const char*, const c10::IValue&)> put) const {
  for (const NamedOption& named : table_of(*this)) {
    std::visit([&](const auto* option) { put(named.name, as_ivalue(option->value)); }, named.option);
  }
}

void GroupOptions::read(c10::function_ref<bool(const char*, c10::IValue&)> find) {
  seed_.reset();
  each([&](const NamedOption& named) {
    const auto take = [&]<typename T>(Option<T>* option) {
      *option = Option<T>(option->initial);
      if constexpr (!kIsDtype<T>) {
        if (c10::IValue value; find(named.name, value)) option->set(from_ivalue<T>(value, named.name));
      }
    };
    std::visit(take, named.option);
  });
}

void GroupOptions::serialize(torch::serialize::OutputArchive& archive) const {
  write([&](const char* name, const c10::IValue& value) { archive.write(name, value); });
}

// An option that the archive lacks, as one of torch::optim::SGD, stays unset.
void GroupOptions::serialize(torch::serialize::InputArchive& archive) {
  read([&](const char* name, c10::IValue& value) { return archive.try_read(name, value); });
}

}  // namespace torch_ssam
