// Operands of random calls of list kernels: shapes of up to nine dimensions and 100,003 elements, memory that is
// contiguous, misaligned or strided (permuted, with gaps), values of few bits, whose sums fall between two numbers of
// 16 bits or are denormals, and numbers that the host knows or that lie in memory as a float or a double. Used by
// test_random_launches.cpp and test_random_reductions.cpp.
#pragma once

#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "../cpp/cuda_list_host.h"

namespace torch_ssam::cuda {

struct Random {
  std::mt19937_64 engine;
  int64_t below(int64_t n) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(n)); }
  bool coin() { return below(2) == 0; }
};

// TORCH_SSAM_PTX_CALLS: how many random calls of each kind.
inline int random_calls() {
  const char* asked = std::getenv("TORCH_SSAM_PTX_CALLS");
  return asked == nullptr ? 32 : std::atoi(asked);
}
inline uint64_t random_seed() {
  const char* asked = std::getenv("TORCH_SSAM_PTX_SEED");
  return asked == nullptr ? 1 : std::strtoull(asked, nullptr, 0);
}

struct Shape {
  std::vector<int64_t> sizes;
  int64_t numel;
};

inline Shape random_shape(Random& random) {
  if (random.below(3) != 0) {
    constexpr int64_t kRound = static_cast<int64_t>(std::size(kSizes));
    const int64_t n = random.below(60) == 0
                          ? 100003
                          : (random.coin() ? kSizes[1 + random.below(kRound - 1)] : 1 + random.below(5000));
    return {{n}, n};
  }
  Shape shape{{}, 1};
  const int64_t dim = 1 + random.below(9);
  for (int64_t d = 0; d < dim; ++d) {
    int64_t size = 1 + random.below(d < 3 ? 12 : 4);
    if (shape.numel * size > 6000) size = 1;
    shape.sizes.push_back(size);
    shape.numel *= size;
  }
  return shape;
}

// Whether a call's values have as few bits as T and one more: half of them, and of their sums, lie in the middle of two
// numbers of T. Some are so small that in float16 they are denormals.
struct Coarse {
  bool on = false;
  double unit = 1.0;
};

template <typename T>
inline constexpr int kDigits = 0;  // more than a middle can be met in
template <>
inline constexpr int kDigits<math::bfloat16_t> = 8;
template <>
inline constexpr int kDigits<math::float16_t> = 11;

template <typename model_t>
Coarse maybe_coarse(Random& random) {
  if (kDigits<model_t> == 0 || random.coin()) return {};
  return {true, random.below(3) == 0 ? 0x1p-15 : 1.0};
}

enum class Layout : int { contiguous, misaligned, strided };

inline Layout random_layout(Random& random) {
  constexpr Layout kAll[] = {Layout::contiguous, Layout::misaligned, Layout::strided, Layout::contiguous};
  return kAll[random.below(4)];
}

// One operand: memory, and where its elements lie in it, in row-major order.
template <typename T>
class Operand {
 public:
  Operand(Random& random, const Shape& shape, Layout layout)
      : strides_(layout == Layout::strided ? random_strides(random, shape) : std::vector<int64_t>{}),
        at_(places(shape, strides_)),
        memory_(1 + *std::max_element(at_.begin(), at_.end()), static_cast<uint32_t>(random.engine()),
                layout == Layout::misaligned ? 1 + static_cast<int>(random.below(7)) : 0) {}

  T* data() { return memory_.data(); }
  const int64_t* strides() const { return strides_.empty() ? nullptr : strides_.data(); }

  template <typename model_t>
  void coarsen(const Coarse& coarse) {
    if (!coarse.on) return;
    for (T* at = memory_.data(); at < memory_.data() + memory_.count(); ++at) {
      const auto value = static_cast<double>(math::load_scalar(*at));
      if (!std::isfinite(value) || value == 0.0) continue;
      int exponent = 0;
      const double fraction = std::frexp(value, &exponent), digits = std::ldexp(1.0, kDigits<model_t> + 1);
      const double few = std::ldexp(std::trunc(fraction * digits) / digits, exponent) * coarse.unit;
      *at = math::Store<T>::from(static_cast<math::opmath_t<T>>(few));
    }
  }

  void make_nonnegative() {
    for (T* at = memory_.data(); at < memory_.data() + memory_.count(); ++at) {
      *at = math::Store<T>::from(std::fabs(math::load_scalar(*at)));
    }
  }

  // The elements in row-major order.
  std::vector<T> values() const {
    std::vector<T> out;
    for (const int64_t i : at_) out.push_back(memory_.data()[i]);
    return out;
  }

  testing::AssertionResult holds(const std::vector<T>& expected) const {
    if (!memory_.guards_hold()) return testing::AssertionFailure() << "wrote outside its elements";
    for (size_t i = 0; i < expected.size(); ++i) {
      const T& got = memory_.data()[at_[i]];
      if (!same_value(got, expected[i])) {
        return testing::AssertionFailure()
               << "element " << i << " of " << expected.size() << " is " << static_cast<double>(math::load_scalar(got))
               << "; expected " << static_cast<double>(math::load_scalar(expected[i]));
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  static std::vector<int64_t> random_strides(Random& random, const Shape& shape) {
    std::vector<size_t> order(shape.sizes.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), random.engine);
    std::vector<int64_t> strides(order.size());
    int64_t step = 1 + random.below(3);
    for (const size_t d : order) {
      strides[d] = step;
      step = step * shape.sizes[d] + (random.below(3) == 0 ? random.below(4) : 0);
    }
    return strides;
  }
  static std::vector<int64_t> places(const Shape& shape, const std::vector<int64_t>& strides) {
    std::vector<int64_t> at(static_cast<size_t>(shape.numel));
    std::iota(at.begin(), at.end(), int64_t{0});
    if (strides.empty()) return at;
    for (int64_t& place : at) {
      int64_t rest = place;
      place = 0;
      for (size_t d = strides.size(); d-- > 0;) {
        place += rest % shape.sizes[d] * strides[d];
        rest /= shape.sizes[d];
      }
    }
    return at;
  }

  std::vector<int64_t> strides_, at_;
  Memory<T> memory_;
};

// A number of the host, or one in memory that lives as long as the call; `value` becomes what a kernel reads.
class Numbers {
 public:
  Number make(Random& random, double& value) {
    switch (random.below(3)) {
      case 0:
        return {nullptr, false, value};
      case 1:
        doubles_.push_back(std::make_unique<double>(value));
        return {doubles_.back().get(), true, 0.0};
      default:
        floats_.push_back(std::make_unique<float>(static_cast<float>(value)));
        value = static_cast<double>(*floats_.back());
        return {floats_.back().get(), false, 0.0};
    }
  }

 private:
  std::vector<std::unique_ptr<double>> doubles_;
  std::vector<std::unique_ptr<float>> floats_;
};

template <typename T, int kOperands, typename More>
void attach(ListTensor<kOperands, More>& tensor, int operand, Operand<T>& from, const Shape& shape) {
  tensor.data[operand] = from.data();
  tensor.strides[operand] = from.strides();
  tensor.sizes = shape.sizes.data();
  tensor.dim = static_cast<int64_t>(shape.sizes.size());
  tensor.numel = shape.numel;
}

}  // namespace torch_ssam::cuda
