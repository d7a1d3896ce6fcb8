// CUDA kernels of the operators in ../update.h. Bodies: update_body.h; launches: launch.h.
#include "../update.h"
#include "perturb_launch.h"
#include "update_body.h"

namespace torch_ssam::cuda {
namespace {

using math::Momentum;

template <typename math_t>
UpdateSettings<math_t> update_settings(const UpdateOptions& o, const UpdateTensors& t, Momentum momentum) {
  return {math::make_update_params<math_t>(0.0, o.momentum, o.dampening, o.weight_decay, o.maximize, o.first_step, 1.0),
          momentum,
          t.grad_scale.has_value(),
          number_of(t.lr_tensor, o.lr),
          number_of(t.grad_scale, 1.0),
          number_of(t.found_inf, 0.0)};
}

// With `generator`, the parameters get clean + noise in the same pass.
void update_list(const UpdateTensors& t, const UpdateOptions& options, const Tensor& on_device, const Tensor* generator,
                 const NoiseOptions& noise, const std::vector<int64_t>* places) {
  const Launcher launcher(on_device);
  const Momentum momentum = math::momentum_kind(!t.momentum_buffers.empty(), options.nesterov);
  const bool scaled = t.grad_scale.has_value();
  const bool by_element = noise.scale == math::Scale::element;
  for_each_pair(t.weights, t.grads, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    with_types(pair, [&]<typename T>(T) {
      using master_t = typename T::master_t;
      using model_t = typename T::model_t;
      const auto update = update_settings<math::opmath_t<master_t>>(options, t, momentum);
      const auto perturbed = [&]<typename Body>(Body) {
        const auto tensors = list_tensors<4>({&t.weights, &t.grads, &t.momentum_buffers, &t.params}, chosen, places);
        const UpdateAndPerturbSettings<math::opmath_t<master_t>> both{update, noise_settings(noise, *generator)};
        launcher.run_list<Body::template With, kUpdateLanes<model_t, true>>(tensors, both);
      };
      const auto run = [&]<Momentum kMomentum, bool kScaled>() {
        if (generator == nullptr) {
          const auto tensors = list_tensors<3>({&t.weights, &t.grads, &t.momentum_buffers}, chosen, nullptr);
          launcher.run_list<UpdateBody<kMomentum, kScaled, master_t, model_t, false>::template With,
                            kUpdateLanes<model_t, false>>(tensors, update);
        } else {
          perturbed(UpdateBody<kMomentum, kScaled, master_t, model_t, true>{});
        }
      };
      if (by_element) return perturbed(UpdateByElementBody<master_t, model_t>{});
      switch (momentum) {
        case Momentum::none:
          return scaled ? run.template operator()<Momentum::none, true>()
                        : run.template operator()<Momentum::none, false>();
        case Momentum::heavy_ball:
          return scaled ? run.template operator()<Momentum::heavy_ball, true>()
                        : run.template operator()<Momentum::heavy_ball, false>();
        default:
          return scaled ? run.template operator()<Momentum::nesterov, true>()
                        : run.template operator()<Momentum::nesterov, false>();
      }
    });
  });
}

void update_cuda(std::vector<Tensor> weights, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
                 double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                 bool first_step, std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale,
                 std::optional<Tensor> found_inf) {
  const UpdateOptions options =
      check_update_options(lr, momentum, dampening, weight_decay, nesterov, maximize, first_step);
  const UpdateTensors t =
      check_update(weights, grads, momentum_buffers, nullptr, options, lr_tensor, grad_scale, found_inf);
  if (!weights.empty()) update_list(t, options, weights[0], nullptr, {}, nullptr);
}

void update_and_perturb_cuda(std::vector<Tensor> params, std::vector<Tensor> clean, std::vector<Tensor> grads,
                             std::vector<Tensor> momentum_buffers, Tensor generator, std::vector<int64_t> places,
                             double lr, double momentum, double dampening, double weight_decay, bool nesterov,
                             bool maximize, bool first_step, double noise_std, StringArgument distribution,
                             int64_t sample, bool negate, int64_t draw_offset, std::optional<Tensor> lr_tensor,
                             std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, StringArgument scale,
                             std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_fused_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  const UpdateOptions options =
      check_update_options(lr, momentum, dampening, weight_decay, nesterov, maximize, first_step);
  const UpdateTensors t =
      check_update(clean, grads, momentum_buffers, &params, options, lr_tensor, grad_scale, found_inf);
  check_places(places, params.size());
  check_whole(check_shards(shards, t.params));
  check_generator(generator);
  check_one_device(params, "params", generator, "generator");
  if (params.empty()) return;
  if (noise_std == 0.0) {
    update_list(t, options, generator, nullptr, {}, nullptr);
    round_list(t.params, t.weights, generator, found_inf);
  } else {
    update_list(t, options, generator, &generator, noise, &places);
  }
}

// Three kernels, the middle one a block of threads. The norm and the decision to scale stay on the device.
void project_cuda(std::vector<Tensor> weights, double radius) {
  const TensorViews views = check_project(weights, radius);
  std::vector<int64_t> first(views.size());
  int64_t pieces = 0;
  for (size_t t = 0; t < views.size(); ++t) {
    first[t] = pieces;
    pieces += math::norm_pieces(views[t].numel);
  }
  if (pieces == 0) return;
  TORCH_SSAM_CHECK(pieces <= 0xffffffffLL, "project_ over ", pieces, " pieces of 4096 weights is beyond its counter.");
  const Launcher launcher(weights[0]);
  Tensor lanes = torch::stable::new_empty(weights[0], {pieces * math::kLanes}, ScalarType::Double);
  Tensor result = torch::stable::new_empty(
      weights[0], {static_cast<int64_t>(sizeof(math::Projection) / sizeof(double))}, ScalarType::Double);
  auto* sums = static_cast<double*>(lanes.data_ptr());
  auto* projection = static_cast<math::Projection*>(result.data_ptr());

  for_each_pair(views, views, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<1>({&views}, chosen, &first);
    with_types(pair, [&]<typename T>(T) {
      using scalar_t = typename T::master_t;
      launcher.run_list<SquaresFor<scalar_t>::template With, kVector<scalar_t>>(tensors, SquaresSettings{sums});
    });
  });
  launcher.run<ProjectionBody>({sums, pieces, radius, projection}, 1);
  for_each_pair(views, views, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<1>({&views}, chosen, nullptr);
    with_types(pair, [&]<typename T>(T) {
      using scalar_t = typename T::master_t;
      launcher.run_list<ScaleBody<scalar_t>::template With, kLanesOwned<scalar_t>>(tensors, ScaleSettings{projection});
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CUDA, m) {
  m.impl("update_", TORCH_BOX(&update_cuda));
  m.impl("update_and_perturb_", TORCH_BOX(&update_and_perturb_cuda));
  m.impl("project_", TORCH_BOX(&project_cuda));
}

// Sparse tensors reach the same checks, which say what to do instead.
STABLE_TORCH_LIBRARY_IMPL(torch_ssam, SparseCUDA, m) {
  m.impl("update_", TORCH_BOX(&update_cuda));
  m.impl("update_and_perturb_", TORCH_BOX(&update_and_perturb_cuda));
  m.impl("project_", TORCH_BOX(&project_cuda));
}

}  // namespace torch_ssam::cuda
