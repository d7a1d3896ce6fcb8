// Noise on the tensors of parameter groups: put on, kept, and taken off so that the exact clean bits are back.
// The optimizers and WeightNoise are fronts over one NoiseState, as in Python's noise/state.py, whose order of operator
// calls this follows, so that the bits agree. generator.h has seed and draw, scales.h the scales, weights.h the clean
// weights. Tests: tests/cpp/test_api_noise.cpp, tests/python/test_cpp_parity.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "noise/generator.h"
#include "noise/scales.h"
#include "noise/size.h"
#include "noise/weights.h"

namespace torch_ssam::detail {

class NoiseState : public SavedWeights {
 public:
  explicit NoiseState(std::int64_t seed) : generator(seed) {}

  // Puts noise on these tensors: clean ones are saved first, perturbed ones are written anew from their clean weights.
  void apply(const Members& members, const GroupNoise& group);
  void apply_from_clean(const Members& members, const GroupNoise& group);
  // Warns where the noise is large beside the weights: size.h.
  void look_at_size(const Members& members, const GroupNoise& group);
  // The noise that the clean weights of a tensor would get now, in its dtype.
  at::Tensor noise_of(const at::Tensor& param, std::int64_t place, const GroupNoise& group);

  Generator generator;
  Scales scales;

 protected:
  void keep_only(const Keys& keys) override;

 private:
  void perturb(const Members& members, const GroupNoise& group);
  void save_and_perturb(const Members& members, const GroupNoise& group);
  void perturb_masters(const Members& members, const GroupNoise& group);
  void perturb_in_place(const Members& members, const ops::Noise& noise);

  NoiseSize size_;
};

}  // namespace torch_ssam::detail
