// The inner loops over the bodies of csrc/math, compiled once for each instruction set (TORCH_SSAM_VARIANT names it).
// Loops of fixed length over 16 lanes or 64 elements, so that the compiler vectorises them whole. Noise goes through a
// buffer of one block that stays in the first-level cache: one generator serves every dtype, stride and use of it.
// Nothing here may have external linkage but the one function at the end (see csrc/math/portable.h), so no standard
// library. Tests: tests/cpp/test_kernels.cpp, tests/cpp/test_linkage.cpp.

#include "kernels.h"

#include "../../math/diagonal.h"
#include "../../math/noise_blocks.h"
#include "../../math/reduce.h"
#include "../../math/stored.h"
#include "stream.h"

#define TORCH_SSAM_CONCAT_(a, b) a##b
#define TORCH_SSAM_CONCAT(a, b) TORCH_SSAM_CONCAT_(a, b)
#define TORCH_SSAM_STRING_(a) #a
#define TORCH_SSAM_STRING(a) TORCH_SSAM_STRING_(a)

namespace torch_ssam::cpu {
namespace {

using math::Distribution;
using math::kGaussianBlock;
using math::kLanes;
using math::load_scalar;
using math::NoiseBlocks;
using math::NoiseStream;
using math::opmath_t;
using math::Store;

// Of one block of noise, as stored.
template <typename scalar_t>
constexpr int64_t kBytes = kGaussianBlock * static_cast<int64_t>(sizeof(scalar_t));

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls body(noise, offset, n): n values of noise for the elements begin + offset, ...; n is 64 but at the two ends.
template <Distribution kDistribution, typename Body>
inline __attribute__((always_inline)) void for_each_noise_block(const NoiseStream& stream, Span span, Body body) {
  NoiseBlocks<kDistribution> blocks(stream);
  alignas(64) float values[kGaussianBlock];
  int64_t done = 0;
  while (done < span.count) {
    const int64_t element = span.begin + done;
    const int64_t inside = element % kGaussianBlock;
    const int64_t n = smaller(kGaussianBlock - inside, span.count - done);
    blocks.generate(element / kGaussianBlock, values);
    if (n == kGaussianBlock) {
      body(values, done, kGaussianBlock);
    } else {
      body(values + inside, done, n);
    }
    done += n;
  }
}

template <typename Body>
inline __attribute__((always_inline)) void with_noise(const NoiseStream& stream, Distribution distribution, Span span,
                                                      Body body) {
  if (distribution == Distribution::gaussian) {
    for_each_noise_block<Distribution::gaussian>(stream, span, body);
  } else {
    for_each_noise_block<Distribution::rademacher>(stream, span, body);
  }
}

// The same for elements of a shard that is not one run: noise is collected run by run, from blocks of 64 neighbours in
// the whole tensor, each made once a time that the runs come by it.
template <Distribution kDistribution, typename Body>
inline __attribute__((always_inline)) void for_each_collected_block(const NoiseStream& stream, const math::Shard& shard,
                                                                    Span span, Body body) {
  NoiseBlocks<kDistribution> blocks(stream);
  alignas(64) float values[kGaussianBlock];
  alignas(64) float collected[kGaussianBlock];
  int64_t made = -1;  // the block that `values` hold
  for (int64_t done = 0; done < span.count;) {
    const int64_t n = smaller(kGaussianBlock, span.count - done);
    for (int64_t i = 0; i < n;) {
      const int64_t element = span.begin + done + i;
      const int64_t whole = math::whole_element(shard, element);
      const int64_t inside = whole % kGaussianBlock;
      const int64_t count = smaller(smaller(n - i, kGaussianBlock - inside), math::left_in_run(shard, element));
      if (whole / kGaussianBlock != made) {
        made = whole / kGaussianBlock;
        blocks.generate(made, values);
      }
      for (int64_t k = 0; k < count; ++k) collected[i + k] = values[inside + k];
      i += count;
    }
    body(collected, done, n);
    done += n;
  }
}

template <typename Body>
inline __attribute__((always_inline)) void with_noise_of(const NoiseArgs& args, Span span, Body body) {
  if (args.shard == nullptr) {
    with_noise(args.stream, args.distribution, Span{args.origin + span.begin, span.count}, body);
  } else if (args.distribution == Distribution::gaussian) {
    for_each_collected_block<Distribution::gaussian>(args.stream, *args.shard, span, body);
  } else {
    for_each_collected_block<Distribution::rademacher>(args.stream, *args.shard, span, body);
  }
}

void fill_noise(const NoiseStream& stream, Distribution distribution, Span span, float* values) {
  with_noise(stream, distribution, span, [=](const float* noise, int64_t offset, int64_t n) {
    for (int64_t i = 0; i < n; ++i) values[offset + i] = noise[i];
  });
}

// The noise of the elements element, element + 1, ..., each times the scale of its row.
void scale_by_rows(const NoiseArgs& args, int64_t element, const float* noise, int64_t n, float* scaled) {
  int64_t row = element / args.row_length;
  int64_t left = args.row_length - element % args.row_length;  // in this row
  for (int64_t i = 0; i < n; ++row, left = args.row_length) {
    const float scale = args.row_scales[row];
    const int64_t end = smaller(n, i + left);
    TORCH_SSAM_INDEPENDENT
    for (int64_t k = i; k < end; ++k) scaled[k] = math::scale_noise(noise[k], scale);
    i = end;
  }
}

template <typename master_t, typename model_t>
void round(const void* clean_, void* params_, int64_t count) {
  const auto* clean = static_cast<const master_t*>(clean_);
  auto* params = static_cast<model_t*>(params_);
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) params[i] = math::round_stored<model_t>(clean[i]);
}

constexpr int64_t kStreamBlock = 256;  // bytes at a time

void stream_copy(void* target_, const void* source_, int64_t bytes) {
  auto* target = static_cast<char*>(target_);
  const auto* source = static_cast<const char*>(source_);
  int64_t done = 0;
  while (done < bytes && !can_stream(target + done)) {
    target[done] = source[done];
    ++done;
  }
  for (; done + kStreamBlock <= bytes; done += kStreamBlock) {
    fetch_ahead<kStreamBlock>(source + done);
    stream_block<kStreamBlock>(target + done, source + done);
  }
  __builtin_memcpy(target + done, source + done, static_cast<size_t>(bytes - done));
  end_of_stream();
}

// Whether the noise is that of whole tensors, or of one run in them, without scales: what most calls ask for.
bool is_plain(const NoiseArgs& args) { return args.scale == math::Scale::isotropic && args.shard == nullptr; }

// perturb for all other noise: a loop of its own, so that the plain one stays as it is.
template <typename master_t, typename model_t>
void perturb_any(const NoiseArgs& args, Span span, const master_t* weights, master_t* saved, model_t* perturbed) {
  const auto noise_std = static_cast<opmath_t<master_t>>(args.noise_std);
  const math::Scale scale = args.scale;
  const bool noise_only = args.noise_only;
  with_noise_of(args, span, [=, &args](const float* noise, int64_t offset, int64_t n) {
    const master_t* clean = weights + offset;
    model_t* target = perturbed + offset;
    for (int64_t i = 0; saved != nullptr && i < n; ++i) saved[offset + i] = clean[i];
    if (scale == math::Scale::isotropic) {
      TORCH_SSAM_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) target[i] = math::perturb_stored<model_t>(clean[i], noise_std, noise[i]);
    } else if (scale == math::Scale::rows) {
      alignas(64) float scaled[kGaussianBlock];
      scale_by_rows(args, span.begin + offset, noise, n, scaled);
      TORCH_SSAM_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) target[i] = math::perturb_stored<model_t>(clean[i], noise_std, scaled[i]);
    } else {
      TORCH_SSAM_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        target[i] = math::perturb_stored_by_element<model_t>(clean[i], noise_std, noise[i], noise_only);
      }
    }
  });
}

