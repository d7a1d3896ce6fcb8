// Dispatcher handles of the operators, each found at its first call; arguments follow the schemas in csrc/ops.
#include "operators.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <new>
#include <optional>
#include <type_traits>

namespace torch_ssam::ops {
namespace {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

c10::OperatorHandle find(const char* name) {
  const auto handle = c10::Dispatcher::singleton().findSchema({name, ""});
  TORCH_CHECK(handle.has_value(), "torch_ssam: the operator ", name,
              " is not registered: libtorch_ssam.so is not loaded. Link the CMake target torch_ssam::torch_ssam, or "
              "pass -Wl,--no-as-needed before the library, which the linker drops otherwise.");
  return *handle;
}

template <std::size_t kSize>
struct Name {
  constexpr Name(const char (&text)[kSize]) { std::copy_n(text, kSize, value); }
  char value[kSize];
};

// How the dispatcher takes an argument.
template <typename T>
using Argument = std::conditional_t<std::is_same_v<T, Tensor> || std::is_same_v<T, OptionalTensor>, const T&, T>;

// Calls an operator with arguments whose types are those of its schema; below autograd, and with what the operator
// throws as c10::Error.
template <Name kName, typename Return = void, typename... Args>
Return call(const Args&... args) {
  static const auto op = find(kName.value).template typed<Return(Argument<Args>...)>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  try {
    return op.call(args...);
  } catch (const c10::Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    C10_THROW_ERROR(ValueError, error.what());
  }
}

OptionalTensor optional(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

constexpr std::string_view kGaussian = "gaussian";

// As the dispatcher takes what ops::Noise holds.
double given(double value) { return value; }
std::int64_t given(std::int64_t value) { return value; }
bool given(bool value) { return value; }
std::string_view given(const std::string& value) { return value; }
std::optional<TensorList> given(const held::Tensors& values) {
  return values ? std::optional<TensorList>(*values) : std::nullopt;
}
at::OptionalIntArrayRef given(const held::Wholes& values) {
  return values ? at::OptionalIntArrayRef(*values) : at::OptionalIntArrayRef();
}

// What follows the places in the operators that perturb, and in those that update besides (csrc/ops/arguments.h).
#define TORCH_SSAM_GIVEN(type, name, standard, schema) , given(noise.name)
#define TORCH_SSAM_GIVEN_NOISE TORCH_SSAM_NOISE_ARGUMENTS(TORCH_SSAM_GIVEN, TORCH_SSAM_GIVEN, TORCH_SSAM_GIVEN)
#define TORCH_SSAM_GIVEN_NEXT_NOISE TORCH_SSAM_NOISE_ARGUMENTS(TORCH_SSAM_GIVEN, TORCH_SSAM_NOT_TAKEN, TORCH_SSAM_GIVEN)

const OptionalTensor kNoLr = std::nullopt;
const OptionalTensor kNoNorm = std::nullopt;

at::OptionalIntArrayRef steps_of(const Update& update) {
  return update.steps.empty() ? at::OptionalIntArrayRef() : at::OptionalIntArrayRef(update.steps);
}

}  // namespace

Tensor empty_like(const Tensor& tensor) { return empty_like(tensor, tensor.scalar_type()); }

Tensor empty_like(const Tensor& tensor, at::ScalarType dtype) {
  const c10::InferenceMode normal(false);
  return at::empty_like(tensor, at::TensorOptions().dtype(dtype).requires_grad(false));
}

Tensor zeros_of_rows(const Tensor& tensor, std::int64_t rows) {
  const c10::InferenceMode normal(false);
  return at::zeros({rows}, tensor.options().dtype(at::kFloat).requires_grad(false));
}

void perturb_(TensorList params, TensorList clean, const Tensor& generator, at::IntArrayRef places,
              const Noise& noise) {
  call<"torch_ssam::perturb_">(params, clean, generator, places TORCH_SSAM_GIVEN_NOISE);
}

void perturb_from_clean_(TensorList params, TensorList clean, const Tensor& generator, at::IntArrayRef places,
                         const Noise& noise) {
  call<"torch_ssam::perturb_from_clean_">(params, clean, generator, places TORCH_SSAM_GIVEN_NOISE);
}

Tensor perturbed(const Tensor& weights, const Tensor& generator, std::int64_t place, const Noise& noise,
                 bool noise_only) {
  return call<"torch_ssam::perturbed", Tensor>(weights, generator, place TORCH_SSAM_GIVEN_NOISE, noise_only);
}

void restore_(TensorList params, TensorList clean) { call<"torch_ssam::restore_">(params, clean); }

void follow_(TensorList clean, TensorList params) { call<"torch_ssam::follow_">(clean, params); }

void advance_(const Tensor& generator, std::int64_t draws) { call<"torch_ssam::advance_">(generator, draws); }

void update_(TensorList weights, TensorList grads, TensorList buffers, const Update& update) {
  call<"torch_ssam::update_">(weights, grads, buffers, update.rule, at::ArrayRef<double>(update.numbers), kNoLr,
                              steps_of(update));
}

void update_and_perturb_(TensorList params, TensorList clean, TensorList grads, TensorList buffers,
                         const Tensor& generator, at::IntArrayRef places, const Update& update, const Noise& noise) {
  call<"torch_ssam::update_and_perturb_">(params, clean, grads, buffers, update.rule,
                                          at::ArrayRef<double>(update.numbers), generator,
                                          places TORCH_SSAM_GIVEN_NEXT_NOISE, kNoLr, steps_of(update));
}

void project_(TensorList weights, double radius) { call<"torch_ssam::project_">(weights, radius, kNoNorm); }

void row_scales_(TensorList row_scales, TensorList weights, TensorList fisher, double fisher_factor,
                 std::string_view kind) {
  call<"torch_ssam::row_scales_">(row_scales, weights, fisher, fisher_factor, kind);
}

void clip_rows_(TensorList weights, double weight_clip) { call<"torch_ssam::clip_rows_">(weights, weight_clip); }

void row_fisher_(TensorList fisher, TensorList grads, double decay) {
  call<"torch_ssam::row_fisher_">(fisher, grads, decay);
}

Tensor diagonal(const Tensor& input, const Tensor& weight, const Tensor& generator, double noise_std, bool readout) {
  return call<"torch_ssam::diagonal", Tensor>(input, weight, optional(generator), noise_std, kGaussian, readout);
}

std::tuple<Tensor, Tensor> diagonal_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                             const Tensor& generator, double noise_std, bool readout, bool needs_input,
                                             bool needs_weight) {
  return call<"torch_ssam::diagonal_backward", std::tuple<Tensor, Tensor>>(
      grad_output, input, weight, optional(generator), noise_std, kGaussian, readout, needs_input, needs_weight);
}

}  // namespace torch_ssam::ops
