// The CPU's inner loops as tests call them: SGD's family with one buffer or none, and noise alone.
#pragma once

#include <algorithm>

#include "ops/cpu/kernels.h"

namespace torch_ssam::cpu {

struct Update {
  math::Sgd rule;
  int64_t step = 0;
};

// `buffer` is null where the rule keeps none.
inline void update(const Kernels& kernels, int pair, const Update& how, Span span, void* weights, const void* grad,
                   void* buffer) {
  void* const buffers[] = {buffer};
  kernels.rules.of<math::Sgd>().update[pair](how.rule, how.step, span, weights, grad, buffers);
}

inline void update_and_perturb(const Kernels& kernels, int pair, const Update& how, const NoiseArgs& noise, Span span,
                               void* clean, const void* grad, void* buffer, void* perturbed) {
  void* const buffers[] = {buffer};
  kernels.rules.of<math::Sgd>().update_and_perturb[pair](how.rule, how.step, noise, span, clean, grad, buffers,
                                                         perturbed);
}

// Standard noise: what is added to zeros. No value is 0, so that the sum has its bits.
inline void fill_noise(const Kernels& kernels, const math::NoiseStream& stream, math::Distribution distribution,
                       Span span, float* values) {
  std::fill_n(values, span.count, 0.0F);
  kernels.perturb[static_cast<int>(DtypePair::f32)]({stream, distribution, 1.0}, span, values, nullptr, values);
}

}  // namespace torch_ssam::cpu
