// Reads the few numbers that operators take as tensors (generator, grad_scale, found_inf, lr) on the CPU, and turns
// options into the plain structs of kernels.h.
#pragma once

#include "../shards.h"
#include "../update.h"
#include "kernels.h"

namespace torch_ssam::cpu {

struct GeneratorState {
  int64_t seed;
  int64_t draw;
};

inline GeneratorState read_generator(const Tensor& generator, int64_t draw_offset) {
  const auto* state = static_cast<const int64_t*>(generator.data_ptr());
  return {state[0], math::later_draw(state[1], draw_offset)};
}

inline double read_scalar(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double
             ? *static_cast<const double*>(tensor.data_ptr())
             : static_cast<double>(*static_cast<const float*>(tensor.data_ptr()));
}

inline bool is_set(const std::optional<Tensor>& flag) { return flag && read_scalar(*flag) != 0.0; }

inline NoiseArgs noise_args(const NoiseOptions& noise, const GeneratorState& state, int64_t place) {
  return {math::make_noise_stream(state.seed, state.draw, place, noise.sample), noise.distribution, noise.signed_std(),
          noise.scale};
}

// The noise of tensor t of a list.
inline NoiseArgs noise_args(const NoiseOptions& noise, const GeneratorState& state, const std::vector<int64_t>& places,
                            const Shards& shards, size_t t) {
  NoiseArgs args = noise_args(noise, state, places[t]);
  if (!shards.empty()) {
    args.origin = shards[t].one_run() ? shards[t].origin : 0;
    args.shard = shards[t].one_run() ? nullptr : &shards[t];
  }
  return args;
}

inline UpdateArgs update_args(const UpdateOptions& o, const UpdateTensors& t) {
  UpdateArgs args{};
  args.lr = t.lr_tensor ? read_scalar(*t.lr_tensor) : o.lr;
  args.momentum = o.momentum;
  args.dampening = o.dampening;
  args.weight_decay = o.weight_decay;
  args.grad_scale = t.grad_scale ? read_scalar(*t.grad_scale) : 1.0;
  args.scaled = t.grad_scale.has_value();
  args.nesterov = o.nesterov;
  args.maximize = o.maximize;
  args.first_step = o.first_step;
  return args;
}

}  // namespace torch_ssam::cpu
