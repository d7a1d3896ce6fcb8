// One step of S-SAM, or of gradient descent on O_R, on a group of elements: the loops over the bodies of csrc/math,
// compiled once for each instruction set (TORCH_SSAM_VARIANT names it). Nothing here may have external linkage but the
// function at the end (see csrc/math/portable.h), so no standard library and nothing inline from csrc/theory.
// Every sum has one fixed order, so bits depend on neither variant, group nor thread. Notation of docs/theory.md.
// Tests: tests/cpp/test_simulate.cpp, tests/python/test_simulate*.py.
#include "simulate_kernels.h"

#include "../math/diagonal.h"
#include "../math/noise_blocks.h"
#include "../math/reduce.h"
#include "../math/rules/sgd.h"

#define TORCH_SSAM_CONCAT_(a, b) a##b
#define TORCH_SSAM_CONCAT(a, b) TORCH_SSAM_CONCAT_(a, b)
#define TORCH_SSAM_STRING_(a) #a
#define TORCH_SSAM_STRING(a) TORCH_SSAM_STRING_(a)

namespace torch_ssam::theory {
namespace {

using math::kGaussianBlock;
using math::kLanes;
using math::NoiseBlocks;
using math::NoiseStream;
using std::int64_t;

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

void perturb_block(const float* __restrict noise, int64_t n, const double* __restrict noise_std,
                   const double* __restrict clean, double* __restrict perturbed) {
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) perturbed[i] = math::perturb_element(clean[i], noise_std[i], noise[i]);
}

// perturbed <- weights + xi_k, row by row.
template <math::Distribution kDistribution>
void perturb(const SimulateGroup& g, int64_t step, const double* weights, double* perturbed) {
  alignas(64) float noise[kGaussianBlock];
  for (int64_t layer = 0; layer < g.depth; ++layer) {
    NoiseBlocks<kDistribution> blocks(math::make_noise_stream(g.seed, step, layer, 0));
    const int64_t row = layer * g.stride;
    int64_t done = 0;
    while (done < g.count) {
      const int64_t element = g.first_element + done;
      const int64_t inside = element % kGaussianBlock;
      const int64_t n = smaller(kGaussianBlock - inside, g.count - done);
      blocks.generate(element / kGaussianBlock, noise);
      const int64_t at = row + done;
      if (n == kGaussianBlock) {
        perturb_block(noise, kGaussianBlock, g.noise_std + at, weights + at, perturbed + at);
      } else {
        perturb_block(noise + inside, n, g.noise_std + at, weights + at, perturbed + at);
      }
      done += n;
    }
    for (int64_t i = g.count; i < g.stride; ++i) perturbed[row + i] = 0;
  }
}

// The usual row, one block of noise, as a constant, so that its loops are unrolled; any other as it comes.
template <int64_t kStride>
int64_t row_length(const SimulateGroup& g) {
  return kStride > 0 ? kStride : g.stride;
}

// prefix[l] <- v_1 ... v_(l-1), product <- p.
template <int64_t kStride>
void multiply_up(const SimulateGroup& g, const double* __restrict v, double* __restrict prefix,
                 double* __restrict product) {
  const int64_t stride = row_length<kStride>(g);
  for (int64_t i = 0; i < stride; ++i) product[i] = 1;
  for (int64_t layer = 0; layer < g.depth; ++layer) {
    const double* __restrict w = v + layer * stride;
    double* __restrict before = prefix + layer * stride;
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = 0; i < stride; ++i) {
      before[i] = product[i];
      product[i] = math::diagonal_extend(product[i], w[i]);
    }
  }
}

TORCH_SSAM_BODY double descend_element(double weight, double gradient, double lr) {
  double no_buffer[1] = {};
  return math::Sgd::update_element<math::Sgd::Kind::plain>(
      weight, gradient, no_buffer, math::Sgd::params<double>({lr, 0, 0, 0, false, false}, /*step=*/1));
}

// dO / dp of a coordinate that does not need the others.
TORCH_SSAM_BODY double separable_slope(double variance, double target, double product) {
  return -2 * variance * (target - product);
}

