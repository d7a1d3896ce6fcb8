// What a finished replicate is measured by, and the signatures of failure with the theory that explains them:
// divergence and oscillation by the step-size bound, collapse by the existence threshold, imbalance by the balancing
// rate. Rules, on means over the last quarter of the records, are in docs/simulator.md. A coordinate sees the target
//   w~_h = p_h + [Sigma (w* - p)]_h / Sigma_hh  (docs/theory.md, "Data that are not whitened"), which is w*_h on
//   whitened data.
// Tests: tests/python/test_simulate*.py, tests/cpp/test_simulate.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "theory/balancing.h"
#include "theory/linear_algebra.h"
#include "theory/loss.h"
#include "theory/shrinkage.h"
#include "theory/simulate_internal.h"
#include "theory/step_size.h"

namespace torch_ssam::theory {

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kCollapsed = 0.1;      // of the size there should be
constexpr double kUnbalanced = 0.25;    // of the larger squared weight: above the fluctuations of a healthy run
constexpr double kAlternating = -0.75;  // correlation of neighbouring steps; lr times curvature above 1.5
// Without noise: steps that neither get smaller nor keep their direction, regular or not.
constexpr double kAlternatingExpected = 0.3;
constexpr double kSettled = 5;  // e-foldings after which a gap is no longer left from the start

std::size_t index(std::int64_t n) { return static_cast<std::size_t>(n); }

// One coordinate of one replicate at the end.
struct Coordinate {
  std::vector<double> weights, squares, noise_std;  // per layer: last, mean of w^2 over the tail, eta
  double size = 0;                                  // mean of |p|
  double target = 0;                                // w~
  double variance = 1;

  std::int64_t depth() const { return static_cast<std::int64_t>(weights.size()); }
  NoiseStd noise() const { return NoiseStd(View(noise_std)); }
  bool noisy() const {
    return std::all_of(noise_std.begin(), noise_std.end(), [](double eta) { return eta > 0; });
  }
  bool equal_noise() const {
    return std::all_of(noise_std.begin(), noise_std.end(), [this](double eta) { return eta == noise_std[0]; });
  }
};

bool is_collapsed(const Coordinate& c) {
  if (!(c.size < kCollapsed * std::abs(c.target))) return false;
  return c.size < kCollapsed * std::abs(ShrinkageMap(c.noise(), c.depth()).product(c.target)) ||
         std::abs(c.target) < existence_threshold(c.noise(), c.depth());
}

// Layers that differ in |w_l| / eta_l, which noise makes equal; |w_l| where a layer has none.
bool is_unbalanced(const Coordinate& c) {
  double geometric = 1;
  for (const double eta : c.noise_std) geometric *= std::pow(eta, 1.0 / static_cast<double>(c.depth()));
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  for (std::size_t l = 0; l < c.squares.size(); ++l) {
    const double scale = c.noisy() ? geometric / c.noise_std[l] : 1.0;
    low = std::min(low, scale * scale * c.squares[l]);
    high = std::max(high, scale * scale * c.squares[l]);
  }
  return high - low > kUnbalanced * (high + geometric * geometric);
}

bool is_oscillating(const SimulateSetup& setup, const Increments& increments, std::size_t element, const Coordinate& c,
                    std::int64_t window) {
  if (window < 8) return false;
  const double first = increments.first[element];
  const double second = increments.second[element];
  double squares = 0;
  for (const double s : c.squares) squares += s;
  const double step = std::sqrt(2 * second / static_cast<double>(window));
  const bool noiseless = setup.options.expected && setup.options.batch_size == 0;
  const double limit = noiseless ? kAlternatingExpected : kAlternating;
  return increments.lagged[element] <= limit * (first + second) && second >= 0.5 * first &&
         step > 1e-9 * std::sqrt(squares) && step > 0;
}

double elapsed(const SimulateOptions& o) {
  double time = o.lr * static_cast<double>(o.steps);
  if (o.harmonic_lr) {
    time = 0;
    for (std::int64_t k = o.steps; k >= 1; --k) time += o.lr / static_cast<double>(k);
  }
  return time;
}

// Step size above which gradient descent on O_R runs away from these weights, the other coordinates held: 2 / largest
// curvature.
double local_limit(const Coordinate& c) {
  const Weights weights(c.weights, c.depth());
  const double variance[1] = {c.variance};
  const std::vector<double> block =
      regularized_hessian(weights, View(&c.target, 1), c.noise(), Covariance(View(variance), 1));
  return 2 / symmetric_eigen(block, c.depth()).values.back();
}

class Explanation {
 public:
  explicit Explanation(const SimulateSetup& setup) : setup_(setup) { text_.precision(4); }

  std::string text() const { return text_.str(); }

  void bound(double value) {
    if (!std::isfinite(value)) return;
    text_ << " Gradient descent on O_R from this start is guaranteed to descend for lr < " << value << "; lr is "
          << setup_.options.lr << (setup_.options.expected ? "." : ", and a stochastic step has no such guarantee.");
  }