template <typename master_t, typename model_t>
void perturb(const NoiseArgs& args, Span span, const void* weights_, void* saved_, void* perturbed_) {
  using math_t = opmath_t<master_t>;
  const auto* weights = static_cast<const master_t*>(weights_);
  auto* saved = static_cast<master_t*>(saved_);
  auto* perturbed = static_cast<model_t*>(perturbed_);
  const auto noise_std = static_cast<math_t>(args.noise_std);
  const Span of_whole{args.origin + span.begin, span.count};
  if (!is_plain(args)) {
    perturb_any(args, span, weights, saved, perturbed);
  } else if (saved != nullptr) {
    const bool streams = args.streams;
    with_noise(args.stream, args.distribution, of_whole, [=](const float* noise, int64_t offset, int64_t n) {
      if (streams) fetch_ahead<kBytes<model_t>>(perturbed + offset);
      if (streams && n == kGaussianBlock && can_stream(saved + offset)) {
        stream_block<kBytes<master_t>>(saved + offset, weights + offset);
        TORCH_SSAM_INDEPENDENT
        for (int64_t i = 0; i < kGaussianBlock; ++i) {
          perturbed[offset + i] = math::perturb_stored<model_t>(weights[offset + i], noise_std, noise[i]);
        }
        return;
      }
      TORCH_SSAM_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        const master_t clean = weights[offset + i];
        saved[offset + i] = clean;
        perturbed[offset + i] = math::perturb_stored<model_t>(clean, noise_std, noise[i]);
      }
    });
    if (streams) end_of_stream();
  } else {
    with_noise(args.stream, args.distribution, of_whole, [=](const float* noise, int64_t offset, int64_t n) {
      TORCH_SSAM_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        perturbed[offset + i] = math::perturb_stored<model_t>(weights[offset + i], noise_std, noise[i]);
      }
    });
  }
}

