// The theory of S-SAM on diagonal linear networks as plain C++: include this one header, namespace torch_ssam::theory.
// Arguments are views over doubles (arguments.h); results are numbers or vectors in the shapes documented at each
// function. docs/theory.md has the formulas; a bad argument throws std::invalid_argument.
// Tests: tests/cpp/test_theory.cpp; Python offers the same functions as torch_ssam.theory.
#pragma once

#include "theory/arguments.h"   // IWYU pragma: export
#include "theory/balancing.h"   // IWYU pragma: export
#include "theory/loss.h"        // IWYU pragma: export
#include "theory/pac_bayes.h"   // IWYU pragma: export
#include "theory/sharpness.h"   // IWYU pragma: export
#include "theory/shrinkage.h"   // IWYU pragma: export
#include "theory/stationary.h"  // IWYU pragma: export
#include "theory/step_size.h"   // IWYU pragma: export
