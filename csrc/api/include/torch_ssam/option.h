// TORCH_SSAM_OPTION: like TORCH_ARG, and remembers that the option was set, so that a parameter group takes what it
// does not set from the defaults. The class has a member `std::uint32_t given_` and an enumerator `nameBit` for each
// option.
#pragma once

#include <cstdint>

#define TORCH_SSAM_OPTION(T, name)                   \
 public:                                             \
  auto name(const T& value) -> decltype(*this) {     \
    this->name##_ = value;                           \
    this->given_ |= std::uint32_t{1} << name##Bit;   \
    return *this;                                    \
  }                                                  \
  const T& name() const noexcept { return name##_; } \
  T& name() noexcept { return name##_; }             \
                                                     \
 private:                                            \
  T name##_

// Of a member function: takes the option from `defaults` unless it was set here, by name or through the reference that
// the accessor returns (`untouched` is a fresh object of the class).
#define TORCH_SSAM_INHERIT(name)                                         \
  if ((given_ >> name##Bit & 1U) == 0 && name##_ == untouched.name##_) { \
    name##_ = defaults.name##_;                                          \
  }
