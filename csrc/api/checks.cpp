// See checks.h.
#include "checks.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <string>

namespace torch_ssam::detail {

double check_number(const char* name, double value, double low, bool open_low, const char* text) {
  if (!std::isfinite(value) || value < low || (open_low && value == low)) {
    const std::string bound = std::isinf(low) ? "" : c10::str(open_low ? " > " : " >= ", low);
    const std::string what = text == nullptr ? "" : c10::str(" (", text, ")");
    C10_THROW_ERROR(ValueError,
                    c10::str("torch_ssam: ", name, " is ", value, "; expected a finite number", bound, what, "."));
  }
  return value;
}

void check_count(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  TORCH_CHECK_VALUE(low <= value && value <= high, "torch_ssam: ", name, " is ", value, "; expected ", low, " to ",
                    high, ".");
}

}  // namespace torch_ssam::detail