  void diverged(std::int64_t step, double step_size_bound) {
    text_ << "Diverged: the weights are not finite from step " << step << " on.";
    bound(step_size_bound);
    text_ << " Use a smaller lr, lr_decay=\"harmonic\", or radius";
    bool noisy = true;
    for (const double eta : setup_.options.noise_std) noisy = noisy && eta > 0;
    if (noisy && setup_.has_target() && setup_.options.noise_std.size() <= index(setup_.depth)) {
      const NoiseStd noise{View(setup_.options.noise_std)};
      text_ << "=" << projection_radius(setup_.options.target, noise, setup_.depth) << " (projection_radius)";
    }
    text_ << ".";
  }

  void collapsed(std::int64_t h, std::int64_t count, const Coordinate& c) {
    const double threshold = existence_threshold(c.noise(), c.depth());
    open("Collapsed to zero", h, count);
    text_ << "the target it sees is " << c.target << ", the existence threshold " << threshold;
    if (std::abs(c.target) < threshold) {
      text_ << ": the noise leaves no other minimum than 0. Use less noise.";
    } else if (c.depth() > 2) {
      text_ << ": a minimum near " << ShrinkageMap(c.noise(), c.depth()).product(c.target)
            << " exists, but with depth > 2 zero is a minimum too. Start from larger weights whose product has the "
               "target's sign.";
    } else {
      text_ << ": the minimum " << ShrinkageMap(c.noise(), c.depth()).product(c.target)
            << " exists and zero is a saddle. Run longer, or start from a product with the target's sign.";
    }
  }

  void unbalanced(std::int64_t h, std::int64_t count, const Coordinate& c) {
    open("Not balanced", h, count);
    const auto [low, high] = std::minmax_element(c.squares.begin(), c.squares.end());
    text_ << "the squared weights of the layers differ by " << *high - *low << ". ";
    if (!c.noisy()) {
      text_ << "Without noise in every layer nothing balances them.";
      return;
    }
    if (!c.equal_noise()) {
      text_ << "The layers' noise differs: |w_l| / noise_std_l becomes equal, not |w_l|. Run longer.";
      return;
    }
    const double time = elapsed(setup_.options);
    std::vector<double> rates = balancing_rate(Weights(c.weights, c.depth()), c.noise());
    std::erase(rates, 0.0);
    if (rates.empty()) return;
    const double rate = c.variance * *std::min_element(rates.begin(), rates.end());
    text_ << "Gaps close as exp(-rate t) with t the sum of the step sizes, " << time << " here, at rates from " << rate
          << " (4 noise_std^2 A_ij at the end; never below " << c.variance * balancing_rate_bound(c.noise(), c.depth())
          << "): " << rate * time << " e-foldings. "
          << (rate * time < kSettled
                  ? "Run longer, with larger steps or more noise."
                  : "That is long enough: steps of this size keep the layers apart. Use a smaller lr "
                    "or lr_decay=\"harmonic\".");
  }

  void oscillating(std::int64_t h, std::int64_t count, const Coordinate& c, double step_size_bound) {
    open("Oscillating", h, count);
    text_ << "successive steps undo each other. The curvature at the end allows lr < " << local_limit(c) << ".";
    bound(step_size_bound);
    text_ << " Use a smaller lr or lr_decay=\"harmonic\".";
  }

 private:
  void open(const char* what, std::int64_t h, std::int64_t count) {
    text_ << (text_.str().empty() ? "" : "\n") << what << ": coordinate " << h;
    if (count > 1) text_ << " and " << count - 1 << " more";
    text_ << ", where ";
  }

  const SimulateSetup& setup_;
  std::ostringstream text_;
};

std::vector<Coordinate> end_of(const SimulateSetup& setup, std::int64_t replicate, const SimulationResult& result) {
  const std::int64_t d = setup.features;
  const std::size_t records = setup.records.size();
  const std::size_t tail = std::max<std::size_t>(1, records / 4);
  std::vector<Coordinate> coordinates(index(d));
  std::vector<double> product(index(d), 0.0);
  for (std::int64_t h = 0; h < d; ++h) {
    Coordinate& c = coordinates[index(h)];
    c.variance = setup.variance[index(h)];
    c.squares.assign(index(setup.depth), 0.0);
    for (std::size_t record = records - tail; record < records; ++record) {
      const auto pair = record * index(setup.replicates) + index(replicate);
      const double p = result.product[pair * index(d) + index(h)];
      product[index(h)] += p / static_cast<double>(tail);
      c.size += std::abs(p) / static_cast<double>(tail);
      for (std::int64_t layer = 0; layer < setup.depth; ++layer) {
        const double w = result.weights[(pair * index(setup.depth) + index(layer)) * index(d) + index(h)];
        c.squares[index(layer)] += w * w / static_cast<double>(tail);
        if (record + 1 == records) c.weights.push_back(w);
      }
    }
    for (std::int64_t layer = 0; layer < setup.depth; ++layer) c.noise_std.push_back(setup.noise_std(layer, h));
  }
  const std::vector<double> pull = setup.pull(product);
  for (std::size_t h = 0; h < coordinates.size(); ++h) {
    coordinates[h].target = coordinates[h].variance > 0 ? product[h] + pull[h] / coordinates[h].variance : 0.0;
  }
  return coordinates;
}

}  // namespace

