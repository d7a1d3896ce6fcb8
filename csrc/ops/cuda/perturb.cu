// CUDA kernels of the operators in ../perturb.h. Bodies: perturb_body.h; launches: launch.h.
#include "launch.h"
#include "perturb_body.h"

namespace torch_ssam::cuda {
namespace {

void perturb_list(const PerturbArgs& args, const Tensor& generator, const std::vector<int64_t>& places, bool save,
                  const std::optional<Tensor>& found_inf) {
  check_scale(args.noise);
  check_whole(args.shards);
  if (args.params.empty()) return;
  const Launcher launcher(generator);
  const PerturbSettings settings{noise_settings(args.noise, generator), number_of(found_inf, 0.0)};
  for_each_pair(args.clean, args.params, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<2>({&args.params, &args.clean}, chosen, &places);
    with_types(pair, [&]<typename T>(T) {
      using master_t = typename T::master_t;
      using model_t = typename T::model_t;
      if (!save) {
        launcher.run_list<PerturbBody<master_t, model_t, false>::template With, kLanesOwned<model_t>>(tensors,
                                                                                                      settings);
      } else if constexpr (std::is_same_v<master_t, model_t>) {
        launcher.run_list<PerturbBody<master_t, model_t, true>::template With, kLanesOwned<model_t>>(tensors, settings);
      }
    });
  });
}

void perturb_cuda(std::vector<Tensor> params, std::vector<Tensor> clean, Tensor generator, std::vector<int64_t> places,
                  double noise_std, StringArgument distribution, int64_t sample, bool negate, int64_t draw_offset,
                  StringArgument scale, std::optional<std::vector<Tensor>> row_scales,
                  std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  perturb_list(check_perturb(params, clean, generator, places, noise, row_scales, shards, /*save=*/true), generator,
               places, true, {});
}

void perturb_from_clean_cuda(std::vector<Tensor> params, std::vector<Tensor> clean, Tensor generator,
                             std::vector<int64_t> places, double noise_std, StringArgument distribution, int64_t sample,
                             bool negate, int64_t draw_offset, std::optional<Tensor> found_inf, StringArgument scale,
                             std::optional<std::vector<Tensor>> row_scales,
                             std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  perturb_list(check_perturb(params, clean, generator, places, noise, row_scales, shards, /*save=*/false, found_inf),
               generator, places, false, found_inf);
}

Tensor perturbed_cuda(Tensor weights, Tensor generator, int64_t place, double noise_std, StringArgument distribution,
                      int64_t sample, bool negate, int64_t draw_offset, StringArgument scale,
                      std::optional<std::vector<Tensor>> row_scales, std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  Tensor output = torch::stable::empty_like(weights);
  const std::vector<int64_t> places{place};
  perturb_list(check_perturb({output}, {weights}, generator, places, noise, row_scales, shards, /*save=*/false),
               generator, places, false, {});
  return output;
}

void restore_cuda(std::vector<Tensor> params, std::vector<Tensor> clean) {
  const RestoreArgs args = check_restore(params, clean);
  if (params.empty()) return;
  const Launcher launcher(params[0]);
  for_each_pair(args.clean, args.params, [&](DtypePair, const std::vector<size_t>& chosen) {
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
