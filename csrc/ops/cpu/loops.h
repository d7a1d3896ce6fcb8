// The table of this backend, as functions; and what turns a call's noise into the plain struct of kernels.h.
#pragma once

#include "../backend.h"
#include "kernels.h"

namespace torch_ssam::cpu {

void perturb(const PerturbCall& call);
void restore(const RestoreCall& call);
void follow(const FollowCall& call);
void advance(const AdvanceCall& call);
void update(const UpdateCall& call);
bool update_rows(const UpdateRowsCall& call);
void add_squares(const AddSquaresCall& call);
void project(const ProjectCall& call);
void row_scales(const RowScalesCall& call);
void row_fisher(const RowFisherCall& call);
void clip_rows(const ClipRowsCall& call);
void diagonal(const DiagonalCall& call, const Tensor& output);
void diagonal_backward(const DiagonalBackwardCall& call, const Tensor& grad_input, const Tensor& grad_weight);

inline double read_number(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double
             ? *static_cast<const double*>(tensor.data_ptr())
             : static_cast<double>(*static_cast<const float*>(tensor.data_ptr()));
}

struct GeneratorState {
  int64_t seed;
  int64_t draw;
};

inline GeneratorState read_generator(const int64_t* generator, const SharedNoise& noise) {
  return {generator[0], math::later_draw(generator[1], noise.draw_offset)};
}

inline NoiseArgs noise_args(const SharedNoise& noise, const GeneratorState& state, int64_t place) {
  NoiseArgs args{math::make_noise_stream(state.seed, state.draw, place, noise.sample), noise.distribution,
                 noise.signed_std(), noise.scale};
  args.alone = noise.alone;
  return args;
}

// The noise of tensor t of a list.
inline NoiseArgs noise_args(const Noise& noise, const GeneratorState& state, size_t t) {
  NoiseArgs args = noise_args(noise.options, state, noise.places[t]);
  if (!noise.row_scales.empty()) {
    args.row_scales = noise.row_scales[t].data;
    args.row_length = noise.row_scales[t].length;
    args.rows = noise.row_scales[t].repeat ? noise.row_scales[t].rows : 0;
  }
  if (!noise.shards.empty()) {
    const math::Shard& shard = noise.shards[t];
    args.origin = shard.one_run() ? shard.origin : 0;
    args.shard = shard.one_run() ? nullptr : &shard;
  }
  return args;
}

}  // namespace torch_ssam::cpu
