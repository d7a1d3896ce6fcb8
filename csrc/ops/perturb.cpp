// Operators that put noise on weights and take it off again.
//   perturb_            saves the clean weights, then writes clean + noise into the parameters
//   perturb_from_clean_ writes clean + noise, from clean weights saved before (the next sample, or the next draw)
//   perturbed           clean + noise, or with noise_only the noise alone, as a new tensor
//   restore_            writes the clean weights back, bit for bit; float32 ones rounded to 16-bit parameters
//   follow_             clean weights of 16-bit parameters take what others wrote to these
//   advance_            moves the generator to a later draw
// What the noise is: noise.h. Tests: test_ops_perturb.py, test_ops_scale.py, test_ops_errors.py.
#include "operators.h"

namespace torch_ssam {
namespace {

// With `save` the parameters hold the clean weights and `clean` receives them; then the dtypes agree.
void perturb_list(const std::vector<Tensor>& params, const std::vector<Tensor>& clean, const Tensor& generator,
                  const std::vector<int64_t>& places, const SharedNoise& shared, const NoiseArguments& arguments,
                  bool save) {
  TensorViews param_views = view_parameters(params, "params", Use::writes);
  TensorViews clean_views = view_parameters(clean, "clean", save ? Use::writes : Use::reads);
  check_matches(clean_views, "clean", param_views, "params", /*any_dtype=*/!save);
  Noise noise = check_noise(shared, arguments, generator, places, param_views);
  check_one_device(params, "params", generator, "generator");
  check_one_device(clean, "clean", generator, "generator");
  check_pairs(clean_views, param_views, "parameters");
  if (params.empty()) return;
  backend_of(generator).perturb({std::move(param_views), std::move(clean_views), std::move(noise), save, generator});
}

#define TORCH_SSAM_ALL_NOISE(X) TORCH_SSAM_NOISE_ARGUMENTS(X, X, X)

void perturb_(const TensorList& params, const TensorList& clean, const Tensor& generator,
              const std::vector<int64_t>& places TORCH_SSAM_ALL_NOISE(TORCH_SSAM_PARAMETER)) {
  const NoiseArguments noise{TORCH_SSAM_ALL_NOISE(TORCH_SSAM_HOLD)};
  perturb_list(params, clean, generator, places, check_shared_noise(noise), noise, /*save=*/true);
}

void perturb_from_clean_(const TensorList& params, const TensorList& clean, const Tensor& generator,
                         const std::vector<int64_t>& places TORCH_SSAM_ALL_NOISE(TORCH_SSAM_PARAMETER)) {
  const NoiseArguments noise{TORCH_SSAM_ALL_NOISE(TORCH_SSAM_HOLD)};
  perturb_list(params, clean, generator, places, check_shared_noise(noise), noise, /*save=*/false);
}

Tensor perturbed(const Tensor& weights, const Tensor& generator,
                 int64_t place TORCH_SSAM_ALL_NOISE(TORCH_SSAM_PARAMETER), bool noise_only) {
  const NoiseArguments noise{TORCH_SSAM_ALL_NOISE(TORCH_SSAM_HOLD)};
  SharedNoise shared = check_shared_noise(noise);
  check_strided(weights, "weights");
  Tensor output = torch::stable::empty_like(weights);
  Tensor source = weights;
  if (noise_only && shared.scale == math::Scale::element) {
    shared.alone = true;
  } else if (noise_only) {
    source = torch::stable::empty_like(weights);
    torch::stable::zero_(source);
  }
  perturb_list({output}, {source}, generator, {place}, shared, noise, /*save=*/false);
  return output;
}

void restore_(const TensorList& params, const TensorList& clean) {
  TensorViews param_views = view_parameters(params, "params", Use::writes);
  TensorViews clean_views = view_parameters(clean, "clean", Use::reads);
  check_matches(clean_views, "clean", param_views, "params", /*any_dtype=*/true);
  if (params.empty()) return;
  check_one_device(params, "params", params[0], "params[0]");
  check_one_device(clean, "clean", params[0], "params[0]");
  check_pairs(clean_views, param_views, "parameters");
  backend_of(params[0]).restore({std::move(param_views), std::move(clean_views), params[0]});
}

void follow_(const TensorList& clean, const TensorList& params) {
  TensorViews clean_views = view_parameters(clean, "clean", Use::writes);
  TensorViews param_views = view_parameters(params, "params", Use::reads);
  check_matches(param_views, "params", clean_views, "clean", /*any_dtype=*/true);
  if (clean.empty()) return;
  check_one_device(clean, "clean", clean[0], "clean[0]");
  check_one_device(params, "params", clean[0], "clean[0]");
  check_pairs(clean_views, param_views, "parameters");
  backend_of(clean[0]).follow({std::move(clean_views), std::move(param_views), clean[0]});
}

void advance_(const Tensor& generator, int64_t draws) {
  view_generator(generator);
  backend_of(generator).advance({generator, draws});
}

}  // namespace

TORCH_SSAM_OPERATOR(perturb_,
                    "(Tensor(a!)[] params, Tensor(b!)[] clean, Tensor generator, int[] places" TORCH_SSAM_ALL_NOISE(
                        TORCH_SSAM_SCHEMA) ") -> ()");
TORCH_SSAM_OPERATOR(perturb_from_clean_,
                    "(Tensor(a!)[] params, Tensor[] clean, Tensor generator, int[] places" TORCH_SSAM_ALL_NOISE(
                        TORCH_SSAM_SCHEMA) ") -> ()");
TORCH_SSAM_OPERATOR(perturbed, "(Tensor weights, Tensor generator, int place" TORCH_SSAM_ALL_NOISE(
                                   TORCH_SSAM_SCHEMA) ", bool noise_only=False) -> Tensor");
TORCH_SSAM_OPERATOR(restore_, "(Tensor(a!)[] params, Tensor[] clean) -> ()");
TORCH_SSAM_OPERATOR(follow_, "(Tensor(a!)[] clean, Tensor[] params) -> ()");
TORCH_SSAM_OPERATOR(advance_, "(Tensor(a!) generator, int draws) -> ()");

}  // namespace torch_ssam
