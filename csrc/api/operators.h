// The operators of csrc/ops as C++ functions, looked up once in the dispatcher: the route that Python takes too.
// They run below autograd. What an operator refuses arrives as c10::Error with the operator's own message.
#pragma once

#include <ATen/core/Tensor.h>
#include <ops/arguments.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace torch_ssam::ops {

// The types of csrc/ops/arguments.h.
namespace held {
using Number = double;
using Whole = std::int64_t;
using Flag = bool;
using Text = std::string;
using Tensors = std::optional<std::vector<at::Tensor>>;
using Wholes = std::optional<std::vector<std::int64_t>>;
}  // namespace held

// What the operators are told of noise; scale is "isotropic", "element", or "rows" with row_scales.
struct Noise {
#define TORCH_SSAM_HELD(type, name, standard, schema) held::type name = {standard};
  TORCH_SSAM_NOISE_ARGUMENTS(TORCH_SSAM_HELD, TORCH_SSAM_HELD, TORCH_SSAM_HELD)
#undef TORCH_SSAM_HELD
};

// How weights are updated: a rule of csrc/math/rules, by name, and its numbers in the order that it lists them.
struct Update {
  std::string_view rule;
  std::vector<double> numbers;
  std::vector<std::int64_t> steps = {};  // which update each tensor is at, from 1; or empty where no rule asks
};

// A buffer of the tensor's kind, or of another dtype, that outlives an InferenceMode around us.
at::Tensor empty_like(const at::Tensor& tensor);
at::Tensor empty_like(const at::Tensor& tensor, at::ScalarType dtype);

// The same for one Float a row.
at::Tensor zeros_of_rows(const at::Tensor& tensor, std::int64_t rows);

void perturb_(at::TensorList params, at::TensorList clean, const at::Tensor& generator, at::IntArrayRef places,
              const Noise& noise);
void perturb_from_clean_(at::TensorList params, at::TensorList clean, const at::Tensor& generator,
                         at::IntArrayRef places, const Noise& noise);
at::Tensor perturbed(const at::Tensor& weights, const at::Tensor& generator, std::int64_t place, const Noise& noise,
                     bool noise_only = false);
void restore_(at::TensorList params, at::TensorList clean);
void follow_(at::TensorList clean, at::TensorList params);
void advance_(const at::Tensor& generator, std::int64_t draws = 1);
void update_(at::TensorList weights, at::TensorList grads, at::TensorList buffers, const Update& update);
void update_and_perturb_(at::TensorList params, at::TensorList clean, at::TensorList grads, at::TensorList buffers,
                         const at::Tensor& generator, at::IntArrayRef places, const Update& update, const Noise& noise);
void project_(at::TensorList weights, double radius);
void row_scales_(at::TensorList row_scales, at::TensorList weights, at::TensorList fisher, double fisher_factor,
                 std::string_view kind = "norm");
void clip_rows_(at::TensorList weights, double weight_clip);
void row_fisher_(at::TensorList fisher, at::TensorList grads, double decay);

// An undefined generator means no noise.
at::Tensor diagonal(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& generator, double noise_std,
                    bool readout);
std::tuple<at::Tensor, at::Tensor> diagonal_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                     const at::Tensor& weight, const at::Tensor& generator,
                                                     double noise_std, bool readout, bool needs_input,
                                                     bool needs_weight);

}  // namespace torch_ssam::ops
