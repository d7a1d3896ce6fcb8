// Checks of single values, whoever owns them: what came, what was expected. Shapes, dtypes and devices are the
// operators' to check. Python's twin is torch_ssam/_checks.py. Tests: tests/cpp/test_api_errors.cpp.
#pragma once

#include <cstdint>

namespace torch_ssam::detail {

// A finite number >= low (> low where `open_low`). `text` says what it is, if anything.
double check_number(const char* name, double value, double low = 0, bool open_low = false, const char* text = nullptr);
void check_count(const char* name, std::int64_t value, std::int64_t low, std::int64_t high);

}  // namespace torch_ssam::detail