template <typename math_t>
math::UpdateParams<math_t> update_params(const UpdateArgs& args) {
  return math::make_update_params<math_t>(args.lr, args.momentum, args.dampening, args.weight_decay, args.maximize,
                                          args.first_step, args.grad_scale);
}

// Runs body<momentum, scaled>() for the kind of update that the arguments ask for.
template <typename Body>
inline __attribute__((always_inline)) void with_update_kind(const UpdateArgs& args, bool has_buffer, Body body) {
  using math::Momentum;
  switch (math::momentum_kind(has_buffer, args.nesterov)) {
    case Momentum::none:
      return args.scaled ? body.template operator()<Momentum::none, true>()
                         : body.template operator()<Momentum::none, false>();
    case Momentum::heavy_ball:
      return args.scaled ? body.template operator()<Momentum::heavy_ball, true>()
                         : body.template operator()<Momentum::heavy_ball, false>();
    case Momentum::nesterov:
      return args.scaled ? body.template operator()<Momentum::nesterov, true>()
                         : body.template operator()<Momentum::nesterov, false>();
  }
}

template <math::Momentum kMomentum, bool kScaled, typename master_t, typename model_t>
void update_loop(const UpdateArgs& args, int64_t count, master_t* weights, const model_t* grad, master_t* buffer) {
  const auto p = update_params<opmath_t<master_t>>(args);
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = math::update_stored<kMomentum, kScaled>(weights[i], grad[i], buffer + i, p);
  }
}

template <typename master_t, typename model_t>
void update(const UpdateArgs& args, Span span, void* weights, const void* grad, void* buffer) {
  auto* w = static_cast<master_t*>(weights);
  const auto* g = static_cast<const model_t*>(grad);
  auto* v = static_cast<master_t*>(buffer);
  with_update_kind(args, v != nullptr, [&]<math::Momentum kMomentum, bool kScaled>() {
    update_loop<kMomentum, kScaled>(args, span.count, w, g, v);
  });
}

