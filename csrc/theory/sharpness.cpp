// The formulas of sharpness.h and the ascent for the worst case.
// The ascent works on delta = prod(w + xi) - prod(w), built without subtracting the products: the gain
// delta^2 - 2 (w* - p) delta then keeps its digits for small radii too.
// Tests: tests/python/test_theory_sharpness.py, tests/cpp/test_theory.cpp.
#include "theory/sharpness.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "theory/loss.h"
#include "theory/wide.h"

namespace torch_ssam::theory {

namespace {

std::size_t at(std::int64_t n) { return static_cast<std::size_t>(n); }

// The L-th root of prod eta_l.
double geometric_mean(const std::vector<double>& values) {
  const auto n = static_cast<std::int64_t>(values.size());
  if (std::all_of(values.begin(), values.end(), [&](double v) { return v == values.front(); })) {
    return values.front();
  }
  Wide product(1.0);
  for (const double value : values) {
    product = product * Wide(value);
  }
  const std::int64_t whole = product.exponent() / n;
  const int rest = static_cast<int>(product.exponent() - whole * n);
  return std::ldexp(nth_root(std::ldexp(product.mantissa().hi, rest), n), static_cast<int>(whole));
}

// Gain O(W + xi) - O(W) and its gradient, for layers xi of shape (depth, features).
class Gain {
 public:
  Gain(const Weights& weights, View target)
      : weights_(weights), residual_(products(weights)), others_(weights.depth()) {
    for (std::size_t h = 0; h < residual_.size(); ++h) {
      residual_[h] = target[h] - residual_[h];
    }
  }

  double residual(std::int64_t h) const { return residual_[at(h)]; }

  double change(const std::vector<double>& xi, std::int64_t h) const {
    double delta = 0;
    double before = 1;
    for (std::int64_t l = 0; l < weights_.depth(); ++l) {
      const double step = xi[at(l * weights_.features() + h)];
      delta = (weights_(l, h) + step) * delta + step * before;
      before *= weights_(l, h);
    }
    return delta;
  }

  double value(const std::vector<double>& xi) const {
    Sum sum;
    for (std::int64_t h = 0; h < weights_.features(); ++h) {
      const double delta = change(xi, h);
      sum.add(delta * (delta - 2 * residual(h)));
    }
    return sum.value();
  }

  void gradient(const std::vector<double>& xi, std::vector<double>& result) {
    for (std::int64_t h = 0; h < weights_.features(); ++h) {
      for (std::int64_t l = 0; l < weights_.depth(); ++l) {
        others_.set(l, noisy_factor(weights_(l, h) + xi[at(l * weights_.features() + h)], 0.0));
      }
      others_.multiply();
      const double slope = 2 * (change(xi, h) - residual(h));
      for (std::int64_t l = 0; l < weights_.depth(); ++l) {
        result[at(l * weights_.features() + h)] = slope * others_.without(l).plain;
      }
    }
  }

 private:
  const Weights& weights_;
  std::vector<double> residual_;
  LeaveOut others_;
};

double norm(const std::vector<double>& x) {
  Sum sum;
  for (const double value : x) {
    sum.add(value * value);
  }
  return std::sqrt(sum.value());
}

void scale_to(std::vector<double>& x, double radius) {
  const double size = norm(x);
  for (double& value : x) {
    value *= size > 0 ? radius / size : 0.0;
  }
}

// Projected gradient ascent with a step that doubles and halves; on the sphere a long step is a power iteration.
double ascend(Gain& gain, std::vector<double> xi, double radius) {
  std::vector<double> gradient(xi.size()), candidate(xi.size());
  double value = gain.value(xi);
  double step = 0;
  int stalled = 0;
  for (int iteration = 0; iteration < 3000 && stalled < 4; ++iteration) {
    gain.gradient(xi, gradient);
    const double slope = norm(gradient);
    if (slope == 0) {
      break;
    }
    step = step == 0 ? radius / slope : step * 4;
    bool moved = false;
    for (int halving = 0; halving < 80 && !moved; ++halving, step /= 2) {
      for (std::size_t k = 0; k < xi.size(); ++k) {
        candidate[k] = xi[k] + step * gradient[k];
      }
      if (norm(candidate) > radius) {
        scale_to(candidate, radius);
      }
      Sum rise;
      for (std::size_t k = 0; k < xi.size(); ++k) {
        rise.add(gradient[k] * (candidate[k] - xi[k]));
      }
      const double next = gain.value(candidate);
      moved = next > value && next >= value + 1e-4 * rise.value();
      if (moved) {
        stalled = next - value <= 1e-15 * std::abs(next) ? stalled + 1 : 0;
        value = next;
        xi.swap(candidate);
      }
    }
    if (!moved) {
      break;
    }
  }
  return value;
}

double sign_of(double value) { return value < 0 ? -1.0 : 1.0; }

// The whole ball spent on one coordinate: on making |p| grow (exact), or on turning the smallest layer's sign (a
// start). Returns the best of each over all coordinates.
std::vector<std::vector<double>> one_coordinate_starts(const Weights& weights, const Gain& gain, double radius) {
  const std::vector<double> p = products(weights);
  std::vector<double> best_gain(2, -1.0);
  std::vector<std::vector<double>> best(2);
  std::vector<std::int64_t> best_feature(2, 0);
  std::vector<double> layers(at(weights.depth())), shift;
  for (std::int64_t h = 0; h < weights.features(); ++h) {
    for (std::int64_t l = 0; l < weights.depth(); ++l) {
      layers[at(l)] = weights(l, h);
    }
    const auto smallest =
        std::min_element(layers.begin(), layers.end(), [](double a, double b) { return std::abs(a) < std::abs(b); });
    const double grown = largest_product(layers, radius, &shift);
    double sign = 1;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      sign *= sign_of(layers[l]);
      shift[l] *= sign_of(layers[l]);
    }
    if (*smallest == 0 && sign * gain.residual(h) > 0) {  // a zero layer may take either sign: away from the target
      shift[at(smallest - layers.begin())] *= -1;
      sign = -sign;
    }
    std::vector<double> turned(layers.size(), 0.0);
    turned[at(smallest - layers.begin())] = -sign_of(*smallest) * radius;
    double flipped = -sign_of(*smallest) * radius;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      flipped *= at(smallest - layers.begin()) == l ? 1.0 : layers[l];
    }
    const double changes[2] = {sign * grown - p[at(h)], flipped};
    for (std::size_t kind = 0; kind < 2; ++kind) {
      const double value = changes[kind] * (changes[kind] - 2 * gain.residual(h));
      if (value > best_gain[kind]) {
        best_gain[kind] = value;
        best[kind] = kind == 0 ? shift : turned;
        best_feature[kind] = h;
      }
    }
  }
  std::vector<std::vector<double>> starts;
  for (std::size_t kind = 0; kind < 2; ++kind) {
    std::vector<double> start(weights.values().size(), 0.0);
    for (std::size_t l = 0; l < best[kind].size(); ++l) {
      start[l * at(weights.features()) + at(best_feature[kind])] = best[kind][l];
    }
    starts.push_back(std::move(start));
  }
  return starts;
}

}  // namespace

