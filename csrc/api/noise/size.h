// Isotropic noise that is large beside the weights it is put on: said once, with the tensor's place, before it drowns
// them. The weights are looked at in a group's first pass and again where its noise_std has doubled; else a comparison
// of two numbers is all. As noise/size.py in Python. Tests: tests/cpp/test_api_noise.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "noise/scales.h"

namespace torch_ssam::detail {

class NoiseSize {
 public:
  // Warns of tensors of two or more dimensions, not all zero, whose noise is above half of their RMS weight.
  void look(const Members& members, const GroupNoise& group,
            const std::function<at::Tensor(const at::Tensor&)>& clean_of);

 private:
  std::unordered_map<std::int64_t, double> limits_;  // by a group's first place: looked at up to this noise_std
};

}  // namespace torch_ssam::detail
