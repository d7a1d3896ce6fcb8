// Dispatcher handles of the operators, each found at its first call; signatures follow the schemas in csrc/ops.
#include "operators.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>

#include <new>
#include <optional>
#include <string_view>

namespace torch_ssam::ops {
namespace {

using at::Tensor;
using at::TensorList;

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  const auto handle = c10::Dispatcher::singleton().findSchema({name, ""});
  TORCH_CHECK(handle.has_value(), "torch_ssam: the operator ", name,
              " is not registered: libtorch_ssam.so is not loaded. Link the CMake target torch_ssam::torch_ssam, or "
              "pass -Wl,--no-as-needed before the library, which the linker drops otherwise.");
  return handle->typed<Signature>();
}

// Calls below autograd, and turns what the operators throw into c10::Error.
template <typename Call>
auto checked(const Call& call) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  try {
    return call();
  } catch (const c10::Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    C10_THROW_ERROR(ValueError, error.what());
  }
}

std::optional<Tensor> optional(const Tensor& tensor) {
  return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt;
}

std::optional<TensorList> row_scales_of(const Noise& noise) {
  return noise.scale == "rows" ? std::optional<TensorList>(noise.row_scales) : std::nullopt;
}

const std::optional<Tensor> kNone = std::nullopt;

}  // namespace

Tensor empty_like(const Tensor& tensor) {
  const c10::InferenceMode normal(false);
  return at::empty_like(tensor, at::TensorOptions().requires_grad(false));
}

Tensor zeros_of_rows(const Tensor& tensor, std::int64_t rows) {
  const c10::InferenceMode normal(false);
  return at::zeros({rows}, tensor.options().dtype(at::kFloat).requires_grad(false));
}

void perturb_(TensorList params, TensorList clean, const Tensor& generator, at::IntArrayRef places,
              const Noise& noise) {
  static const auto op =
      find<void(TensorList, TensorList, const Tensor&, at::IntArrayRef, double, std::string_view, std::int64_t, bool,
                std::int64_t, std::string_view, std::optional<TensorList>, at::OptionalIntArrayRef)>(
          "torch_ssam::perturb_");
  checked([&] {
    op.call(params, clean, generator, places, noise.noise_std, noise.distribution, noise.sample, noise.negate,
            noise.draw_offset, noise.scale, row_scales_of(noise), std::nullopt);
  });
}

void perturb_from_clean_(TensorList params, TensorList clean, const Tensor& generator, at::IntArrayRef places,
                         const Noise& noise) {
  static const auto op =
      find<void(TensorList, TensorList, const Tensor&, at::IntArrayRef, double, std::string_view, std::int64_t, bool,
                std::int64_t, const std::optional<Tensor>&, std::string_view, std::optional<TensorList>,
                at::OptionalIntArrayRef)>("torch_ssam::perturb_from_clean_");
  checked([&] {
    op.call(params, clean, generator, places, noise.noise_std, noise.distribution, noise.sample, noise.negate,
            noise.draw_offset, kNone, noise.scale, row_scales_of(noise), std::nullopt);
  });
}

Tensor perturbed(const Tensor& weights, const Tensor& generator, std::int64_t place, const Noise& noise,
                 bool noise_only) {
  static const auto op =
      find<Tensor(const Tensor&, const Tensor&, std::int64_t, double, std::string_view, std::int64_t, bool,
                  std::int64_t, std::string_view, std::optional<TensorList>, at::OptionalIntArrayRef, bool)>(
          "torch_ssam::perturbed");
  return checked([&] {
    return op.call(weights, generator, place, noise.noise_std, noise.distribution, noise.sample, noise.negate,
                   noise.draw_offset, noise.scale, row_scales_of(noise), std::nullopt, noise_only);
  });
}

void restore_(TensorList params, TensorList clean) {
  static const auto op = find<void(TensorList, TensorList)>("torch_ssam::restore_");
  checked([&] { op.call(params, clean); });
}

void advance_(const Tensor& generator, std::int64_t draws) {
  static const auto op = find<void(const Tensor&, std::int64_t, const std::optional<Tensor>&)>("torch_ssam::advance_");
  checked([&] { op.call(generator, draws, kNone); });
}

void update_(TensorList weights, TensorList grads, TensorList momentum_buffers, const Update& update) {
  static const auto op =
      find<void(TensorList, TensorList, TensorList, double, double, double, double, bool, bool, bool,
                const std::optional<Tensor>&, const std::optional<Tensor>&, const std::optional<Tensor>&)>(
          "torch_ssam::update_");
  checked([&] {
    op.call(weights, grads, momentum_buffers, update.lr, update.momentum, update.dampening, update.weight_decay,
            update.nesterov, update.maximize, update.first_step, kNone, kNone, kNone);
  });
}

void update_and_perturb_(TensorList params, TensorList clean, TensorList grads, TensorList momentum_buffers,
                         const Tensor& generator, at::IntArrayRef places, const Update& update, const Noise& noise) {
  static const auto op =
      find<void(TensorList, TensorList, TensorList, TensorList, const Tensor&, at::IntArrayRef, double, double, double,
                double, bool, bool, bool, double, std::string_view, std::int64_t, bool, std::int64_t,
                const std::optional<Tensor>&, const std::optional<Tensor>&, const std::optional<Tensor>&,
                std::string_view, at::OptionalIntArrayRef)>("torch_ssam::update_and_perturb_");
  checked([&] {
    op.call(params, clean, grads, momentum_buffers, generator, places, update.lr, update.momentum, update.dampening,
            update.weight_decay, update.nesterov, update.maximize, update.first_step, noise.noise_std,
            noise.distribution, noise.sample, noise.negate, noise.draw_offset, kNone, kNone, kNone, noise.scale,
            std::nullopt);
  });
}

void project_(TensorList weights, double radius) {
  static const auto op = find<void(TensorList, double)>("torch_ssam::project_");
  checked([&] { op.call(weights, radius); });
}

void row_scales_(TensorList row_scales, TensorList weights, TensorList fisher, double fisher_factor) {
  static const auto op = find<void(TensorList, TensorList, TensorList, double)>("torch_ssam::row_scales_");
  checked([&] { op.call(row_scales, weights, fisher, fisher_factor); });
}

void row_fisher_(TensorList fisher, TensorList grads, double decay) {
  static const auto op = find<void(TensorList, TensorList, double)>("torch_ssam::row_fisher_");
  checked([&] { op.call(fisher, grads, decay); });
}

Tensor diagonal(const Tensor& input, const Tensor& weight, const Tensor& generator, double noise_std, bool readout) {
  static const auto op =
      find<Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, double, std::string_view, bool)>(
          "torch_ssam::diagonal");
  return checked([&] { return op.call(input, weight, optional(generator), noise_std, "gaussian", readout); });
}

std::tuple<Tensor, Tensor> diagonal_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                             const Tensor& generator, double noise_std, bool readout, bool needs_input,
                                             bool needs_weight) {
  static const auto op =
      find<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double,
                                      std::string_view, bool, bool, bool)>("torch_ssam::diagonal_backward");
  return checked([&] {
    return op.call(grad_output, input, weight, optional(generator), noise_std, "gaussian", readout, needs_input,
                   needs_weight);
  });
}

}  // namespace torch_ssam::ops
