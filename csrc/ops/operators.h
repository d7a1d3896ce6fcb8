// The operators there are, each listed here once, and how a backend takes them over. Schema, checks and the call of an
// operator are in perturb.cpp, update.cpp, rows.cpp and diagonal.cpp; the dispatcher calls the same function for every
// device. But each library registers the dispatch keys of its own device: under a CUDA key without kernels, the
// dispatcher could not say that they are missing. Tests: test_cuda_registration.py.
#pragma once

#include <torch/csrc/stable/library.h>

#include "backend.h"

#define TORCH_SSAM_EACH_OPERATOR(X) \
  X(perturb_)                       \
  X(perturb_from_clean_)            \
  X(perturbed)                      \
  X(restore_)                       \
  X(follow_)                        \
  X(advance_)                       \
  X(update_)                        \
  X(update_and_perturb_)            \
  X(update_rows_and_perturb_)       \
  X(add_squares_)                   \
  X(project_)                       \
  X(row_scales_)                    \
  X(row_fisher_)                    \
  X(clip_rows_)                     \
  X(diagonal)                       \
  X(diagonal_backward)

namespace torch_ssam {

struct Operator {
  const char* name;
  const char* schema;
  void (*boxed)(StableIValue*, uint64_t, uint64_t);
};

namespace operators {
#define TORCH_SSAM_DECLARE(name) extern const Operator name;
TORCH_SSAM_EACH_OPERATOR(TORCH_SSAM_DECLARE)
#undef TORCH_SSAM_DECLARE
}  // namespace operators

// After the function `name`, in the namespace torch_ssam; `arguments` is the rest of the schema.
#define TORCH_SSAM_OPERATOR(name, arguments) \
  const Operator operators::name { #name, #name arguments, TORCH_BOX(&::torch_ssam::name) }

enum class Device : int { cpu = 0, cuda = 1 };

struct Operators {
  const Operator* const* list;
  size_t count;
  const Backend* replaced;  // the device's table so far, or null
};

// Makes the table that of the device, and says what to register under its keys. The one symbol that the CUDA library
// takes from this one.
__attribute__((visibility("default"))) Operators register_backend(Device device, const Backend& backend);

// Under one key of the device. Sparse keys too: those calls reach the same checks, which say what to do instead.
inline void implement_operators(torch::stable::detail::StableLibrary& library, Device device, const Backend& backend) {
  const Operators operators = register_backend(device, backend);
  for (size_t i = 0; i < operators.count; ++i) library.impl(operators.list[i]->name, operators.list[i]->boxed);
}

}  // namespace torch_ssam
