// csrc/theory for Python: every function over a batch. torch_ssam/theory.py hands over contiguous float64 arrays,
// weights (batch, depth, features), targets (batch, features), noise_std (1,) or (depth,); what comes back keeps the
// batch dimension. The batch loop runs here without the GIL; checks and formulas are csrc/theory's.
// std::invalid_argument becomes ValueError, std::runtime_error RuntimeError.
// Tests: tests/python/test_theory_*.py.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "python/bindings.h"
#include "theory/theory.h"

namespace torch_ssam::python {

namespace {

namespace py = pybind11;
using Array = py::array_t<double, py::array::c_style>;
using Shape = std::vector<py::ssize_t>;
using theory::Covariance;
using theory::NoiseStd;
using theory::View;
using theory::Weights;
using OptionalArray = std::optional<Array>;

View view(const Array& array) { return {array.data(), static_cast<std::size_t>(array.size())}; }

// Item b of an array whose first dimension is the batch.
View item(const Array& array, py::ssize_t b) {
  const py::ssize_t size = array.shape(0) > 0 ? array.size() / array.shape(0) : 0;
  return {array.data() + b * size, static_cast<std::size_t>(size)};
}

Weights weights_item(const Array& weights, py::ssize_t b) { return {item(weights, b), weights.shape(1)}; }

NoiseStd noise(const Array& noise_std) { return NoiseStd(view(noise_std)); }

Covariance covariance_of(const OptionalArray& covariance) {
  return covariance ? Covariance(view(*covariance), covariance->shape(0)) : Covariance();
}

// compute(b) for every item, a vector of the shape `tail` each, without the GIL.
template <typename T = double, typename Compute>
py::array_t<T> batched(py::ssize_t batch, const Shape& tail, const Compute& compute) {
  Shape shape{batch};
  shape.insert(shape.end(), tail.begin(), tail.end());
  py::array_t<T> result(shape);
  T* out = result.mutable_data();
  const py::gil_scoped_release release;
  for (py::ssize_t b = 0; b < batch; ++b) {
    const std::vector<T> values = compute(b);
    out = std::copy(values.begin(), values.end(), out);
  }
  return result;
}

template <typename Compute>
Array batched_number(py::ssize_t batch, const Compute& compute) {
  return batched(batch, {}, [&](py::ssize_t b) { return std::vector<double>{compute(b)}; });
}

void bind_loss(py::module_& m) {
  m.def("loss", [](const Array& w, const Array& target, const OptionalArray& covariance) {
    const Covariance c = covariance_of(covariance);
    return batched_number(w.shape(0), [&](auto b) { return theory::loss(weights_item(w, b), item(target, b), c); });
  });
  m.def("regularizer", [](const Array& w, const Array& noise_std, const OptionalArray& covariance) {
    const Covariance c = covariance_of(covariance);
    const NoiseStd eta = noise(noise_std);
    return batched_number(w.shape(0), [&](auto b) { return theory::regularizer(weights_item(w, b), eta, c); });
  });
  m.def("regularized_loss",
        [](const Array& w, const Array& target, const Array& noise_std, const OptionalArray& covariance) {
          const Covariance c = covariance_of(covariance);
          const NoiseStd eta = noise(noise_std);
          return batched_number(w.shape(0), [&](auto b) {
            return theory::regularized_loss(weights_item(w, b), item(target, b), eta, c);
          });
        });
  m.def("regularized_gradient",
        [](const Array& w, const Array& target, const Array& noise_std, const OptionalArray& covariance) {
          const Covariance c = covariance_of(covariance);
          const NoiseStd eta = noise(noise_std);
          return batched(w.shape(0), {w.shape(1), w.shape(2)}, [&](auto b) {
            return theory::regularized_gradient(weights_item(w, b), item(target, b), eta, c);
          });
        });
  m.def("regularized_hessian",
        [](const Array& w, const Array& target, const Array& noise_std, const OptionalArray& covariance) {
          const Covariance c = covariance_of(covariance);
          const NoiseStd eta = noise(noise_std);
          const py::ssize_t depth = w.shape(1);
          const py::ssize_t features = w.shape(2);
          const bool full = covariance && covariance->ndim() == 2;
          const Shape tail = full ? Shape{depth, features, depth, features} : Shape{features, depth, depth};
          return batched(w.shape(0), tail, [&](auto b) {
            return theory::regularized_hessian(weights_item(w, b), item(target, b), eta, c);
          });
        });
}

void bind_sharpness(py::module_& m) {
  m.def("average_sharpness", [](const Array& w, const Array& noise_std, const OptionalArray& covariance) {
    const Covariance c = covariance_of(covariance);
    const NoiseStd eta = noise(noise_std);
    return batched_number(w.shape(0), [&](auto b) { return theory::average_sharpness(weights_item(w, b), eta, c); });
  });
  m.def("hessian_trace", [](const Array& w, const OptionalArray& covariance) {
    const Covariance c = covariance_of(covariance);
    return batched_number(w.shape(0), [&](auto b) { return theory::hessian_trace(weights_item(w, b), c); });
  });
  m.def("minimal_average_sharpness", [](const Array& product, const Array& noise_std, std::int64_t depth) {
    const NoiseStd eta = noise(noise_std);
    return batched_number(product.shape(0),
                          [&](auto b) { return theory::minimal_average_sharpness(item(product, b), eta, depth); });
  });
  m.def("minimal_hessian_trace", [](const Array& product, std::int64_t depth) {
    return batched_number(product.shape(0),
                          [&](auto b) { return theory::minimal_hessian_trace(item(product, b), depth); });
  });
  m.def("worst_case_sharpness",
        [](const Array& w, const Array& target, double radius, std::int64_t restarts, std::uint64_t seed) {
          return batched_number(w.shape(0), [&](auto b) {
            return theory::worst_case_sharpness(weights_item(w, b), item(target, b), radius, restarts, seed);
          });
        });
}

void bind_balancing(py::module_& m) {
  const auto pairs = [](const Array& w) { return Shape{w.shape(1), w.shape(1), w.shape(2)}; };
  m.def("balance_gaps", [pairs](const Array& w) {
    return batched(w.shape(0), pairs(w), [&](auto b) { return theory::balance_gaps(weights_item(w, b)); });
  });
  m.def("balancing_rate", [pairs](const Array& w, const Array& noise_std) {
    const NoiseStd eta = noise(noise_std);
    return batched(w.shape(0), pairs(w), [&](auto b) { return theory::balancing_rate(weights_item(w, b), eta); });
  });
  m.def("balancing_rate_bound", [](const Array& noise_std, std::int64_t depth) {
    return theory::balancing_rate_bound(noise(noise_std), depth);
  });
  m.def("balancing_factor", [pairs](const Array& w, const Array& target, const Array& noise_std, double lr) {
    const NoiseStd eta = noise(noise_std);
    return batched(w.shape(0), pairs(w),
                   [&](auto b) { return theory::balancing_factor(weights_item(w, b), item(target, b), eta, lr); });
  });
}

// Critical points as a tuple of arrays: weights and eigenvalues (batch, depth, features), flags (batch, features).
py::tuple critical_points(const Array& target, const Array& noise_std, std::int64_t depth) {
  const NoiseStd eta = noise(noise_std);
  std::vector<theory::CriticalPoints> points;
  {
    const py::gil_scoped_release release;
    for (py::ssize_t b = 0; b < target.shape(0); ++b) {
      points.push_back(theory::critical_points(item(target, b), eta, depth));
    }
  }
  const auto weights = [&](std::vector<double> theory::CriticalPoints::*field) {
    return batched(target.shape(0), {depth, target.shape(1)},
                   [&](auto b) { return points[static_cast<std::size_t>(b)].*field; });
  };
  const auto flags = [&](std::vector<unsigned char> theory::CriticalPoints::*field) {
    return batched<bool>(target.shape(0), {target.shape(1)}, [&](auto b) {
      const auto& values = points[static_cast<std::size_t>(b)].*field;
      return std::vector<bool>(values.begin(), values.end());
    });
  };
  using Points = theory::CriticalPoints;
  return py::make_tuple(weights(&Points::minimum), weights(&Points::saddle), weights(&Points::minimum_eigenvalues),
                        weights(&Points::saddle_eigenvalues), weights(&Points::zero_eigenvalues),
                        flags(&Points::minimum_is_global), flags(&Points::zero_is_minimum));
}

void bind_shrinkage(py::module_& m) {
  m.def("shrinkage_factor", [](const Array& target, const Array& noise_std, std::int64_t depth) {
    const NoiseStd eta = noise(noise_std);
    return batched(target.shape(0), {target.shape(1)},
                   [&](auto b) { return theory::shrinkage_factor(item(target, b), eta, depth); });
  });
  m.def("limit_product",
        [](const Array& target, const Array& noise_std, std::int64_t depth, const OptionalArray& covariance) {
          const Covariance c = covariance_of(covariance);
          const NoiseStd eta = noise(noise_std);
          return batched(target.shape(0), {target.shape(1)},
                         [&](auto b) { return theory::limit_product(item(target, b), eta, depth, c); });
        });
  m.def("existence_threshold", [](const Array& noise_std, std::int64_t depth) {
    return theory::existence_threshold(noise(noise_std), depth);
  });
  m.def("global_threshold",
        [](const Array& noise_std, std::int64_t depth) { return theory::global_threshold(noise(noise_std), depth); });
  m.def("critical_points", &critical_points);
}

void bind_step_size(py::module_& m) {
  m.def("step_size_bound",
        [](const Array& w, const Array& target, const Array& noise_std, const OptionalArray& covariance, bool sharp) {
          const Covariance c = covariance_of(covariance);
          const NoiseStd eta = noise(noise_std);
          const auto kind = sharp ? theory::SmoothnessBound::known_target : theory::SmoothnessBound::general;
          return batched_number(w.shape(0), [&](auto b) {
            return theory::step_size_bound(weights_item(w, b), item(target, b), eta, c, kind);
          });
        });
  m.def("projection_radius", [](const Array& target, const Array& noise_std, std::int64_t depth) {
    const NoiseStd eta = noise(noise_std);
    return batched_number(target.shape(0),
                          [&](auto b) { return theory::projection_radius(item(target, b), eta, depth); });
  });
  m.def("critical_radius", [](const Array& target, const Array& noise_std, std::int64_t depth) {
    const NoiseStd eta = noise(noise_std);
    return batched_number(target.shape(0),
                          [&](auto b) { return theory::critical_radius(item(target, b), eta, depth); });
  });
  m.def("coordinate_bounds", [](const Array& target, const Array& noise_std, std::int64_t depth) {
    const NoiseStd eta = noise(noise_std);
    return batched(target.shape(0), {depth, target.shape(1)},
                   [&](auto b) { return theory::coordinate_bounds(item(target, b), eta, depth); });
  });
}

void bind_stationary(py::module_& m) {
  m.def("gradient_covariance",
        [](const Array& w, const Array& target, const Array& noise_std, const std::string& distribution) {
          const NoiseStd eta = noise(noise_std);
          const auto kind = theory::parse_distribution(distribution);
          return batched(w.shape(0), {w.shape(2), w.shape(1), w.shape(1)}, [&](auto b) {
            return theory::gradient_covariance(weights_item(w, b), item(target, b), eta, kind);
          });
        });
  m.def("gradient_variance",
        [](const Array& w, const Array& target, const Array& noise_std, const std::string& distribution) {
          const NoiseStd eta = noise(noise_std);
          const auto kind = theory::parse_distribution(distribution);
          return batched(w.shape(0), {w.shape(1), w.shape(2)}, [&](auto b) {
            return theory::gradient_variance(weights_item(w, b), item(target, b), eta, kind);
          });
        });
  m.def("stationary_covariance", [](const Array& target, const Array& noise_std, double lr, std::int64_t depth,
                                    const std::string& distribution) {
    const NoiseStd eta = noise(noise_std);
    const auto kind = theory::parse_distribution(distribution);
    return batched(target.shape(0), {target.shape(1), depth, depth},
                   [&](auto b) { return theory::stationary_covariance(item(target, b), eta, lr, depth, kind); });
  });
}

void bind_pac_bayes(py::module_& m) {
  m.def("gaussian_kl", [](const Array& weights, const Array& prior, const Array& noise_std, const Array& prior_std) {
    const py::gil_scoped_release release;
    return theory::gaussian_kl(view(weights), view(prior), view(noise_std), view(prior_std));
  });
  // The arrays below have been broadcast against each other.
  m.def("kl_inverse", [](const Array& q, const Array& c) {
    return batched_number(q.size(), [&](auto b) { return theory::kl_inverse(q.data()[b], c.data()[b]); });
  });
  m.def("pac_bayes_bound", [](const Array& risk, const Array& kl, const Array& n, const Array& delta,
                              const std::string& kind, double catoni_c) {
    const auto bound = theory::parse_bound_kind(kind);
    return batched_number(risk.size(), [&](auto b) {
      return theory::pac_bayes_bound(risk.data()[b], kl.data()[b], n.data()[b], delta.data()[b], bound, catoni_c);
    });
  });
  m.def("sampled_risk_bound", &theory::sampled_risk_bound, py::arg("mean_risk"), py::arg("samples"), py::arg("delta"));
  m.def("prior_grid_delta", &theory::prior_grid_delta, py::arg("j"), py::arg("delta"));
}

}  // namespace

void bind_theory(py::module_& m) {
  bind_loss(m);
  bind_sharpness(m);
  bind_balancing(m);
  bind_shrinkage(m);
  bind_step_size(m);
  bind_stationary(m);
  bind_pac_bayes(m);
}

}  // namespace torch_ssam::python