// A function of its own: the compiler believes __restrict of parameters, not of what a lambda captures.
template <math::Momentum kMomentum, bool kScaled, typename master_t, typename model_t, typename math_t>
inline __attribute__((always_inline)) void update_and_perturb_block(
    const math::UpdateParams<math_t> p, const math_t noise_std, const float* __restrict noise, int64_t n,
    master_t* __restrict clean, const model_t* __restrict grad, master_t* __restrict buffer,
    model_t* __restrict perturbed) {
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const master_t updated = math::update_stored<kMomentum, kScaled>(clean[i], grad[i], buffer + i, p);
    clean[i] = updated;
    perturbed[i] = math::perturb_stored<model_t>(updated, noise_std, noise[i]);
  }
}

template <math::Momentum kMomentum, bool kScaled, typename master_t, typename model_t>
void update_and_perturb_loop(const UpdateArgs& args, const NoiseArgs& noise_args, Span span, master_t* clean,
                             const model_t* grad, master_t* buffer, model_t* perturbed) {
  using math_t = opmath_t<master_t>;
  const auto p = update_params<math_t>(args);
  const auto noise_std = static_cast<math_t>(noise_args.noise_std);
  const Span of_whole{noise_args.origin + span.begin, span.count};
  const bool streams = noise_args.streams;
  with_noise(noise_args.stream, noise_args.distribution, of_whole, [=](const float* noise, int64_t offset, int64_t n) {
    if (streams) {
      fetch_ahead<kBytes<master_t>>(clean + offset);
      fetch_ahead<kBytes<model_t>>(grad + offset);
      if (kMomentum != math::Momentum::none) fetch_ahead<kBytes<master_t>>(buffer + offset);
    }
    master_t* own_buffer = kMomentum != math::Momentum::none ? buffer + offset : nullptr;
    if (streams && n == kGaussianBlock && can_stream(perturbed + offset)) {
      alignas(64) model_t values[kGaussianBlock];
      update_and_perturb_block<kMomentum, kScaled>(p, noise_std, noise, kGaussianBlock, clean + offset, grad + offset,
                                                   own_buffer, values);
      stream_block<kBytes<model_t>>(perturbed + offset, values);
      return;
    }
    update_and_perturb_block<kMomentum, kScaled>(p, noise_std, noise, n, clean + offset, grad + offset, own_buffer,
                                                 perturbed + offset);
  });
  if (streams) end_of_stream();
}

template <typename master_t, typename model_t>
void update_and_perturb(const UpdateArgs& args, const NoiseArgs& noise, Span span, void* clean, const void* grad,
                        void* buffer, void* perturbed) {
  auto* w = static_cast<master_t*>(clean);
  const auto* g = static_cast<const model_t*>(grad);
  auto* v = static_cast<master_t*>(buffer);
  auto* out = static_cast<model_t*>(perturbed);
  if (!is_plain(noise) || noise.noise_std == 0.0) {
    // Update, then noise or rounding, in pieces that stay in the first-level cache: still one pass over memory.
    for (int64_t done = 0; done < span.count;) {
      const int64_t at = span.begin + done;
      const int64_t n = smaller(math::kRademacherBlock - at % math::kRademacherBlock, span.count - done);
      update<master_t, model_t>(args, Span{at, n}, w + done, g + done, v == nullptr ? v : v + done);
      if (noise.noise_std == 0.0) {
        round<master_t, model_t>(w + done, out + done, n);
      } else {
        perturb_any<master_t, model_t>(noise, Span{at, n}, w + done, nullptr, out + done);
      }
      done += n;
    }
    return;
  }
  with_update_kind(args, v != nullptr, [&]<math::Momentum kMomentum, bool kScaled>() {
    update_and_perturb_loop<kMomentum, kScaled>(args, noise, span, w, g, v, out);
  });
}

