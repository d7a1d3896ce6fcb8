// Random wrong calls in C++: where the chances come from, and how many are taken. As tests/python/odd_values.py:
// TORCH_SSAM_STRESS multiplies the numbers, and then each run draws others; the seed is in every failure.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace torch_ssam::testing {

class Chance {
 public:
  explicit Chance(std::uint64_t salt)
      : seed_(stress() == 1 ? 0 : std::random_device()()), engine_(seed_ * 1000 + salt) {}

  static std::int64_t stress() {
    const char* given = std::getenv("TORCH_SSAM_STRESS");
    return given == nullptr ? 1 : std::strtoll(given, nullptr, 10);
  }
  std::uint64_t seed() const { return seed_; }
  std::int64_t below(std::int64_t n) { return std::uniform_int_distribution<std::int64_t>(0, n - 1)(engine_); }
  bool one_in(std::int64_t n) { return below(n) == 0; }

  template <typename T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<std::int64_t>(values.size()))];
  }
  double number() {
    using limits = std::numeric_limits<double>;
    return one_of({0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 1e308, 5e-324, 1e-3, limits::quiet_NaN(), limits::infinity(),
                   -limits::infinity()});
  }
  std::int64_t integer() { return one_of<std::int64_t>({0, -1, 1, 2, 3, 7, 64, INT64_MIN, -(1LL << 40)}); }
  std::string word() {
    return one_of<std::string>({"", "gaussian", "rademacher", "Gaussian", "isotropic", "filter", "tensor", "element",
                                "fisher", "copy", "regenerate", "sum", "rows", std::string("gaussian\0", 9), "\xff"});
  }
  std::vector<double> numbers() {
    std::vector<double> result(static_cast<std::size_t>(one_of({0, 1, 2, 3, 4, 6, 12})));
    const bool odd = one_in(3);
    for (double& x : result) x = odd ? number() : 0.25 * static_cast<double>(1 + below(8));
    return result;
  }

 private:
  std::uint64_t seed_;
  std::mt19937_64 engine_;
};

}  // namespace torch_ssam::testing
