// torch_ssam._C: theory and simulator, and steps past the dispatcher. Private; torch_ssam.theory, torch_ssam.simulate
// and torch_ssam.ops.direct are its fronts. Tests: test_theory_*.py, test_simulate*.py, test_direct.py.
#include "python/bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Theory and simulator of torch_ssam on plain arrays; use torch_ssam.theory and torch_ssam.simulate.";
  torch_ssam::python::bind_theory(m);
  torch_ssam::python::bind_simulate(m);
  torch_ssam::python::bind_direct(m);
}
