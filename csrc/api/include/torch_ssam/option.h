// Options of parameter groups, each named once: a list such as TORCH_SSAM_NOISE_OPTIONS (noise/options.h) has
//   X(type, name, default, range, "what it is")
// for each, and of the lists the macros below make members, accessors and the table from which checks, inheritance,
// operator== and checkpoints come. The text ends the message
// where a number is out of its range. tests/python/test_cpp_options.py holds the lists to Python's.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/util/FunctionRef.h>
#include <torch/optim/optimizer.h>

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

namespace torch_ssam {

using Betas = std::tuple<double, double>;  // as torch::optim::AdamWOptions has them

namespace detail {

// The values that an option takes.
struct Range {
  double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
  bool open_low = false, open_high = false;
  std::array<const char*, 8> names = {};  // one of these, up to the first null

  static constexpr Range any() { return {}; }
  static constexpr Range finite() { return {}; }  // what is no number, or infinite, is refused in any case
  static constexpr Range at_least(double low) { return {low}; }
  static constexpr Range above(double low) {
    Range range = at_least(low);
    range.open_low = true;
    return range;
  }
  static constexpr Range between(double low, double high) { return {low, high}; }
  static constexpr Range from_up_to(double low, double high) {  // high itself is refused
    Range range = between(low, high);
    range.open_high = true;
    return range;
  }
  template <typename... Names>
  static constexpr Range one_of(Names... names) {
    Range range;
    range.names = {names...};
    return range;
  }
};

template <typename T>
struct Option {
  T value, initial;
  bool given = false;

  explicit Option(T first) : value(first), initial(std::move(first)) {}
  void set(const T& to) {
    value = to;
    given = true;
  }
};

// A line of the table.
struct NamedOption {
  const char* name;
  Range range;
  const char* text;
  std::variant<Option<double>*, Option<bool>*, Option<std::int64_t>*, Option<std::string>*, Option<Betas>*,
               Option<std::optional<double>>*, Option<std::optional<at::ScalarType>>*>
      option;
};

}  // namespace detail

// The options of a parameter group, as a table.
class GroupOptions : public torch::optim::OptimizerOptions {
 public:
  // What was not set here, by name or through the reference that an accessor returns, is taken from `defaults`.
  void inherit(const GroupOptions& defaults);

  // Throws ValueError for the first option out of its range.
  void check_ranges() const;

  // A value for every name, and back; what is not found stays unset. A dtype, which says how an optimizer keeps what a
  // checkpoint brings, is written as a name and not read.
  void write(c10::function_ref<void(const char*, const c10::IValue&)> put) const;
  void read(c10::function_ref<bool(const char*, c10::IValue&)> find);
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;

  // Of the whole optimizer, not of one group; none: from torch's generator.
  const std::optional<std::int64_t>& seed() const noexcept { return seed_; }
  std::optional<std::int64_t>& seed() noexcept { return seed_; }

  friend bool operator==(const GroupOptions& a, const GroupOptions& b);

 protected:
  using Visit = c10::function_ref<void(const detail::NamedOption&)>;
  virtual void each(Visit visit) = 0;  // every option, in the order of the lists

  std::optional<std::int64_t> seed_;

 private:
  static std::vector<detail::NamedOption> table_of(const GroupOptions& options);
};

}  // namespace torch_ssam

// X of the lists. An option's member and its accessors:
#define TORCH_SSAM_OPTION_MEMBER(T, name, initial, range, text)  \
 public:                                                         \
  const T& name() const noexcept { return this->name##_.value; } \
  T& name() noexcept { return this->name##_.value; }             \
                                                                 \
 protected:                                                      \
  ::torch_ssam::detail::Option<T> name##_ = ::torch_ssam::detail::Option<T>(T(initial));

// Its setter, which returns the object of the class `Self` for the next one:
#define TORCH_SSAM_OPTION_SETTER(T, name, initial, range, text) \
 public:                                                        \
  Self& name(const T& value) {                                  \
    this->name##_.set(value);                                   \
    return static_cast<Self&>(*this);                           \
  }

// The setter beside the accessors of the base class `Base`:
#define TORCH_SSAM_OPTION_OF_BASE(T, name, initial, range, text) \
 public:                                                         \
  using Base::name;                                              \
  TORCH_SSAM_OPTION_SETTER(T, name, initial, range, text)

// Its line of the table, in `each`:
#define TORCH_SSAM_OPTION_LINE(T, name, initial, range, text) \
  visit({#name, ::torch_ssam::detail::Range::range, text, &this->name##_});
