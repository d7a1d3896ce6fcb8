// Walks a CUDA launch grid on the host, one thread after the other, and the memory that tests of it need: buffers of a
// chosen alignment with guards at both ends, strided tensors, and reproducible values. Used by test_cuda*_on_host.cpp
// and test_adamw.cpp. With TORCH_SSAM_PTX the grid is that of the kernels that nvcc compiled, run on the CPU
// (tests/ptx), and TORCH_SSAM_PTX_VALUES=special makes one value of eight a zero, a denormal, an infinity, a NaN or
// another odd number.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "kernel_calls.h"
#include "math/storage.h"
#include "ops/cuda/table.h"

#if defined(TORCH_SSAM_PTX)
#include "../ptx/values.h"
#include "../ptx/walk.h"
#endif

namespace torch_ssam::cuda {

#if !defined(TORCH_SSAM_PTX)
template <typename Body>
void walk(const typename Body::Params& params, int64_t blocks) {
  for (int64_t block = 0; block < blocks; ++block) {
    if constexpr (requires { typename Body::Shared; }) {
      auto shared = std::make_unique<typename Body::Shared>();
      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(*shared));  // NaN: nothing may rely on what was there
      for (int64_t tile = 0; tile < Body::tiles(params); ++tile) {
        for (int i = 0; i < kThreads; ++i) Body::first_phase(params, {block, i}, tile, *shared);
        for (int i = 0; i < kThreads; ++i) Body::second_phase(params, {block, i}, tile, *shared);
      }
    } else {
      for (int i = 0; i < kThreads; ++i) Body::run(params, {block, i});
    }
  }
}

// What tests/ptx does of these for compiled kernels.
inline void forbid(const void*, size_t, bool) {}
template <typename T>
void maybe_special(T&, uint32_t) {}
template <typename T>
bool same_value(const T& got, const T& expected) {
  return std::memcmp(&got, &expected, sizeof(T)) == 0;
}
#endif

// As Launcher::run_threads (csrc/ops/cuda/launch.h).
template <typename Body>
void walk_threads(const typename Body::Params& params, int64_t threads) {
  walk<Body>(params, (threads + kThreads - 1) / kThreads);
}

struct Launches {
  int aligned = 0;
  int any = 0;
};

// As Launcher::run_list.
template <template <int> class Body, int kCount, typename TensorType, typename Settings>
Launches walk_list(const std::vector<TensorType>& tensors, const Settings& settings) {
  Launches launches;
  for_each_launch<Body, kCount>(tensors, [&]<typename Chosen>(const auto& table, int64_t blocks) {
    auto params = std::make_unique<typename Chosen::Params>(typename Chosen::Params{settings, table});
    static_assert(sizeof(*params) <= kArgumentBytes, "more than a kernel takes as arguments");
    walk<Chosen>(*params, blocks);
    std::is_same_v<Chosen, Body<kCount>> ? ++launches.aligned : ++launches.any;
  });
  return launches;
}

// As Launcher::run_table.
template <typename Body, typename TensorType, typename Settings>
int walk_table(const std::vector<TensorType>& tensors, const Settings& settings) {
  int launches = 0;
  for_each_table<Body>(tensors, [&](const auto& table, int64_t blocks) {
    auto params = std::make_unique<typename Body::Params>(typename Body::Params{settings, table});
    static_assert(sizeof(*params) <= kArgumentBytes, "more than a kernel takes as arguments");
    walk<Body>(*params, blocks);
    ++launches;
  });
  return launches;
}

template <typename A, typename B, cpu::DtypePair kPair>
struct PairOf {
  using master_t = A;
  using model_t = B;
  using math_t = math::opmath_t<A>;
  static constexpr int pair = static_cast<int>(kPair);
  static constexpr int master = static_cast<int>(math::master_of(kPair));
  // Of the model's dtype alone.
  static constexpr int model = kPair >= cpu::DtypePair::f32_bf16 ? pair - 2 : pair;
};
using Pairs = ::testing::Types<PairOf<double, double, cpu::DtypePair::f64>, PairOf<float, float, cpu::DtypePair::f32>,
                               PairOf<math::bfloat16_t, math::bfloat16_t, cpu::DtypePair::bf16>,
                               PairOf<math::float16_t, math::float16_t, cpu::DtypePair::f16>,
                               PairOf<float, math::bfloat16_t, cpu::DtypePair::f32_bf16>,
                               PairOf<float, math::float16_t, cpu::DtypePair::f32_f16>>;

// `count` elements that start `shift` elements after a 64-byte boundary, with guards before and after.
template <typename T>
class Memory {
 public:
  explicit Memory(int64_t count, uint32_t seed = 0, int shift = 0)
      : count_(count), bytes_(static_cast<size_t>(count) * sizeof(T) + 2 * kGuard), shift_(shift * sizeof(T)) {
    block_.reset(static_cast<unsigned char*>(::operator new(bytes_, std::align_val_t{64})));
    std::memset(block_.get(), 0xab, bytes_);
    block_.get_deleter().bytes = bytes_;
    const size_t end = kGuard + shift_ + static_cast<size_t>(count) * sizeof(T);
    forbid(block_.get(), kGuard + shift_, true);
    forbid(block_.get() + end, bytes_ - end, true);
    uint32_t state = seed * 2654435769U + 12345U;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 1664525U + 1013904223U;
      const double value = (0.25 + static_cast<double>(state >> 8) * 0x1p-24) * ((state & 64U) != 0 ? 1.0 : -1.0);
      data()[i] = math::Store<T>::from(static_cast<math::opmath_t<T>>(value));
      maybe_special(data()[i], state);
    }
  }

  T* data() { return reinterpret_cast<T*>(block_.get() + kGuard + shift_); }
  const T* data() const { return reinterpret_cast<const T*>(block_.get() + kGuard + shift_); }
  int64_t count() const { return count_; }

  bool guards_hold() const {
    const size_t used = static_cast<size_t>(count_) * sizeof(T);
    for (size_t i = 0; i < bytes_; ++i) {
      const bool inside = i >= kGuard + shift_ && i < kGuard + shift_ + used;
      if (!inside && block_.get()[i] != 0xab) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 128;
  struct Free {
    size_t bytes = 0;
    void operator()(unsigned char* p) const {
      forbid(p, bytes, false);
      ::operator delete(p, std::align_val_t{64});
    }
  };
  int64_t count_;
  size_t bytes_;
  size_t shift_;
  std::unique_ptr<unsigned char, Free> block_;
};

template <typename T>
::testing::AssertionResult same_bits(const Memory<T>& got, const Memory<T>& expected) {
  if (!got.guards_hold()) return ::testing::AssertionFailure() << "wrote outside its " << got.count() << " elements";
  for (int64_t i = 0; i < expected.count(); ++i) {
    if (!same_value(got.data()[i], expected.data()[i])) {
      return ::testing::AssertionFailure() << "element " << i << " of " << expected.count() << " differs";
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace torch_ssam::cuda