// 16 running sums in double, then a tree: one order for every build.
template <typename master_t, typename model_t>
double sum_of_squares(const void* weights_, int64_t count) {
  const auto* weights = static_cast<const master_t*>(weights_);
  double lanes[kLanes] = {};
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const auto w = static_cast<double>(load_scalar(weights[i + l]));
      lanes[l] = math::accumulate_square(lanes[l], w);
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    const auto w = static_cast<double>(load_scalar(weights[i]));
    lanes[i - whole] = math::accumulate_square(lanes[i - whole], w);
  }
  return math::add_lanes(lanes);
}

template <typename master_t, typename model_t>
void scale(double factor, void* weights_, int64_t count) {
  using math_t = opmath_t<master_t>;
  auto* weights = static_cast<master_t*>(weights_);
  const auto f = static_cast<math_t>(factor);
  for (int64_t i = 0; i < count; ++i)
    weights[i] = Store<master_t>::from(math::scale_element(load_scalar(weights[i]), f));
}

// product <- product * layer, or the first layer itself.
template <typename math_t, typename layer_t>
void extend_product(math_t* __restrict product, const layer_t* __restrict layer, int64_t count, bool first) {
  if (first) {
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) product[i] = load_scalar(layer[i]);
  } else {
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
      product[i] = math::diagonal_extend(product[i], static_cast<math_t>(load_scalar(layer[i])));
    }
  }
}

template <typename master_t, typename model_t>
void diagonal_load(const DiagonalArgs& args, Span span, const void* weight_, void* layers_, void* product_) {
  using math_t = opmath_t<master_t>;
  const auto* weight = static_cast<const master_t*>(weight_);
  auto* layers = static_cast<math_t*>(layers_);
  auto* product = static_cast<math_t*>(product_);
  const auto noise_std = static_cast<math_t>(args.noise.noise_std);
  for (int64_t layer = 0; layer < args.layers; ++layer) {
    const int64_t first = layer * args.features + span.begin;
    const master_t* source = weight + first;
    math_t* target = layers == nullptr ? nullptr : layers + layer * span.count;
    if (args.noisy) {
      with_noise(args.noise.stream, args.noise.distribution, Span{first, span.count},
                 [=](const float* noise, int64_t offset, int64_t n) {
                   TORCH_SSAM_INDEPENDENT
                   for (int64_t i = 0; i < n; ++i) {
                     // Rounded as SSAM would have stored it.
                     target[offset + i] =
                         load_scalar(math::perturb_stored<master_t>(source[offset + i], noise_std, noise[i]));
                   }
                 });
    } else if (layers != nullptr) {
      TORCH_SSAM_INDEPENDENT
      for (int64_t i = 0; i < span.count; ++i) target[i] = load_scalar(source[i]);
    }
    if (product == nullptr) continue;
    if (layers != nullptr) {
      extend_product(product, target, span.count, layer == 0);
    } else {
      extend_product(product, source, span.count, layer == 0);
    }
  }
}

template <typename master_t, typename model_t>
void diagonal_multiply(const void* product_, const void* input_, void* output_, int64_t count) {
  using math_t = opmath_t<master_t>;
  const auto* product = static_cast<const math_t*>(product_);
  const auto* input = static_cast<const model_t*>(input_);
  auto* output = static_cast<model_t*>(output_);
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    output[i] = Store<model_t>::from(math::diagonal_extend(static_cast<math_t>(load_scalar(input[i])), product[i]));
  }
}

template <typename master_t, typename model_t>
double diagonal_readout(const void* product_, const void* input_, int64_t count) {
  using math_t = opmath_t<master_t>;
  const auto* product = static_cast<const math_t*>(product_);
  const auto* input = static_cast<const model_t*>(input_);
  math_t lanes[kLanes] = {};
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lanes[l] = math::diagonal_accumulate(lanes[l], product[i + l], static_cast<math_t>(load_scalar(input[i + l])));
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    math_t& lane = lanes[i - whole];
    lane = math::diagonal_accumulate(lane, product[i], static_cast<math_t>(load_scalar(input[i])));
  }
  return static_cast<double>(math::add_lanes(lanes));
}

