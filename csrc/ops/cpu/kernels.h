// The table of inner loops. csrc/ops/cpu/kernels.cpp is compiled once for every instruction set into one such table;
// capability.cpp picks one at run time. Loops see raw contiguous memory and plain parameters: no tensors, no threads.
// They are indexed by the pair of dtypes (master, model), or where one of them is all that matters by the master's.
// Tests: tests/cpp/test_kernels.cpp compares the tables bit for bit.
#pragma once

#include <cstdint>

#include "../../math/noise.h"
#include "../../math/rules.h"
#include "../../math/scale.h"
#include "../../math/shard.h"
#include "../../math/storage.h"

namespace torch_ssam::cpu {

using math::DtypePair;
using math::kDtypePairs;
using math::kDtypes;

struct NoiseArgs {
  math::NoiseStream stream;
  math::Distribution distribution;
  double noise_std;  // negative for the second half of an antithetic pair
  math::Scale scale = math::Scale::isotropic;
  // Of the whole tensor, or of the whole shard: element i belongs to row i / row_length, modulo `rows` where that is
  // not 0.
  const float* row_scales = nullptr;
  int64_t row_length = 1;
  int64_t rows = 0;
  // Of a shard: where its first element lies in the whole tensor, or, if it is not one run, the map to it.
  int64_t origin = 0;
  const math::Shard* shard = nullptr;
  bool alone = false;  // by element: writes what it would add to the weights
  // Saved copies of plain noise, and parameters that are made from clean weights beside them, go past the caches
  // (stream.h): a matter of speed alone.
  bool streams = false;
  // What will be read after this call, from as many elements on; fetched while noise is made. Null for nothing.
  const void* next[6] = {};
};

// Elements [begin, begin + count) of one tensor; every pointer already points at element `begin`.
struct Span {
  int64_t begin;
  int64_t count;
};

struct DiagonalArgs {
  int64_t layers;
  int64_t features;  // of the whole weight: the noise of layer l, coordinate h is that of element l * features + h
  NoiseArgs noise;
  bool noisy;
};

// The loops of one rule. `step` is that of the tensor, or 0; `buffers` are as many as the rule's kind has.
template <typename Rule>
struct UpdateKernels {
  // weights <- update(weights, grad, buffers)
  void (*update[kDtypePairs])(const Rule&, int64_t step, Span, void* weights, const void* grad, void* const* buffers);

  // clean <- update(clean, grad, buffers); perturbed <- clean + noise: one pass over memory. With noise_std 0 no noise
  // is made: perturbed <- clean, rounded.
  void (*update_and_perturb[kDtypePairs])(const Rule&, int64_t step, const NoiseArgs&, Span, void* clean,
                                          const void* grad, void* const* buffers, void* perturbed);
};

template <typename List>
struct EachRule;
template <typename... Rules>
struct EachRule<math::RuleList<Rules...>> : UpdateKernels<Rules>... {
  template <typename Rule>
  const UpdateKernels<Rule>& of() const {
    return *this;
  }
};

struct Kernels {
  const char* name;

  // saved <- weights (where not null); perturbed <- weights + noise. `weights` may be `perturbed`.
  void (*perturb[kDtypePairs])(const NoiseArgs&, Span, const void* weights, void* saved, void* perturbed);

  EachRule<math::Rules> rules;

  // params <- clean, each rounded to how parameters are stored.
  void (*round[kDtypePairs])(const void* clean, void* params, int64_t count);

  // clean <- params, where a parameter is not the rounding of its clean weight.
  void (*follow[kDtypePairs])(void* clean, const void* params, int64_t count);

  // target <- source, past the caches: for more than they hold (segments.h says when).
  void (*stream_copy)(void* target, const void* source, int64_t bytes);

  // Reductions of a piece of a row (csrc/math/reduce.h), and multiplication by a number: projection onto a ball.
  double (*sum_of_squares[kDtypes])(const void* weights, int64_t count);
  double (*largest_magnitude[kDtypes])(const void* weights, int64_t count);
  void (*scale[kDtypes])(double factor, void* weights, int64_t count);
  // weights <- those of a row, at most `limit` in size.
  void (*clip[kDtypes])(double limit, void* weights, int64_t count);

  // One chunk of coordinates [begin, begin + count) of the diagonal product. `layers` and the other buffers hold
  // opmath values: (layers, count) and (count). `product` may be null, and without noise `layers`.
  void (*diagonal_load[kDtypes])(const DiagonalArgs&, Span, const void* weight, void* layers, void* product);
  void (*diagonal_multiply[kDtypePairs])(const void* product, const void* input, void* output, int64_t count);
  // The sum of product * input over a chunk of one row, and one element of the output from the sums of its chunks.
  double (*diagonal_readout[kDtypePairs])(const void* product, const void* input, int64_t count);
  void (*diagonal_combine[kDtypePairs])(const double* parts, int64_t count, void* output);
  // sum <- sum over `rows` of grad * input, and output <- grad * product row by row, in one pass over grad; sum or
  // output may be null. Row r of grad starts at r * grad_stride and has `count` elements, or one where `spread`. One
  // segment of the fixed order: the caller adds segments up with diagonal_add.
  void (*diagonal_backward_rows[kDtypePairs])(const void* grad, int64_t grad_stride, bool spread, const void* input,
                                              void* output, int64_t row_stride, int64_t rows, int64_t count,
                                              const void* product, void* sum);
  void (*diagonal_add[kDtypes])(void* total, const void* sum, int64_t count);
  // Layers are opmath values, layer_stride apart. `scratch` takes a prefix and suffix products: (depth, count).
  void (*diagonal_weight_gradient[kDtypes])(int64_t depth, int64_t features, const void* total, const void* layers,
                                            int64_t layer_stride, void* scratch, void* grad_weight, int64_t count);
};

// Null where the build has no such variant.
const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
const Kernels* kernels_plain();

// The table in use: the best the processor has, or the one that TORCH_SSAM_CPU_CAPABILITY names.
const Kernels& kernels();
bool select_kernels(const char* name);  // false where the processor or the build lacks it

}  // namespace torch_ssam::cpu
