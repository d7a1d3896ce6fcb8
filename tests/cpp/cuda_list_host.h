// What the tests of bodies over lists have in common: sizes round every boundary, one noise for the CPU's inner loops
// and the walked grid, and lists. Used by test_cuda_on_host.cpp and test_cuda_scale_on_host.cpp.
#pragma once

#include <algorithm>
#include <array>

#include "cuda_host.h"
#include "ops/cuda/update_body.h"

namespace torch_ssam::cuda {

inline constexpr int64_t kSizes[] = {0,    1,    7,    8,    15,   16,   17,   31,    33,   63,
                                     64,   65,   127,  128,  129,  1023, 1024, 1025,  2047, 2048,
                                     2049, 4095, 4096, 4097, 8191, 8192, 8193, 16384, 16389};
inline constexpr math::Distribution kDistributions[] = {math::Distribution::gaussian, math::Distribution::rademacher};
inline constexpr int64_t kGenerator[2] = {0x0123456789abcdefLL, (1LL << 40) + 7};
inline constexpr int64_t kPlace = 3, kSample = 5, kOffset = 2;
inline constexpr double kStd = -0.03;

inline NoiseSettings noise_settings(math::Distribution distribution) {
  return {kGenerator, kOffset, kSample, distribution, kStd};
}
inline cpu::NoiseArgs noise_args(math::Distribution distribution, int64_t place = kPlace) {
  return {math::make_noise_stream(kGenerator[0], kGenerator[1] + kOffset, place, kSample), distribution, kStd};
}

// SGD's family, of the kind that the test names, on both sides.
using math::Sgd;
using Kind = math::Sgd::Kind;
constexpr cpu::Update update_of(Kind kind, bool maximize, bool first_step) {
  const double momentum = kind == Kind::plain ? 0.0 : 0.9, dampening = kind == Kind::heavy_ball ? 0.25 : 0.0;
  return {{0.1, momentum, dampening, 1e-3, kind == Kind::nesterov, maximize}, first_step ? 1 : 0};
}

// As update_launch.h makes them, but for lr, which the caller may put elsewhere.
template <typename math_t>
UpdateSettings<Sgd, math_t> settings_of(const cpu::Update& update) {
  return {Sgd::params<math_t>({0.0, update.rule.momentum, update.rule.dampening, update.rule.weight_decay,
                               update.rule.nesterov, update.rule.maximize},
                              update.step),
          Sgd::kind_of(update.rule),
          {nullptr, false, update.rule.lr}};
}

template <int kOperands, typename More = Nothing>
ListTensor<kOperands, More> contiguous(int64_t numel, std::array<void*, kOperands> data, int64_t number = kPlace,
                                       const More& more = {}) {
  ListTensor<kOperands, More> tensor;
  static_cast<More&>(tensor) = more;
  std::copy(data.begin(), data.end(), tensor.data);
  tensor.numel = numel;
  tensor.number = static_cast<uint32_t>(number);
  return tensor;
}

}  // namespace torch_ssam::cuda
