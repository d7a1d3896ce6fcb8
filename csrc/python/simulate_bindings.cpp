#include "python/bindings.h"

namespace torch_ssam::python {

void bind_simulate(pybind11::module_& /*m*/) {}

}  // namespace torch_ssam::python
