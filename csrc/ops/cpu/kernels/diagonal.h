// Loops of the diagonal product, forward and backward. Part of ../kernels.cpp.
#pragma once

#include "../../../math/diagonal.h"
#include "noise.h"
#include "reduce.h"

namespace torch_ssam::cpu {
namespace {

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

template <typename master_t>
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

template <typename master_t>
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

template <typename master_t>
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

}  // namespace
}  // namespace torch_ssam::cpu
