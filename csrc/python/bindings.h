// The parts of the extension module `_C`, one function each: the Python package's window on csrc/theory, and
// direct.cpp.
// `_C` is pybind11 on plain arrays. It does not link LibTorch, so one binary serves every PyTorch.
// Tests: tests/python/test_theory_*.py, tests/python/test_simulate*.py.
#pragma once

#include <pybind11/pybind11.h>

namespace torch_ssam::python {

void bind_theory(pybind11::module_& m);
void bind_simulate(pybind11::module_& m);
void bind_direct(pybind11::module_& m);

}  // namespace torch_ssam::python