// output <- the sum of a row's chunks, in order.
template <typename master_t, typename model_t>
void diagonal_combine(const double* parts, int64_t count, void* output) {
  opmath_t<master_t> sum = 0;
  for (int64_t c = 0; c < count; ++c) sum += static_cast<opmath_t<master_t>>(parts[c]);
  *static_cast<model_t*>(output) = Store<model_t>::from(sum);
}

// One gradient value an element, or one for the whole row.
template <bool kSpread, bool kSum, bool kOutput, typename math_t, typename model_t>
inline __attribute__((always_inline)) void diagonal_backward_row(const model_t* __restrict grad,
                                                                 const model_t* __restrict input,
                                                                 const math_t* __restrict product,
                                                                 math_t* __restrict sum, model_t* __restrict output,
                                                                 int64_t count) {
  const auto whole_row = static_cast<math_t>(load_scalar(*grad));
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const math_t g = kSpread ? whole_row : static_cast<math_t>(load_scalar(grad[i]));
    if (kSum) sum[i] = math::diagonal_accumulate(sum[i], g, static_cast<math_t>(load_scalar(input[i])));
    if (kOutput) output[i] = Store<model_t>::from(math::diagonal_extend(g, product[i]));
  }
}

template <typename master_t, typename model_t>
void diagonal_backward_rows(const void* grad_, int64_t grad_stride, bool spread, const void* input_, void* output_,
                            int64_t row_stride, int64_t rows, int64_t count, const void* product_, void* sum_) {
  using math_t = opmath_t<master_t>;
  const auto* grad = static_cast<const model_t*>(grad_);
  const auto* input = static_cast<const model_t*>(input_);
  const auto* product = static_cast<const math_t*>(product_);
  auto* output = static_cast<model_t*>(output_);
  auto* sum = static_cast<math_t*>(sum_);
  for (int64_t i = 0; sum != nullptr && i < count; ++i) sum[i] = math_t(0);
  const auto each_row = [=]<bool kSpread, bool kSum, bool kOutput>() {
    for (int64_t row = 0; row < rows; ++row) {
      diagonal_backward_row<kSpread, kSum, kOutput>(grad + row * grad_stride, input + row * row_stride, product, sum,
                                                    kOutput ? output + row * row_stride : nullptr, count);
    }
  };
  const auto with_kind = [=]<bool kSpread>() {
    if (sum != nullptr && output != nullptr) {
      each_row.template operator()<kSpread, true, true>();
    } else if (sum != nullptr) {
      each_row.template operator()<kSpread, true, false>();
    } else {
      each_row.template operator()<kSpread, false, true>();
    }
  };
  spread ? with_kind.template operator()<true>() : with_kind.template operator()<false>();
}

template <typename master_t, typename model_t>
void diagonal_add(void* total_, const void* sum_, int64_t count) {
  using math_t = opmath_t<master_t>;
  auto* total = static_cast<math_t*>(total_);
  const auto* sum = static_cast<const math_t*>(sum_);
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) total[i] += sum[i];
}

// One layer of it: the gradient, and the prefix of the next layer. The first layer has no prefix and the last no
// suffix, which stand for 1; the last needs no further prefix.
template <bool kFirst, bool kLast, typename master_t, typename math_t>
inline __attribute__((always_inline)) void layer_gradient(const math_t* prefix_before, const math_t* __restrict suffix,
                                                          const math_t* __restrict total, const math_t* __restrict w,
                                                          math_t* prefix, master_t* __restrict target, int64_t count) {
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const math_t before = kFirst ? math_t(1) : prefix_before[i];
    const math_t after = kLast ? math_t(1) : suffix[i];
    target[i] = Store<master_t>::from(math::diagonal_layer_gradient(before, after, total[i]));
    if (!kFirst && !kLast) prefix[i] = math::diagonal_extend(before, w[i]);
  }
}

