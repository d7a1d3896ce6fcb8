// A call's noise: its arguments, the same checked, and what the noise of a list of tensors needs besides.
//   noise = +-noise_std * z(seed, draw, place, element, sample) * scale, z by csrc/math/noise.h, scale by
//   csrc/math/scale.h: 1, that of the element's row, or that of the clean element.
// Names of distributions and scales, as calls give them, are listed here once (noise.cpp).
// Tests: test_ops_perturb.py, test_ops_scale.py, test_ops_shards.py, test_ops_errors.py.
#pragma once

#include "../math/scale.h"
#include "arguments.h"
#include "rows.h"
#include "shards.h"

namespace torch_ssam {

using OptionalTensors = std::optional<std::vector<Tensor>>;
using OptionalInts = std::optional<std::vector<int64_t>>;

// The types of arguments.h: of a function that the dispatcher calls, and of what holds the arguments until they are
// checked. Containers stay those of the call.
namespace parameter {
using Number = double;
using Whole = int64_t;
using Flag = bool;
using Text = StringArgument;
using Tensors = const OptionalTensors&;
using Wholes = const OptionalInts&;
using List = const TensorList&;
using Numbers = const std::vector<double>&;
using MaybeTensor = const std::optional<Tensor>&;
}  // namespace parameter

namespace held {
using Number = double;
using Whole = int64_t;
using Flag = bool;
using Text = std::string;
using Tensors = const OptionalTensors*;
using Wholes = const OptionalInts*;
using List = const TensorList*;
using Numbers = const std::vector<double>*;
using MaybeTensor = const std::optional<Tensor>*;
}  // namespace held

inline double hold(double value) { return value; }
inline int64_t hold(int64_t value) { return value; }
inline bool hold(bool value) { return value; }
inline std::string hold(StringArgument value) { return take(value); }
template <typename Container>
const Container* hold(const Container& value) {
  return &value;
}

#define TORCH_SSAM_PARAMETER(type, name, standard, schema) , parameter::type name
#define TORCH_SSAM_HELD(type, name, standard, schema) held::type name = {standard};
#define TORCH_SSAM_HOLD(type, name, standard, schema) .name = hold(name),

// As a call gives them. TORCH_SSAM_HOLD comes before any check, which may refuse the call: texts are taken once.
struct NoiseArguments {
  TORCH_SSAM_NOISE_ARGUMENTS(TORCH_SSAM_HELD, TORCH_SSAM_HELD, TORCH_SSAM_HELD)
};

// Checked; of all tensors of a call.
struct SharedNoise {
  double noise_std = 0;
  math::Distribution distribution = math::Distribution::gaussian;
  math::Scale scale = math::Scale::isotropic;
  int64_t draw_offset = 0;  // added to the generator's draw
  int64_t sample = 0;
  bool negate = false;
  bool alone = false;  // by element: not added to the weights that scale it
  double signed_std() const { return negate ? -noise_std : noise_std; }
};

SharedNoise check_shared_noise(const NoiseArguments& arguments);

// Of a list. References are to the call's arguments.
struct Noise {
  SharedNoise options;
  const int64_t* generator;  // (seed, draw), in the memory of the device
  const std::vector<int64_t>& places;
  RowViews row_scales = {};  // empty but for Scale::rows
  Shards shards = {};        // empty where every tensor is whole
};

// `params` are what gets the noise; that they are on the generator's device is for the caller to check.
Noise check_noise(const SharedNoise& shared, const NoiseArguments& arguments, const Tensor& generator,
                  const std::vector<int64_t>& places, const TensorViews& params);

}  // namespace torch_ssam
