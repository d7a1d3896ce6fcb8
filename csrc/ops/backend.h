// Between operators and the code of a device: an operator checks a call once, for every device, and hands a struct to
// the device's table. A backend is such a table, of loops (cpu/) or launches (cuda/) and nothing else: no schema, no
// check. A backend registers itself (operators.h), the CUDA one when its library is loaded. References in these structs
// are to the arguments of the call. Tests: test_ops_*.py, test_cuda_registration.py.
#pragma once

#include "dtypes.h"
#include "noise.h"
#include "rules.h"

namespace torch_ssam {

// params <- clean + noise. With `save` the parameters hold the clean weights, and `clean` receives them.
struct PerturbCall {
  TensorViews params, clean;
  Noise noise;
  bool save;
  const Tensor& on_device;
};

// params <- clean: bit for bit, or rounded where the parameters have 16 bits.
struct RestoreCall {
  TensorViews params, clean;
  const Tensor& on_device;
};

// clean <- params, where a parameter is no longer the rounding of its clean weight: others wrote to it.
struct FollowCall {
  TensorViews clean, params;
  const Tensor& on_device;
};

struct AdvanceCall {
  const Tensor& generator;
  int64_t draws;
};

// weights <- their update by the rule; with noise also params <- weights + noise, in one pass over memory, and with
// noise_std 0 params <- weights, rounded.
struct UpdateCall {
  TensorViews weights, grads;
  std::vector<TensorViews> buffers;  // a list for each buffer that the rule keeps
  UpdateRule rule;
  std::vector<int64_t> steps;       // which step each tensor is at, from 1; or empty
  const std::optional<Tensor>& lr;  // in place of the rule's, from the memory of the device
  TensorViews params;               // empty where the update is all
  std::optional<Noise> noise;
  const Tensor* on_device;

  int64_t step_of(size_t tensor) const { return steps.empty() ? 0 : steps[tensor]; }
};

// The same with clipping and numbers of rows in between: clean <- its update, clipped; row_scales <- the rows' numbers;
// params <- clean + noise. The update has noise, and of that row_scales, or none.
struct UpdateRowsCall {
  UpdateCall update;
  math::RowScale kind;
  double weight_clip;  // of the rows of tensors with two dimensions and more; 0 for none
};

// total <- total + the squares of the weights: pieces added in the order of csrc/math/reduce.h, one after another, so
// that calls over parts of a list come to the bits of one call over the list.
struct AddSquaresCall {
  double* total;  // in the memory of the device
  TensorViews weights;
  const Tensor& on_device;
};

struct ProjectCall {
  TensorViews weights;
  double radius;
  const double* squared_norm;  // in the memory of the device: of all that is projected; null: these weights are all
  const Tensor& on_device;
};

struct RowScalesCall {
  TensorViews weights;
  RowViews row_scales;
  RowViews fisher;  // or empty, as it is for absmax
  double fisher_factor;
  math::RowScale kind;
  const Tensor& on_device;
};

struct RowFisherCall {
  TensorViews grads;
  RowViews fisher;
  double decay;
  const Tensor& on_device;
};

// weights <- weights, at most weight_clip times the root mean square of their row in size. `rows` have no numbers.
struct ClipRowsCall {
  TensorViews weights;
  RowViews rows;
  double weight_clip;
  const Tensor& on_device;
};

struct DiagonalShape {
  int64_t depth;
  int64_t features;
  int64_t rows;  // product of the leading dimensions of the input
};

// No dimension is 0 here.
struct DiagonalCall {
  DiagonalShape shape;
  DtypePair pair;
  Tensor input, weight;      // contiguous
  const int64_t* generator;  // (seed, draw), in the memory of the device; null: no noise
  SharedNoise noise;
  bool readout;
};

struct DiagonalBackwardCall {
  DiagonalCall forward;
  Tensor grad_output;  // contiguous
  bool needs_input, needs_weight;
};

struct Backend {
  void (*perturb)(const PerturbCall&);
  void (*restore)(const RestoreCall&);
  void (*follow)(const FollowCall&);
  void (*advance)(const AdvanceCall&);
  void (*update)(const UpdateCall&);
  bool (*update_rows)(const UpdateRowsCall&);  // false, and nothing written, where it is no faster in one
  void (*add_squares)(const AddSquaresCall&);
  void (*project)(const ProjectCall&);
  void (*row_scales)(const RowScalesCall&);
  void (*row_fisher)(const RowFisherCall&);
  void (*clip_rows)(const ClipRowsCall&);
  void (*diagonal)(const DiagonalCall&, const Tensor& output);
  void (*diagonal_backward)(const DiagonalBackwardCall&, const Tensor& grad_input, const Tensor& grad_weight);
  bool takes_memory = false;  // whether an update may come without tensors of PyTorch (direct.h)
};

// The table of the device that a tensor is on.
const Backend& backend_of(const Tensor& tensor);
const Backend& cpu_backend();

}  // namespace torch_ssam
