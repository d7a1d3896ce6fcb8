// The mathematics of S-SAM on diagonal networks: torch_ssam::theory, the closed forms, and torch_ssam::simulate, the
// recursion at full machine speed. Plain C++ on views of doubles, no tensors; each header of theory/ documents its
// formulas. A float64 tensor on the CPU is such a view: {t.const_data_ptr<double>(), size_t(t.numel())}.
// A bad argument throws std::invalid_argument, since nothing here needs PyTorch.
#pragma once

#include "theory/simulate.h"  // IWYU pragma: export
#include "theory/theory.h"    // IWYU pragma: export

namespace torch_ssam {

using theory::simulate;
using theory::SimulateOptions;
using theory::SimulationResult;

}  // namespace torch_ssam
