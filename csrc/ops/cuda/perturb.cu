// CUDA kernels of the operators in ../perturb.h. Bodies: perturb_body.h; launches: launch.h.
#include "perturb_launch.h"

namespace torch_ssam::cuda {

namespace {

// params <- clean, rounded, of the tensors that have one pair of dtypes.
void round_chosen(const Launcher& launcher, const TensorViews& params, const TensorViews& clean, DtypePair pair,
                  const std::vector<size_t>& chosen, const RoundSettings& settings) {
  const auto tensors = list_tensors<2>({&params, &clean}, chosen, nullptr);
  with_types(pair, [&]<typename T>(T) {
    using master_t = typename T::master_t;
    using model_t = typename T::model_t;
    launcher.run_list<RoundBody<master_t, model_t>::template With, kLanesOwned<model_t>>(tensors, settings);
  });
}

}  // namespace

void round_list(const TensorViews& params, const TensorViews& clean, const Tensor& on_device,
                const std::optional<Tensor>& found_inf) {
  const Launcher launcher(on_device);
  for_each_pair(clean, params, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    round_chosen(launcher, params, clean, pair, chosen, {number_of(found_inf, 0.0)});
  });
}

namespace {

void perturb_list(const PerturbCall& call) {
  check_whole(call.args.shards);
  if (call.args.params.empty()) return;
  switch (call.args.noise.scale) {
    case math::Scale::isotropic:
      return launch_perturb<math::Scale::isotropic>(call);
    case math::Scale::rows:
      return launch_perturb<math::Scale::rows>(call);
    default:
      return launch_perturb<math::Scale::element>(call);
  }
}

void perturb_cuda(std::vector<Tensor> params, std::vector<Tensor> clean, Tensor generator, std::vector<int64_t> places,
                  double noise_std, StringArgument distribution, int64_t sample, bool negate, int64_t draw_offset,
                  StringArgument scale, std::optional<std::vector<Tensor>> row_scales,
                  std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  const PerturbArgs args = check_perturb(params, clean, generator, places, noise, row_scales, shards, /*save=*/true);
  perturb_list({args, generator, places, /*save=*/true, /*noise_only=*/false, {}});
}

void perturb_from_clean_cuda(std::vector<Tensor> params, std::vector<Tensor> clean, Tensor generator,
                             std::vector<int64_t> places, double noise_std, StringArgument distribution, int64_t sample,
                             bool negate, int64_t draw_offset, std::optional<Tensor> found_inf, StringArgument scale,
                             std::optional<std::vector<Tensor>> row_scales,
                             std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  const PerturbArgs args =
      check_perturb(params, clean, generator, places, noise, row_scales, shards, /*save=*/false, found_inf);
  perturb_list({args, generator, places, /*save=*/false, /*noise_only=*/false, found_inf});
}

Tensor perturbed_cuda(Tensor weights, Tensor generator, int64_t place, double noise_std, StringArgument distribution,
                      int64_t sample, bool negate, int64_t draw_offset, StringArgument scale,
                      std::optional<std::vector<Tensor>> row_scales, std::optional<std::vector<int64_t>> shards,
                      bool noise_only) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  check_strided(weights, "weights");
  Tensor output = torch::stable::empty_like(weights);
  const std::vector<int64_t> places{place};
  const Tensor source = noise_only ? source_of_noise(weights, noise.scale) : weights;
  const PerturbArgs args =
      check_perturb({output}, {source}, generator, places, noise, row_scales, shards, /*save=*/false);
  perturb_list({args, generator, places, /*save=*/false, noise_only, {}});
  return output;
}

void restore_cuda(std::vector<Tensor> params, std::vector<Tensor> clean) {
  const RestoreArgs args = check_restore(params, clean);
  if (params.empty()) return;
  const Launcher launcher(params[0]);
  for_each_pair(args.clean, args.params, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    if (args.clean[chosen[0]].dtype != args.params[chosen[0]].dtype) {
      return round_chosen(launcher, args.params, args.clean, pair, chosen, {});
    }
    const auto tensors = list_tensors<2>({&args.params, &args.clean}, chosen, nullptr);
    const RestoreSettings settings{};
    switch (bytes_of(args.params[chosen[0]].dtype)) {
      case 8:
        return launcher.run_list<RestoreBody<uint64_t>::With, kLanesOwned<uint64_t>>(tensors, settings);
      case 4:
        return launcher.run_list<RestoreBody<uint32_t>::With, kLanesOwned<uint32_t>>(tensors, settings);
      default:
        return launcher.run_list<RestoreBody<uint16_t>::With, kLanesOwned<uint16_t>>(tensors, settings);
    }
  });
}

void advance_cuda(Tensor generator, int64_t draws, std::optional<Tensor> found_inf) {
  check_advance(generator, found_inf);
  const Launcher launcher(generator);
  launcher.run<AdvanceBody>({static_cast<int64_t*>(generator.data_ptr()), draws, number_of(found_inf, 0.0)}, 1);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CUDA, m) {
  m.impl("perturb_", TORCH_BOX(&perturb_cuda));
  m.impl("perturb_from_clean_", TORCH_BOX(&perturb_from_clean_cuda));
  m.impl("perturbed", TORCH_BOX(&perturbed_cuda));
  m.impl("restore_", TORCH_BOX(&restore_cuda));
  m.impl("advance_", TORCH_BOX(&advance_cuda));
}

// Sparse tensors reach the same checks, which say what to do instead.
STABLE_TORCH_LIBRARY_IMPL(torch_ssam, SparseCUDA, m) {
  m.impl("perturb_", TORCH_BOX(&perturb_cuda));
  m.impl("perturb_from_clean_", TORCH_BOX(&perturb_from_clean_cuda));
  m.impl("restore_", TORCH_BOX(&restore_cuda));
}

}  // namespace torch_ssam::cuda
