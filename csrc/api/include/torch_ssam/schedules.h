// Noise that sets itself: noise_std moves until noise changes a model's outputs by a target.
//   torch_ssam::AdaptiveNoiseStd schedule(opt, *model, torch_ssam::AdaptiveNoiseStdOptions(0.05));
//   opt.step();
//   schedule.step([&] { return model->forward(x); });
// Every `every` steps noise_std is multiplied by exp(rate clamp((target - change) / target, -1, 1)), change being what
// the noise of the next pass does to the outputs on a batch. As Python's schedules.AdaptiveNoiseStd, whose docstring
// says more. Ranks take their mean by a function that is given: LibTorch has no default process group as Python has.
// Tests: tests/cpp/test_api_schedules.cpp, tests/python/test_cpp_parity.py.
#pragma once

#include <ATen/core/ivalue.h>
#include <torch/arg.h>
#include <torch/nn/module.h>
#include <torch_ssam/optim/base.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace torch_ssam {

// What the outputs at the clean and at the noisy weights differ by: "kl", the mean over examples of
// KL(softmax(clean) | softmax(noisy)) in nats, classes in the last dimension; "mse", the mean squared change over the
// variance of the clean outputs over the examples; or a function of (clean, noisy) that gives one number, larger where
// noise changes more, as a double or as a tensor of one element.
using OutputChange = std::variant<std::string, std::function<double(const at::Tensor& clean, const at::Tensor& noisy)>,
                                  std::function<at::Tensor(const at::Tensor& clean, const at::Tensor& noisy)>>;

// The mean over ranks of a number that each of them has, on every one of them; NaN on one rank is NaN on all.
using MeanOverRanks = std::function<double(double)>;

// That of a process group: anything with c10d's allreduce() and getSize(), a c10d::Backend or a
// c10d::ProcessGroup. A template, so that programs without torch.distributed need none of it. `device` is one that the
// group's backend takes tensors of.
template <typename Group>
MeanOverRanks mean_over(c10::intrusive_ptr<Group> group, at::Device device = at::kCPU) {
  TORCH_CHECK_VALUE(group.defined(), "torch_ssam: mean_over() got no process group; expected one that is initialised.");
  return [group = std::move(group), device](double value) {
    const at::Tensor wide = at::full({}, value, at::TensorOptions(at::kDouble));
    std::vector<at::Tensor> sum{device.is_mps() ? wide.to(at::kFloat).to(device) : wide.to(device)};
    group->allreduce(sum)->wait();
    return sum[0].template item<double>() / static_cast<double>(group->getSize());
  };
}

// target: of the change, above 0. measure: of the change. every: steps between looks. rate: the most by which log
// noise_std moves at a look. max_noise_std: bound of the largest noise_std of all groups. mean_over_ranks: what brings
// the changes of several processes together, mean_over(group) or a function of one's own; none for one process.
struct AdaptiveNoiseStdOptions {
  AdaptiveNoiseStdOptions(double target = 0.05) : target_(target) {}
  TORCH_ARG(double, target);
  TORCH_ARG(OutputChange, measure) = "kl";
  TORCH_ARG(std::int64_t, every) = 10;
  TORCH_ARG(double, rate) = 0.1;
  TORCH_ARG(double, max_noise_std) = 0.5;
  TORCH_ARG(MeanOverRanks, mean_over_ranks) = nullptr;
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

  // As Python's schedules.AdaptiveNoiseStd has them, for write_pickle and read_pickle: the options, the count and the
  // last change. Functions are not saved. What does not fit throws, and changes nothing.
  c10::IValue state_dict() const;
  void load_state_dict(const c10::IValue& state_dict);

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
