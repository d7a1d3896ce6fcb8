// memory "regenerate": noise that is taken off again by drawing it a second time, with no copy of the weights.
// Each of the two additions rounds once: a weight w with noise n comes back within u (|w + n| + |w|), u = 2^-24 for
// Float and 2^-53 for Double. Tests: tests/cpp/test_api_driving.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "noise/members.h"
#include "operators.h"

namespace torch_ssam::detail {

// How noise was made, with a generator of its own that nobody moves.
struct Recipe {
  at::Tensor generator;
  ops::Noise noise;

  Recipe mirrored() const;  // the same noise with the other sign
};

// The recipe of a draw of the generator: the present one, or that `noise.draw_offset` draws on.
std::shared_ptr<const Recipe> recipe_of(const at::Tensor& generator, const ops::Noise& noise);

// Adds the noise in place.
void add(const Members& members, const Recipe& recipe);

// The clean weights of a perturbed tensor, as a new tensor.
at::Tensor without(const at::Tensor& param, std::int64_t place, const Recipe& recipe);

}  // namespace torch_ssam::detail
