// What an optimizer, or WeightNoise, and the passes that it hands out share: the noise, and where in a step they are.
// It outlives either. Tests: tests/cpp/test_api_driving.cpp.
#pragma once

#include <torch_ssam/perturbation.h>

#include <cstdint>
#include <functional>
#include <string>

#include "noise/state.h"

namespace torch_ssam::detail {

struct Drive {
  explicit Drive(std::int64_t seed) : noise(seed) {}
  NoiseState noise;
  NoiseDriver* owner = nullptr;  // follows moves; null once it is gone, and for WeightNoise
  bool inside_pass = false;
  std::function<void()> completed;     // what the end of the open pass means to the optimizer, if anything
  bool fresh = false;                  // a gradient at perturbed weights since the last step
  bool pass_without_gradient = false;  // a pass since the last step has changed no gradient
  bool training = false;               // keep_perturbed, between train() and eval()
  bool pending = false;                // loaded clean weights wait to be written
  std::int64_t noted = 0;              // NoiseState::changes when the optimizer's state last named the clean weights
  std::string changed;                 // what a destructor could not throw
};

}  // namespace torch_ssam::detail