template <typename master_t, typename model_t>
void diagonal_weight_gradient(int64_t depth, int64_t features, const void* total_, const void* layers_,
                              int64_t layer_stride, void* scratch_, void* grad_weight_, int64_t count) {
  using math_t = opmath_t<master_t>;
  const auto* total = static_cast<const math_t*>(total_);
  const auto* layers = static_cast<const math_t*>(layers_);
  auto* prefix = static_cast<math_t*>(scratch_);            // (count)
  auto* suffixes = static_cast<math_t*>(scratch_) + count;  // (depth - 2, count): those of two layers and more
  auto* grad_weight = static_cast<master_t*>(grad_weight_);
  const int64_t last = depth - 1;
  if (depth == 1) {
    layer_gradient<true, true, master_t, math_t>(nullptr, nullptr, total, layers, nullptr, grad_weight, count);
    return;
  }
  // Suffix products, from the last layer down; that of the layer before the last is the last layer itself.
  const auto suffix_of = [&](int64_t layer) {
    return layer == last - 1 ? layers + last * layer_stride : suffixes + layer * count;
  };
  for (int64_t layer = last - 2; layer >= 0; --layer) {
    const math_t* above = suffix_of(layer + 1);
    const math_t* w = layers + (layer + 1) * layer_stride;
    math_t* target = suffixes + layer * count;
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) target[i] = math::diagonal_extend(above[i], w[i]);
  }
  // Prefix products, from the first layer up, and the gradients; the prefix of the second layer is the first.
  layer_gradient<true, false, master_t, math_t>(nullptr, suffix_of(0), total, layers, nullptr, grad_weight, count);
  const math_t* before = layers;
  for (int64_t layer = 1; layer < last; ++layer) {
    layer_gradient<false, false, master_t, math_t>(before, suffix_of(layer), total, layers + layer * layer_stride,
                                                   prefix, grad_weight + layer * features, count);
    before = prefix;
  }
  layer_gradient<false, true, master_t, math_t>(before, nullptr, total, nullptr, nullptr, grad_weight + last * features,
                                                count);
}

#define TORCH_SSAM_EACH_PAIR(kernel)           \
  {kernel<double, double>,                     \
   kernel<float, float>,                       \
   kernel<math::bfloat16_t, math::bfloat16_t>, \
   kernel<math::float16_t, math::float16_t>,   \
   kernel<float, math::bfloat16_t>,            \
   kernel<float, math::float16_t>}

constexpr Kernels kTable = {
    TORCH_SSAM_STRING(TORCH_SSAM_VARIANT),
    fill_noise,
    TORCH_SSAM_EACH_PAIR(perturb),
    TORCH_SSAM_EACH_PAIR(update),
    TORCH_SSAM_EACH_PAIR(update_and_perturb),
    TORCH_SSAM_EACH_PAIR(round),
    stream_copy,
    TORCH_SSAM_EACH_PAIR(sum_of_squares),
    TORCH_SSAM_EACH_PAIR(scale),
    TORCH_SSAM_EACH_PAIR(diagonal_load),
    TORCH_SSAM_EACH_PAIR(diagonal_multiply),
    TORCH_SSAM_EACH_PAIR(diagonal_readout),
    TORCH_SSAM_EACH_PAIR(diagonal_combine),
    TORCH_SSAM_EACH_PAIR(diagonal_backward_rows),
    TORCH_SSAM_EACH_PAIR(diagonal_add),
    TORCH_SSAM_EACH_PAIR(diagonal_weight_gradient),
};

}  // namespace

const Kernels* TORCH_SSAM_CONCAT(kernels_, TORCH_SSAM_VARIANT)() { return &kTable; }

}  // namespace torch_ssam::cpu
