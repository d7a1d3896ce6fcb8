// torch_ssam._C: theory and simulator. Private; torch_ssam.theory and torch_ssam.simulate are its fronts.
// Tests: tests/python/test_theory_*.py, tests/python/test_simulate*.py.
#include "python/bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Theory and simulator of torch_ssam on plain arrays; use torch_ssam.theory and torch_ssam.simulate.";
  torch_ssam::python::bind_theory(m);
  torch_ssam::python::bind_simulate(m);
}
