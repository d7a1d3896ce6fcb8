// Whether long double is a reference for a type. valgrind computes it as double; and glibc's std::fma of doubles for
// processors without the instruction, which works in long double, is not one rounding there.
#pragma once

#include <limits>

namespace torch_ssam {

template <typename real_t>
bool long_double_is_finer() {
  const volatile long double one = 1, least = std::numeric_limits<real_t>::epsilon() / 8;
  return one + least != one;
}

}  // namespace torch_ssam
