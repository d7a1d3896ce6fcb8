// See weight_noise.h; as Python's noise/weight_noise.py.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/serialize/archive.h>
#include <torch_ssam/weight_noise.h>

#include "checks.h"
#include "noise/options.h"
#include "noise/parameters.h"
#include "noise/scope.h"
#include "noise/seeds.h"
#include "pickled.h"

namespace torch_ssam {

using torch::optim::OptimizerParamGroup;

namespace {

const WeightNoiseOptions& options_of(const OptimizerParamGroup& group) {
  return static_cast<const WeightNoiseOptions&>(group.options());
}

}  // namespace

WeightNoise::WeightNoise(std::vector<at::Tensor> params, WeightNoiseOptions options)
    : WeightNoise({OptimizerParamGroup(std::move(params))}, std::move(options)) {}

WeightNoise::WeightNoise(const std::vector<OptimizerParamGroup>& groups, WeightNoiseOptions defaults) {
  drive_ = std::make_shared<detail::Drive>(detail::resolve_seed(defaults.seed()));
  std::size_t count = 0;
  for (const OptimizerParamGroup& group : groups) {
    auto options = std::make_unique<WeightNoiseOptions>(defaults);
    if (group.has_options()) {
      const auto* given = dynamic_cast<const WeightNoiseOptions*>(&group.options());
      TORCH_CHECK(given != nullptr,
                  "torch_ssam: the options of a group are of an optimizer; expected "
                  "std::make_unique<torch_ssam::WeightNoiseOptions>(...), or none.");
      detail::check_group_seed(given->seed(), seed());
      *options = *given;
      options->inherit(defaults);
    }
    detail::check_noise(*options);
    TORCH_CHECK_VALUE(options->scale() != "fisher",
                      "torch_ssam: scale is 'fisher', which WeightNoise has no gradients for; expected 'isotropic', "
                      "'tensor', 'filter', 'element', 'absmax' or 'tensor_absmax'. Use SSAM, whose steps see them.");
    groups_.emplace_back(detail::check_params(group.params(), groups_), std::move(options));
    if (options_of(groups_.back()).memory() == detail::kRegenerate) {
      detail::check_regenerated(groups_.back().params());
    }
    for (const at::Tensor& p : groups_.back().params()) {
      detail::check_channel_dim(p, count++, options_of(groups_.back()).channel_dim());
    }
  }
  TORCH_CHECK_VALUE(count > 0, "torch_ssam: WeightNoise got an empty list of tensors; expected at least one.");
}

WeightNoise::~WeightNoise() = default;
WeightNoise::WeightNoise(WeightNoise&&) noexcept = default;

Perturbation WeightNoise::applied(std::int64_t sample, bool negate, bool advance) {
  detail::check_count("sample", sample, 0, 0xffffffffLL);
  TORCH_CHECK(!drive_->inside_pass,
              "torch_ssam: applied() inside applied(): the tensors are perturbed already. Leave the first one.");
  if (!drive_->changed.empty()) detail::throw_changed(std::exchange(drive_->changed, {}));
  Perturbation pass(drive_, advance);
  const std::vector<detail::Members>& placed = drive_->noise.placed(groups_);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (options_of(groups_[g]).noise_std() == 0) continue;
    drive_->noise.apply(placed[g].trainable(), detail::noise_of(options_of(groups_[g]), sample, negate));
  }
  return pass;
}

at::Tensor WeightNoise::noise(const at::Tensor& param, std::int64_t sample) {
  detail::check_count("sample", sample, 0, 0xffffffffLL);
  const std::vector<detail::Members>& placed = drive_->noise.placed(groups_);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const detail::Members found = placed[g].where([&](const at::Tensor& p) { return p.is_same(param); });
    if (found.empty()) continue;
    return drive_->noise.noise_of(param, found.places[0], detail::noise_of(options_of(groups_[g]), sample));
  }
  C10_THROW_ERROR(ValueError, "torch_ssam: noise() got a tensor that is not one of those given at construction.");
}

std::int64_t WeightNoise::seed() const { return drive_->noise.generator.seed(); }
std::int64_t WeightNoise::draw() const { return drive_->noise.generator.draw(); }

void WeightNoise::save(torch::serialize::OutputArchive& archive) const {
  archive.write("seed", c10::IValue(seed()));
  archive.write("draw", c10::IValue(draw()));
}

void WeightNoise::load(torch::serialize::InputArchive& archive) {
  c10::IValue seed, draw;
  archive.read("seed", seed);
  archive.read("draw", draw);
  drive_->noise.generator.set(detail::as_int(seed, "seed"), detail::as_draw(draw));
}

torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive, const WeightNoise& noise) {
  noise.save(archive);
  return archive;
}

torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, WeightNoise& noise) {
  noise.load(archive);
  return archive;
}

}  // namespace torch_ssam
