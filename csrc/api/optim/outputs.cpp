// The outputs of a model at its clean weights and at those of the next pass, whose draw is not used up: what schedules
// look at. Python's twin is optim/outputs.py. Tests: tests/cpp/test_api_schedules.cpp.
#include <ATen/core/grad_mode.h>
#include <torch_ssam/optim/base.h>

#include <utility>

#include "noise/scope.h"

namespace torch_ssam {

std::pair<at::Tensor, at::Tensor> NoiseDriver::clean_and_noisy(const std::function<at::Tensor()>& outputs) {
  TORCH_CHECK(
      !drive_->inside_pass,
      "torch_ssam: outputs are compared inside perturb(): leave the pass first, so that there are clean weights "
      "to compare with.");
  report_changed();
  settle();
  const at::NoGradGuard no_grad;
  if (!drive_->training) {
    at::Tensor clean = outputs();
    Perturbation pass(drive_, /*advances=*/false);
    apply_noise(0, false);
    at::Tensor noisy = outputs();
    pass.restore();
    return {std::move(clean), std::move(noisy)};
  }
  at::Tensor noisy = outputs(), clean;
  eval();
  try {
    clean = outputs();
  } catch (...) {
    train();
    throw;
  }
  train();
  return {std::move(clean), std::move(noisy)};
}

}  // namespace torch_ssam