// weights <- weights - lr P_i slope, from the last layer down.
template <int64_t kStride>
void descend(const SimulateGroup& g, double lr, const double* __restrict v, const double* __restrict prefix,
             const double* __restrict slope, double* __restrict suffix, double* __restrict weights) {
  const int64_t stride = row_length<kStride>(g);
  for (int64_t i = 0; i < stride; ++i) suffix[i] = 1;
  for (int64_t layer = g.depth - 1; layer >= 0; --layer) {
    const double* __restrict perturbed = v + layer * stride;
    const double* __restrict before = prefix + layer * stride;
    double* __restrict w = weights + layer * stride;
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = 0; i < stride; ++i) {
      w[i] = descend_element(w[i], math::diagonal_layer_gradient(before[i], suffix[i], slope[i]), lr);
      suffix[i] = math::diagonal_extend(suffix[i], perturbed[i]);
    }
  }
}

// The same for g_i = slope P_i + 2 Sigma_hh w_i (A_i - P_i^2) at the clean weights. A - P^2 is built factor by factor,
//   (A a) - (P w)^2 = (A - P^2) a + P^2 eta^2 with a = w^2 + eta^2,
// so nothing cancels. `gaps` holds A - P^2 of the layers before each.
template <int64_t kStride>
void descend_expected(const SimulateGroup& g, double lr, const double* __restrict prefix,
                      const double* __restrict slope, double* __restrict gaps, double* __restrict rows,
                      double* __restrict weights) {
  const int64_t stride = row_length<kStride>(g);
  double* __restrict plain = rows;
  double* __restrict second = rows + stride;
  double* __restrict gap = rows + 2 * stride;
  for (int64_t i = 0; i < stride; ++i) gap[i] = 0;
  for (int64_t layer = 0; layer < g.depth; ++layer) {
    const double* __restrict w = weights + layer * stride;
    const double* __restrict eta = g.noise_std + layer * stride;
    const double* __restrict before = prefix + layer * stride;
    double* __restrict gap_before = gaps + layer * stride;
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = 0; i < stride; ++i) {
      const double variance = eta[i] * eta[i];
      const double a = math::fused_multiply_add(w[i], w[i], variance);
      gap_before[i] = gap[i];
      gap[i] = math::fused_multiply_add(gap[i], a, before[i] * before[i] * variance);
    }
  }
  for (int64_t i = 0; i < stride; ++i) {
    plain[i] = 1;
    second[i] = 1;
    gap[i] = 0;
  }
  for (int64_t layer = g.depth - 1; layer >= 0; --layer) {
    const double* __restrict eta = g.noise_std + layer * stride;
    const double* __restrict before = prefix + layer * stride;
    const double* __restrict gap_before = gaps + layer * stride;
    double* __restrict w = weights + layer * stride;
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = 0; i < stride; ++i) {
      const double old = w[i];
      const double variance = eta[i] * eta[i];
      const double a = math::fused_multiply_add(old, old, variance);
      const double excess = math::fused_multiply_add(gap_before[i], second[i], before[i] * before[i] * gap[i]);
      const double gradient = math::fused_multiply_add(2 * g.variance[i] * old, excess,
                                                       math::diagonal_layer_gradient(before[i], plain[i], slope[i]));
      w[i] = descend_element(old, gradient, lr);
      gap[i] = math::fused_multiply_add(gap[i], a, plain[i] * plain[i] * variance);
      plain[i] = math::diagonal_extend(plain[i], old);
      second[i] *= a;
    }
  }
}

// A whole step of coordinates that do not need each other, one block of noise wide, with the layers of a coordinate in
// registers: the loops above with prefix, suffix and product unrolled, so the same operations in the same order.
template <int kDepth>
void step_block(const SimulateGroup& g, double lr, const float* __restrict noise, double* __restrict weights) {
  const double* __restrict noise_std = g.noise_std;
  const double* __restrict target = g.target;
  const double* __restrict variance = g.variance;
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < kGaussianBlock; ++i) {
    double v[kDepth], before[kDepth];
    double product = 1;
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kDepth; ++l) {
      const int64_t at = l * kGaussianBlock + i;
      v[l] = math::perturb_element(weights[at], noise_std[at], noise[at]);
      before[l] = product;
      product = math::diagonal_extend(product, v[l]);
    }
    const double slope = separable_slope(variance[i], target[i], product);
    double suffix = 1;
    TORCH_SSAM_UNROLL
    for (int l = kDepth - 1; l >= 0; --l) {
      const int64_t at = l * kGaussianBlock + i;
      weights[at] = descend_element(weights[at], math::diagonal_layer_gradient(before[l], suffix, slope), lr);
      suffix = math::diagonal_extend(suffix, v[l]);
    }
  }
}

