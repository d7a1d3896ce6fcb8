// The table of this backend, as functions. Each is in the file of its operator.
#pragma once

#include "../backend.h"

namespace torch_ssam::cuda {

void perturb(const PerturbCall& call);
void restore(const RestoreCall& call);
void follow(const FollowCall& call);
void advance(const AdvanceCall& call);
void update(const UpdateCall& call);
void add_squares(const AddSquaresCall& call);
void project(const ProjectCall& call);
void row_scales(const RowScalesCall& call);
void row_fisher(const RowFisherCall& call);
void clip_rows(const ClipRowsCall& call);
void diagonal(const DiagonalCall& call, const Tensor& output);
void diagonal_backward(const DiagonalBackwardCall& call, const Tensor& grad_input, const Tensor& grad_weight);

}  // namespace torch_ssam::cuda
