// csrc/theory's simulator for Python: flat float64 arrays in, arrays that own the simulator's memory out, no copies.
// It runs without the GIL; ten times a second the calling thread takes it to look for Ctrl-C and to report progress.
// Checks are the simulator's (std::invalid_argument becomes ValueError); torch_ssam/simulate.py is the front.
// Tests: tests/python/test_simulate*.py.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>

#include "python/bindings.h"
#include "theory/simulate.h"

namespace torch_ssam::python {

namespace {

namespace py = pybind11;
using Array = py::array_t<double, py::array::c_style>;
using Shape = std::vector<py::ssize_t>;

std::vector<double> values(const Array& array) { return {array.data(), array.data() + array.size()}; }

template <typename T>
py::array_t<T> give(std::vector<T> from, const Shape& shape) {
  auto owned = std::make_unique<std::vector<T>>(std::move(from));
  T* data = owned->data();
  const py::capsule owner(owned.get(), [](void* vector) { delete static_cast<std::vector<T>*>(vector); });
  owned.release();
  return py::array_t<T>(shape, data, owner);
}

py::dict simulate(const Array& target, std::int64_t depth, const Array& noise_std, double lr, std::int64_t steps,
                  const Array& init, std::int64_t replicates, std::int64_t seed, const std::optional<Array>& covariance,
                  const std::string& distribution, bool harmonic_lr, std::optional<double> radius, bool expected,
                  std::int64_t record_every, std::int64_t threads, const std::optional<Array>& inputs,
                  const std::optional<Array>& labels, std::int64_t batch_size, const py::object& progress) {
  theory::SimulateOptions options;
  options.target = values(target);
  options.depth = depth;
  options.noise_std = values(noise_std);
  options.lr = lr;
  options.steps = steps;
  options.init = values(init);
  options.replicates = replicates;
  options.seed = seed;
  if (covariance) options.covariance = values(*covariance);
  options.distribution = theory::parse_distribution(distribution);
  options.harmonic_lr = harmonic_lr;
  options.radius = radius;
  options.expected = expected;
  options.record_every = record_every;
  options.threads = threads;
  if (inputs) options.inputs = {inputs->data(), static_cast<std::size_t>(inputs->size())};
  if (labels) options.labels = {labels->data(), static_cast<std::size_t>(labels->size())};
  options.batch_size = batch_size;
  options.progress = [&](std::int64_t done, std::int64_t total) {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(done, total);
  };

  theory::SimulationResult r;
  {
    const py::gil_scoped_release release;
    r = theory::simulate(options);
  }
  const auto records = static_cast<py::ssize_t>(r.steps.size());
  const auto features = static_cast<py::ssize_t>(r.product.size()) / (records * replicates);
  const Shape each{replicates};
  const auto flags = [&](const std::vector<unsigned char>& from) {
    py::array_t<bool> result(each);
    std::copy(from.begin(), from.end(), result.mutable_data());
    return result;
  };
  py::dict result;
  result["steps"] = give(std::move(r.steps), {records});
  result["weights"] = give(std::move(r.weights), {records, replicates, depth, features});
  result["loss"] = give(std::move(r.loss), {records, replicates});
  result["product"] = give(std::move(r.product), {records, replicates, features});
  result["balance_gap"] = give(std::move(r.balance_gap), {records, replicates});
  result["diverged_at"] = give(std::move(r.diverged_at), each);
  result["collapsed"] = flags(r.collapsed);
  result["oscillating"] = flags(r.oscillating);
  result["unbalanced"] = flags(r.unbalanced);
  result["step_size_bound"] = give(std::move(r.step_size_bound), each);
  result["explanations"] = py::cast(r.explanations);
  return result;
}

// For benchmarks/simulate.py: the limit beside which the simulator's speed is measured.
double noise_alone(std::int64_t features, std::int64_t depth, std::int64_t steps, std::int64_t replicates) {
  theory::SimulateOptions options;
  options.target.assign(static_cast<std::size_t>(features), 0.0);
  options.noise_std = {1.0};
  options.depth = depth;
  options.steps = options.record_every = steps;
  options.replicates = replicates;
  const py::gil_scoped_release release;
  return theory::simulate_noise_alone(options);
}

}  // namespace

void bind_simulate(py::module_& m) {
  m.def("simulate", &simulate, py::kw_only(), py::arg("target"), py::arg("depth"), py::arg("noise_std"), py::arg("lr"),
        py::arg("steps"), py::arg("init"), py::arg("replicates"), py::arg("seed"), py::arg("covariance"),
        py::arg("distribution"), py::arg("harmonic_lr"), py::arg("radius"), py::arg("expected"),
        py::arg("record_every"), py::arg("threads"), py::arg("inputs"), py::arg("labels"), py::arg("batch_size"),
        py::arg("progress"));
  m.def("simulate_noise_alone", &noise_alone, py::kw_only(), py::arg("features"), py::arg("depth"), py::arg("steps"),
        py::arg("replicates"));
  m.def("simulate_capability", &theory::simulate_capability);
}

}  // namespace torch_ssam::python