double dot(const double* __restrict a, const double* __restrict b, int64_t count) {
  double lanes[kLanes] = {};
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = math::fused_multiply_add(a[i + l], b[i + l], lanes[l]);
  }
  for (int64_t i = whole; i < count; ++i) lanes[i - whole] = math::fused_multiply_add(a[i], b[i], lanes[i - whole]);
  return math::add_lanes(lanes);
}

// Example number b of a replicate's mini-batch: word j of counter c is that of draw 4 c + j; all words are scaled to
// [0, examples), which favours some examples by at most examples / 2^32.
int64_t chosen_example(const SimulateGroup& g, const NoiseStream& stream, int64_t draw) {
  const auto counter = static_cast<uint64_t>(draw / 4);
  const math::Words4 w =
      math::noise_words(stream, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32));
  const uint32_t words[4] = {w.x0, w.x1, w.x2, w.x3};
  return static_cast<int64_t>((static_cast<uint64_t>(words[draw % 4]) * static_cast<uint64_t>(g.examples)) >> 32);
}

// slope <- -2 Sigma (w* - p), or -2 mean of (y - x p) x over the batch.
template <int64_t kStride>
void loss_slope(const SimulateGroup& g, int64_t step, const double* __restrict product, double* __restrict residual,
                double* __restrict slope) {
  const int64_t stride = row_length<kStride>(g);
  if (g.covariance == nullptr && g.inputs == nullptr) {
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = 0; i < stride; ++i) slope[i] = separable_slope(g.variance[i], g.target[i], product[i]);
    return;
  }
  for (int64_t i = 0; i < stride; ++i) slope[i] = 0;
  const int64_t d = g.features;
  const NoiseStream stream = math::make_noise_stream(g.seed, step, kBatchPlace, 0);
  for (int64_t begin = 0; begin < g.count; begin += d) {
    double* __restrict sum = slope + begin;
    const double* __restrict p = product + begin;
    if (g.inputs != nullptr) {
      const int64_t n = g.batch_size == 0 ? g.examples : g.batch_size;
      const int64_t replicate = (g.first_element + begin) / d;
      for (int64_t b = 0; b < n; ++b) {
        const int64_t example = g.batch_size == 0 ? b : chosen_example(g, stream, replicate * n + b);
        const double* __restrict x = g.inputs + example * d;
        const double error = g.labels[example] - dot(x, p, d);
        TORCH_SSAM_INDEPENDENT
        for (int64_t h = 0; h < d; ++h) sum[h] = math::fused_multiply_add(error, x[h], sum[h]);
      }
      const double factor = -2.0 / static_cast<double>(n);
      for (int64_t h = 0; h < d; ++h) sum[h] *= factor;
    } else {
      for (int64_t h = 0; h < d; ++h) residual[h] = -2 * (g.target[begin + h] - p[h]);
      for (int64_t k = 0; k < d; ++k) {
        const double* __restrict row = g.covariance + k * d;
        TORCH_SSAM_INDEPENDENT
        for (int64_t h = 0; h < d; ++h) sum[h] = math::fused_multiply_add(residual[k], row[h], sum[h]);
      }
    }
  }
}

void project(const SimulateGroup& g, double* weights) {
  for (int64_t begin = 0; begin < g.count; begin += g.features) {
    double lanes[kLanes] = {};
    for (int64_t layer = 0; layer < g.depth; ++layer) {
      const double* w = weights + layer * g.stride + begin;
      for (int64_t i = 0; i < g.features; ++i)
        lanes[i % kLanes] = math::SumOfSquares::accumulate(lanes[i % kLanes], w[i]);
    }
    const math::Projection projection = math::make_projection(math::add_lanes(lanes), g.radius);
    if (!projection.outside) continue;
    for (int64_t layer = 0; layer < g.depth; ++layer) {
      double* w = weights + layer * g.stride + begin;
      for (int64_t i = 0; i < g.features; ++i) w[i] = math::scale_element(w[i], projection.factor);
    }
  }
}

