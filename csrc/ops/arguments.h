// The arguments that several operators share, each in one line. Schemas, the parameters of the operators' functions and
// the structs that hold them (noise.h, update.cpp), and what the C++ front passes (csrc/api/operators.h), are made of
// these lists, so that a new argument is a line here, and then where it is checked and where it acts.
// Installed with the C++ front, so it includes nothing. Tests: test_ops_errors.py, tests/cpp/test_api_noise.cpp.
#pragma once

// (type, name, standard, schema) of what follows the places of tensors. The types are names of each side's own.
//   EACH  every operator that makes noise of a list of tensors takes it
//   PASS  those that do not update
//   PART  those that serve parts of tensors
#define TORCH_SSAM_NOISE_ARGUMENTS(EACH, PASS, PART)                              \
  EACH(Number, noise_std, 0, "float noise_std")                                   \
  EACH(Text, distribution, "gaussian", "str distribution='gaussian'")             \
  PASS(Whole, sample, 0, "int sample=0")                                          \
  PASS(Flag, negate, false, "bool negate=False")                                  \
  EACH(Whole, draw_offset, 0, "int draw_offset=0") /* added to the generator's */ \
  EACH(Text, scale, "isotropic", "str scale='isotropic'")                         \
  PASS(Tensors, row_scales, , "Tensor[]? row_scales=None") /* scale 'rows' */     \
  PART(Wholes, shards, , "int[]? shards=None")                                    \
  PASS(Whole, channel_dim, 0, "int channel_dim=0") /* along which the rows lie */

// An update: what every operator that makes one takes, and may take.
#define TORCH_SSAM_UPDATE_ARGUMENTS(X)                                         \
  X(List, grads, , "Tensor[] grads")                                           \
  X(List, buffers, , "Tensor(c!)[] buffers")                                   \
  X(Text, rule, , "str rule") /* of csrc/math/rules, with its numbers there */ \
  X(Numbers, numbers, , "float[] numbers")
#define TORCH_SSAM_UPDATE_OPTIONS(X)                    \
  X(MaybeTensor, lr_tensor, , "Tensor? lr_tensor=None") \
  X(Wholes, steps, , "int[]? steps=None") /* from 1 */

#define TORCH_SSAM_NOT_TAKEN(type, name, standard, schema)
#define TORCH_SSAM_SCHEMA(type, name, standard, schema) ", " schema
