// Loops that update weights by a rule, alone and together with the noise of the next pass. Part of ../kernels.cpp.
#pragma once

#include <utility>

#include "perturb.h"

namespace torch_ssam::cpu {
namespace {

// Runs body<kind>() for the kind of the rule that its numbers ask for.
template <typename Rule, int kFirst = 0, typename Body>
inline __attribute__((always_inline)) void with_kind(const Rule& rule, Body body) {
  constexpr auto kKind = static_cast<typename Rule::Kind>(kFirst);
  if constexpr (kFirst + 1 == Rule::kKinds) {
    body.template operator()<kKind>();
  } else if (Rule::kind_of(rule) == kKind) {
    body.template operator()<kKind>();
  } else {
    with_kind<Rule, kFirst + 1>(rule, body);
  }
}

template <typename Rule, typename Rule::Kind kKind, typename math_t, typename master_t, typename model_t,
          typename... Buffers>
inline __attribute__((always_inline)) void update_block(const typename Rule::template Params<math_t>& p, int64_t n,
                                                        master_t* __restrict weights, const model_t* __restrict grad,
                                                        Buffers* __restrict... buffers) {
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    weights[i] = math::update_stored<Rule, kKind>(weights[i], grad[i], p, (buffers + i)...);
  }
}

template <typename Rule, typename master_t, typename model_t>
void update(const Rule& rule, int64_t step, Span span, void* weights_, const void* grad_, void* const* buffers) {
  using math_t = opmath_t<master_t>;
  auto* weights = static_cast<master_t*>(weights_);
  const auto* grad = static_cast<const model_t*>(grad_);
  with_kind(rule, [&]<typename Rule::Kind kKind>() {
    const auto p = Rule::template params<math_t>(rule, step);
    [&]<int... kBuffer>(std::integer_sequence<int, kBuffer...>) {
      update_block<Rule, kKind, math_t>(p, span.count, weights, grad, static_cast<master_t*>(buffers[kBuffer])...);
    }(std::make_integer_sequence<int, Rule::buffers_of(kKind)>{});
  });
}

template <typename Rule, typename Rule::Kind kKind, typename math_t, typename master_t, typename model_t,
          typename... Buffers>
inline __attribute__((always_inline)) void update_and_perturb_block(
    const typename Rule::template Params<math_t> p, const math_t noise_std, const float* __restrict noise, int64_t n,
    master_t* __restrict clean, const model_t* __restrict grad, model_t* __restrict perturbed,
    Buffers* __restrict... buffers) {
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const master_t updated = math::update_stored<Rule, kKind>(clean[i], grad[i], p, (buffers + i)...);
    clean[i] = updated;
    perturbed[i] = math::perturb_stored<model_t>(updated, noise_std, noise[i]);
  }
}

template <typename Rule, typename Rule::Kind kKind, typename master_t, typename model_t, typename... Buffers>
void update_and_perturb_loop(const Rule& rule, int64_t step, const NoiseArgs& noise_args, Span span, master_t* clean,
                             const model_t* grad, model_t* perturbed, Buffers*... buffers) {
  using math_t = opmath_t<master_t>;
  const auto p = Rule::template params<math_t>(rule, step);
  const auto noise_std = static_cast<math_t>(noise_args.noise_std);
  const Span of_whole{noise_args.origin + span.begin, span.count};
  const bool streams = noise_args.streams;
  with_noise(noise_args.stream, noise_args.distribution, of_whole, [=](const float* noise, int64_t offset, int64_t n) {
    if (streams) {
      fetch_ahead<kBytes<master_t>>(clean + offset);
      fetch_ahead<kBytes<model_t>>(grad + offset);
      (fetch_ahead<kBytes<master_t>>(buffers + offset), ...);
    }
    if (streams && n == kGaussianBlock && can_stream(perturbed + offset)) {
      alignas(64) model_t values[kGaussianBlock];
      update_and_perturb_block<Rule, kKind>(p, noise_std, noise, kGaussianBlock, clean + offset, grad + offset, values,
                                            (buffers + offset)...);
      stream_block<kBytes<model_t>>(perturbed + offset, values);
      return;
    }
    update_and_perturb_block<Rule, kKind>(p, noise_std, noise, n, clean + offset, grad + offset, perturbed + offset,
                                          (buffers + offset)...);
  });
  if (streams) end_of_stream();
}

template <typename Rule, typename master_t, typename model_t>
void update_and_perturb(const Rule& rule, int64_t step, const NoiseArgs& noise, Span span, void* clean,
                        const void* grad, void* const* buffers, void* perturbed) {
  auto* w = static_cast<master_t*>(clean);
  const auto* g = static_cast<const model_t*>(grad);
  auto* out = static_cast<model_t*>(perturbed);
  if (!is_plain(noise) || noise.noise_std == 0.0) {
    // Update, then noise or rounding, in pieces that stay in the first-level cache: still one pass over memory.
    const int kept = Rule::buffers_of(Rule::kind_of(rule));
    for (int64_t done = 0; done < span.count;) {
      const int64_t at = span.begin + done;
      const int64_t n = smaller(math::kRademacherBlock - at % math::kRademacherBlock, span.count - done);
      void* own[math::kMostBuffers<Rule>] = {};
      for (int k = 0; k < kept; ++k) own[k] = static_cast<master_t*>(buffers[k]) + done;
      update<Rule, master_t, model_t>(rule, step, Span{at, n}, w + done, g + done, own);
      if (noise.noise_std == 0.0) {
        round<master_t, model_t>(w + done, out + done, n);
      } else {
        perturb_any<master_t, model_t>(noise, Span{at, n}, w + done, nullptr, out + done);
      }
      done += n;
    }
    return;
  }
  with_kind(rule, [&]<typename Rule::Kind kKind>() {
    [&]<int... kBuffer>(std::integer_sequence<int, kBuffer...>) {
      update_and_perturb_loop<Rule, kKind>(rule, step, noise, span, w, g, out,
                                           static_cast<master_t*>(buffers[kBuffer])...);
    }(std::make_integer_sequence<int, Rule::buffers_of(kKind)>{});
  });
}

}  // namespace
}  // namespace torch_ssam::cpu