double step_size(const SimulateGroup& g, int64_t step) {
  return g.harmonic ? g.lr / static_cast<double>(step + 1) : g.lr;
}

template <int64_t kStride>
void advance_rows(const SimulateGroup& g, int64_t first_step, int64_t steps, double* weights, double* scratch) {
  const int64_t size = g.depth * g.stride;
  double* prefix = scratch;
  double* perturbed = prefix + size;
  double* gaps = perturbed + size;
  double* product = gaps + size;
  double* slope = product + g.stride;
  double* rows = slope + g.stride;
  for (int64_t step = first_step; step < first_step + steps; ++step) {
    const double lr = step_size(g, step);
    if (g.expected) {
      multiply_up<kStride>(g, weights, prefix, product);
      loss_slope<kStride>(g, step, product, rows, slope);
      descend_expected<kStride>(g, lr, prefix, slope, gaps, rows, weights);
    } else {
      math::with_distribution(g.distribution, [&]<math::Distribution kDistribution>() {
        perturb<kDistribution>(g, step, weights, perturbed);
      });
      multiply_up<kStride>(g, perturbed, prefix, product);
      loss_slope<kStride>(g, step, product, rows, slope);
      descend<kStride>(g, lr, perturbed, prefix, slope, rows, weights);
    }
    if (g.radius > 0) project(g, weights);
  }
}

// The noise of one step in a group that is one block: layer after layer.
template <math::Distribution kDistribution>
void block_noise(const SimulateGroup& g, int64_t step, float* values) {
  for (int64_t layer = 0; layer < g.depth; ++layer) {
    NoiseBlocks<kDistribution> blocks(math::make_noise_stream(g.seed, step, layer, 0));
    blocks.generate(g.first_element / kGaussianBlock, values + layer * kGaussianBlock);
  }
}

template <math::Distribution kDistribution, int kDepth>
void advance_block(const SimulateGroup& g, int64_t first_step, int64_t steps, double* weights) {
  alignas(64) float noise[kDepth * kGaussianBlock];
  for (int64_t step = first_step; step < first_step + steps; ++step) {
    block_noise<kDistribution>(g, step, noise);
    step_block<kDepth>(g, step_size(g, step), noise, weights);
  }
}

template <int kDepth>
void advance_block(const SimulateGroup& g, int64_t first_step, int64_t steps, double* weights) {
  math::with_distribution(g.distribution, [&]<math::Distribution kDistribution>() {
    advance_block<kDistribution, kDepth>(g, first_step, steps, weights);
  });
}

void advance(const SimulateGroup& g, int64_t first_step, int64_t steps, double* weights, double* scratch) {
  if (g.stride != kGaussianBlock) return advance_rows<0>(g, first_step, steps, weights, scratch);
  const bool coupled = g.covariance != nullptr || g.inputs != nullptr || g.radius > 0;
  if (!coupled && !g.expected && g.first_element % kGaussianBlock == 0) {
    if (g.depth == 2) return advance_block<2>(g, first_step, steps, weights);
    if (g.depth == 3) return advance_block<3>(g, first_step, steps, weights);
    if (g.depth == 4) return advance_block<4>(g, first_step, steps, weights);
  }
  advance_rows<kGaussianBlock>(g, first_step, steps, weights, scratch);
}

void noise_alone(const SimulateGroup& g, int64_t first_step, int64_t steps, float* values) {
  for (int64_t step = first_step; step < first_step + steps; ++step) {
    math::with_distribution(g.distribution,
                            [&]<math::Distribution kDistribution>() { block_noise<kDistribution>(g, step, values); });
  }
}

constexpr SimulateKernels kTable = {TORCH_SSAM_STRING(TORCH_SSAM_VARIANT), advance, noise_alone};

}  // namespace

const SimulateKernels* TORCH_SSAM_CONCAT(simulate_kernels_, TORCH_SSAM_VARIANT)() { return &kTable; }

}  // namespace torch_ssam::theory
