// WeightNoise: puts noise on tensors and takes it off again, bit for bit: S-SAM's gradients for any other optimizer.
//   torch_ssam::WeightNoise noise(model->parameters(), torch_ssam::WeightNoiseOptions(0.01));
//   { auto perturbed = noise.applied(); loss(model).backward(); }
//   adam.step();
// Tests: tests/cpp/test_api_noise.cpp.
#pragma once

#include <torch/optim/optimizer.h>
#include <torch_ssam/noise/options.h>
#include <torch_ssam/perturbation.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace torch_ssam {

// noise_std, distribution, scale (but "fisher", which needs the gradients of an optimizer's steps), memory and seed.
class WeightNoiseOptions : public NoiseSetters<WeightNoiseOptions, NoiseOptions> {
 public:
  WeightNoiseOptions() = default;
  WeightNoiseOptions(double standard_deviation) { noise_std(standard_deviation); }
};

class WeightNoise {
 public:
  // A tensor named twice is perturbed once. One that does not require gradients counts for the place and stays clean.
  explicit WeightNoise(std::vector<at::Tensor> params, WeightNoiseOptions options = {});
  // Groups with their own WeightNoiseOptions; what these do not set, or all of a group without any, is `defaults`.
  explicit WeightNoise(const std::vector<torch::optim::OptimizerParamGroup>& groups, WeightNoiseOptions defaults = {});
  ~WeightNoise();
  WeightNoise(WeightNoise&&) noexcept;
  WeightNoise& operator=(WeightNoise&&) = delete;
  WeightNoise(const WeightNoise&) = delete;
  WeightNoise& operator=(const WeightNoise&) = delete;

  // While the result lives the tensors hold clean + noise (clean - noise with `negate`); then the next draw follows.
  Perturbation applied(std::int64_t sample = 0, bool negate = false, bool advance = true);

  // The noise that the next applied() would add to one of the tensors, in its dtype.
  at::Tensor noise(const at::Tensor& param, std::int64_t sample = 0);

  std::int64_t seed() const;
  std::int64_t draw() const;

  // Seed and draw; torch::save and torch::load work.
  void save(torch::serialize::OutputArchive& archive) const;
  void load(torch::serialize::InputArchive& archive);

 private:
  std::vector<torch::optim::OptimizerParamGroup> groups_;
  std::shared_ptr<detail::Drive> drive_;
};

torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive, const WeightNoise& noise);
torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, WeightNoise& noise);

}  // namespace torch_ssam
