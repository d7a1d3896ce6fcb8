// Everything a LibTorch program needs for S-SAM: include this one header and link torch_ssam::torch_ssam.
//   SSAM, SSAMOptions           the optimizer                          (ssam.h)
//   SSAMAdamW, SSAMAdamWOptions the same with AdamW's update           (adamw.h)
//   AdaptiveNoiseStd            noise that sets itself                 (schedules.h)
//   WeightNoise                 its noise, for any other optimizer     (weight_noise.h)
//   DiagonalLinear              the module                             (diagonal_linear.h)
//   state_dict, load_state_dict weights and state to and from Python   (checkpoint.h)
//   theory, simulate            the mathematics, on plain arrays       (theory.h)
// Names and defaults are those of the Python package. docs/cpp.md is the guide.
#pragma once

#include <torch_ssam/adamw.h>            // IWYU pragma: export
#include <torch_ssam/checkpoint.h>       // IWYU pragma: export
#include <torch_ssam/diagonal_linear.h>  // IWYU pragma: export
#include <torch_ssam/perturbation.h>     // IWYU pragma: export
#include <torch_ssam/schedules.h>        // IWYU pragma: export
#include <torch_ssam/ssam.h>             // IWYU pragma: export
#include <torch_ssam/theory.h>           // IWYU pragma: export
#include <torch_ssam/weight_noise.h>     // IWYU pragma: export