double initial_step_size_bound(const SimulateSetup& setup, std::int64_t replicate) {
  const std::int64_t d = setup.features;
  const bool per_weight = setup.options.noise_std.size() > index(setup.depth);
  for (const double eta : setup.options.noise_std) {
    if (eta == 0) return kNan;
  }
  for (const double variance : setup.variance) {
    if (variance == 0) return kNan;
  }
  if (!setup.has_target() || (setup.examples > 0 && setup.data_covariance.empty())) return kNan;
  std::vector<double> weights;
  for (std::int64_t layer = 0; layer < setup.depth; ++layer) {
    for (std::int64_t h = 0; h < d; ++h) weights.push_back(setup.init(replicate, layer, h));
  }
  if (!per_weight) {
    const NoiseStd noise{View(setup.options.noise_std)};
    const Covariance sigma = setup.examples > 0 ? Covariance(setup.data_covariance, d) : setup.sigma;
    return step_size_bound(Weights(weights, setup.depth), setup.options.target, noise, sigma);
  }
  if (setup.full_covariance || setup.examples > 0) return kNan;
  double smallest = std::numeric_limits<double>::infinity();
  for (std::int64_t h = 0; h < d; ++h) {
    std::vector<double> column, noise;
    for (std::int64_t layer = 0; layer < setup.depth; ++layer) {
      column.push_back(weights[index(layer * d + h)]);
      noise.push_back(setup.noise_std(layer, h));
    }
    smallest =
        std::min(smallest, step_size_bound(Weights(column, setup.depth), View(&setup.options.target[index(h)], 1),
                                           NoiseStd(View(noise)), Covariance(View(&setup.variance[index(h)], 1), 1)));
  }
  return smallest;
}

void measure_record(const SimulateSetup& setup, std::size_t record, std::int64_t replicate, SimulationResult& result) {
  const std::int64_t d = setup.features;
  const std::size_t pair = record * index(setup.replicates) + index(replicate);
  double* weights = result.weights.data() + pair * index(setup.depth * d);
  double* product = result.product.data() + pair * index(d);
  const std::int64_t diverged_at = result.diverged_at[index(replicate)];
  if (diverged_at >= 0 && setup.records[record] >= diverged_at) {
    std::fill_n(weights, setup.depth * d, kNan);
    std::fill_n(product, d, kNan);
    result.loss[pair] = result.balance_gap[pair] = kNan;
    return;
  }
  double gap = 0;
  for (std::int64_t h = 0; h < d; ++h) {
    double low = std::abs(weights[h]);
    double high = low;
    product[h] = 1;
    for (std::int64_t layer = 0; layer < setup.depth; ++layer) {
      const double w = weights[layer * d + h];
      product[h] *= w;
      low = std::min(low, std::abs(w));
      high = std::max(high, std::abs(w));
    }
    gap = std::max(gap, (high - low) * (high + low));
  }
  result.balance_gap[pair] = gap;
  result.loss[pair] = setup.loss(View(weights, index(setup.depth * d)), View(product, index(d)));
}

void diagnose_replicate(const SimulateSetup& setup, const Increments& increments, std::int64_t replicate,
                        SimulationResult& result) {
  const std::size_t r = index(replicate);
  Explanation explanation(setup);
  if (result.diverged_at[r] >= 0) {
    explanation.diverged(result.diverged_at[r], result.step_size_bound[r]);
    result.explanations[r] = explanation.text();
    return;
  }
  const std::vector<Coordinate> coordinates = end_of(setup, replicate, result);
  const std::int64_t window = std::min(kIncrementWindow, setup.options.steps / 2);
  std::int64_t collapsed = 0, unbalanced = 0, oscillating = 0;  // how many
  std::size_t first_collapsed = 0, first_unbalanced = 0, first_oscillating = 0;
  for (std::size_t h = 0; h < coordinates.size(); ++h) {
    const Coordinate& c = coordinates[h];
    if (is_collapsed(c) && collapsed++ == 0) first_collapsed = h;
    if (is_unbalanced(c) && unbalanced++ == 0) first_unbalanced = h;
    if (is_oscillating(setup, increments, r * coordinates.size() + h, c, window) && oscillating++ == 0)
      first_oscillating = h;
  }
  result.collapsed[r] = collapsed > 0;
  result.unbalanced[r] = unbalanced > 0;
  result.oscillating[r] = oscillating > 0;
  const auto number = [](std::size_t h) { return static_cast<std::int64_t>(h); };
  if (collapsed > 0) explanation.collapsed(number(first_collapsed), collapsed, coordinates[first_collapsed]);
  if (oscillating > 0) {
    explanation.oscillating(number(first_oscillating), oscillating, coordinates[first_oscillating],
                            result.step_size_bound[r]);
  }
  if (unbalanced > 0) explanation.unbalanced(number(first_unbalanced), unbalanced, coordinates[first_unbalanced]);
  result.explanations[r] = explanation.text();
}

}  // namespace torch_ssam::theory