double average_sharpness(const Weights& weights, const NoiseStd& noise_std, const Covariance& covariance) {
  return regularizer(weights, noise_std, covariance);
}

double hessian_trace(const Weights& weights, const Covariance& covariance) {
  covariance.check_features(weights.features());
  Sum sum;
  for_each_coordinate(weights, std::vector<double>(at(weights.depth()), 0.0),
                      [&](std::int64_t h, const LeaveOut& product) {
                        for (std::int64_t i = 0; i < weights.depth(); ++i) {
                          sum.add(2 * covariance.diagonal(h) * product.without(i).second.small);
                        }
                      });
  return sum.value();
}

double minimal_average_sharpness(View product, const NoiseStd& noise_std, std::int64_t depth) {
  check_depth(depth);
  check_finite("product", product);
  const double eta = geometric_mean(noise_std.per_layer(depth));
  Sum sum;
  for (const double p : product) {
    const NoisyProduct layer = noisy_factor(nth_root(std::abs(p), depth), eta);
    Gap all;
    for (std::int64_t l = 0; l < depth; ++l) {
      all = all * layer.second;
    }
    sum.add(all.gap);
  }
  return sum.value();
}

double minimal_hessian_trace(View product, std::int64_t depth) {
  check_depth(depth);
  check_finite("product", product);
  Sum sum;
  for (const double p : product) {
    sum.add(2 * static_cast<double>(depth) * integer_power(nth_root(std::abs(p), depth), 2 * (depth - 1)));
  }
  return sum.value();
}

double largest_product(View layers, double radius, std::vector<double>* shift) {
  check_not_negative("radius", radius);
  const double each = radius / std::sqrt(static_cast<double>(layers.size()));
  double smallest = std::numeric_limits<double>::infinity();
  double largest = 0;
  for (const double w : layers) {
    smallest = std::min(smallest, std::abs(w));
    largest = std::max(largest, std::abs(w));
  }
  const auto moved = [](double w, double c) {
    const double root = std::hypot(w, 2 * std::sqrt(c)) + std::abs(w);
    return root > 0 ? 2 * c / root : 0.0;
  };
  const double low = each * (smallest + each);
  const double high = each * (largest + each);
  const double c = bracketed_newton(low, high, low, [&](double trial) {
    ValueAndSlope f{-radius * radius, 0};
    for (const double w : layers) {
      const double xi = moved(w, trial);
      f.value += xi * xi;
      f.slope += 2 * xi / std::hypot(w, 2 * std::sqrt(trial));
    }
    return f;
  });
  double product = 1;
  if (shift != nullptr) {
    shift->clear();
  }
  for (const double w : layers) {
    product *= std::abs(w) + moved(w, c);
    if (shift != nullptr) {
      shift->push_back(moved(w, c));
    }
  }
  return product;
}

double worst_case_sharpness(const Weights& weights, View target, double radius, std::int64_t restarts,
                            std::uint64_t seed) {
  check_target(weights, target);
  check_not_negative("radius", radius);
  if (restarts < 0) {
    throw bad_input("restarts must be >= 0, got ", restarts);
  }
  if (radius == 0 || weights.features() == 0) {
    return 0;
  }
  Gain gain(weights, target);
  double best = 0;
  for (std::vector<double>& from : one_coordinate_starts(weights, gain, radius)) {
    best = std::max(best, ascend(gain, std::move(from), radius));
  }
  std::vector<double> start(weights.values().size(), 0.0);
  std::vector<double> gradient(start.size());
  gain.gradient(start, gradient);
  scale_to(gradient, radius);
  best = std::max(best, ascend(gain, std::move(gradient), radius));
  std::mt19937_64 random(seed);
  for (std::int64_t r = 0; r < restarts; ++r) {  // one at a time: the memory does not grow with restarts
    for (double& value : start) {                // uniform in a cube, by its bits: the same on every platform
      value = std::ldexp(static_cast<double>(random() >> 11), -52) - 1;
    }
    scale_to(start, radius);
    best = std::max(best, ascend(gain, start, radius));
  }
  return best;
}

}  // namespace torch_ssam::theory
