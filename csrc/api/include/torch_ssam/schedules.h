// Noise that sets itself: noise_std moves until noise changes a model's outputs by a target.
//   torch_ssam::AdaptiveNoiseStd schedule(opt, *model, torch_ssam::AdaptiveNoiseStdOptions(0.05));
//   opt.step();
//   schedule.step([&] { return model->forward(x); });
// Every `every` steps noise_std is multiplied by exp(rate clamp((target - change) / target, -1, 1)), change being what
// the noise of the next pass does to the outputs on a batch. As Python's schedules.AdaptiveNoiseStd, whose docstring
// says more; there ranks take their mean, here each process is by itself. Tests: tests/cpp/test_api_schedules.cpp.
#pragma once

#include <torch/arg.h>
#include <torch/nn/module.h>
#include <torch_ssam/optim/base.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace torch_ssam {

// target: of the change, above 0. measure: "kl", the mean over examples of KL(softmax(clean) | softmax(noisy)) in nats,
// classes in the last dimension, or "mse", the mean squared change over the variance of the clean outputs over the
// examples. every: steps between looks. rate: the most by which log noise_std moves at a look. max_noise_std: bound of
// the largest noise_std of all groups.
struct AdaptiveNoiseStdOptions {
  AdaptiveNoiseStdOptions(double target = 0.05) : target_(target) {}
  TORCH_ARG(double, target);
  TORCH_ARG(std::string, measure) = "kl";
  TORCH_ARG(std::int64_t, every) = 10;
  TORCH_ARG(double, rate) = 0.1;
  TORCH_ARG(double, max_noise_std) = 0.5;
};

class AdaptiveNoiseStd {
 public:
  // Both stay where they are, and outlive this. The model is what outputs() runs: its buffers (BatchNorm's statistics)
  // are put back after each run.
  AdaptiveNoiseStd(NoiseDriver& optimizer, torch::nn::Module& model, AdaptiveNoiseStdOptions options = {});

  // Counts a step, and every `every` steps, the first included, looks. Call it after opt.step(), outside of passes.
  // `outputs` is then called twice, without gradients, with the same random numbers; no draw of noise, random number or
  // buffer is used up. Outputs that are not finite lower the noise.
  void step(const std::function<at::Tensor()>& outputs);

  std::vector<double> get_last_noise_std() const;                            // of each group
  const std::optional<double>& last_change() const { return last_change_; }  // at the last look
  std::int64_t last_epoch() const { return last_epoch_; }                    // steps so far, less one

  // The count and the last change; noise_std is the optimizer's to save.
  void save(torch::serialize::OutputArchive& archive) const;
  void load(torch::serialize::InputArchive& archive);

 private:
  double largest() const;
  void look(const std::function<at::Tensor()>& outputs);

  NoiseDriver& optimizer_;
  torch::nn::Module& model_;
  AdaptiveNoiseStdOptions options_;
  std::int64_t last_epoch_ = -1;
  std::optional<double> last_change_;
};

torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive, const AdaptiveNoiseStd& schedule);
torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, AdaptiveNoiseStd& schedule);

}  // namespace torch_ssam
