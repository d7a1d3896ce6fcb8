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

// Functions of their own: the compiler believes __restrict of parameters, not of what a lambda captures.
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

// Of plain noise.
template <typename Rule, typename Rule::Kind kKind, typename math_t, typename master_t, typename model_t,
          typename... Buffers>
void update_and_perturb_loop(const typename Rule::template Params<math_t>& params, const NoiseArgs& args, Span span,
                             master_t* clean, const model_t* grad, model_t* perturbed, Buffers*... buffers) {
  const auto p = params;
  const auto noise_std = static_cast<math_t>(args.noise_std);
  const Span of_whole{args.origin + span.begin, span.count};
  const bool streams = args.streams;
  with_noise(args.stream, args.distribution, of_whole, [=](const float* noise, int64_t offset, int64_t n) {
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

// Of any other noise, or of none: update, then noise or rounding, in pieces that stay in the first-level cache, which
// is still one pass over memory.
template <typename Rule, typename Rule::Kind kKind, typename math_t, typename master_t, typename model_t,
          typename... Buffers>
void update_then_perturb(const typename Rule::template Params<math_t>& p, const NoiseArgs& noise, Span span,
                         master_t* clean, const model_t* grad, model_t* perturbed, Buffers*... buffers) {
  for (int64_t done = 0; done < span.count;) {
    const int64_t at = span.begin + done;
    const int64_t n = smaller(math::kRademacherBlock - at % math::kRademacherBlock, span.count - done);
    update_block<Rule, kKind, math_t>(p, n, clean + done, grad + done, (buffers + done)...);
    if (noise.noise_std == 0.0) {
      round<master_t, model_t>(clean + done, perturbed + done, n);
    } else {
      perturb_any<master_t, model_t>(noise, Span{at, n}, clean + done, nullptr, perturbed + done);
    }
    done += n;
  }
}

// body<kind>(params, buffers...) for the kind that the rule's numbers ask for and as many buffers as it has.
template <typename Rule, typename master_t, typename Body>
inline __attribute__((always_inline)) void with_update(const Rule& rule, int64_t step, void* const* buffers,
                                                       Body body) {
  with_kind(rule, [&]<typename Rule::Kind kKind>() {
    [&]<int... kBuffer>(std::integer_sequence<int, kBuffer...>) {
      body.template operator()<kKind>(Rule::template params<opmath_t<master_t>>(rule, step),
                                      static_cast<master_t*>(buffers[kBuffer])...);
    }(std::make_integer_sequence<int, Rule::buffers_of(kKind)>{});
  });
}

template <typename Rule, typename master_t, typename model_t>
void update(const Rule& rule, int64_t step, Span span, void* weights_, const void* grad_, void* const* buffers) {
  auto* weights = static_cast<master_t*>(weights_);
  const auto* grad = static_cast<const model_t*>(grad_);
  with_update<Rule, master_t>(rule, step, buffers, [&]<typename Rule::Kind kKind>(const auto& p, auto*... own) {
    update_block<Rule, kKind, opmath_t<master_t>>(p, span.count, weights, grad, own...);
  });
}

template <typename Rule, typename master_t, typename model_t>
void update_and_perturb(const Rule& rule, int64_t step, const NoiseArgs& noise, Span span, void* clean_,
                        const void* grad_, void* const* buffers, void* perturbed_) {
  auto* clean = static_cast<master_t*>(clean_);
  const auto* grad = static_cast<const model_t*>(grad_);
  auto* perturbed = static_cast<model_t*>(perturbed_);
  with_update<Rule, master_t>(rule, step, buffers, [&]<typename Rule::Kind kKind>(const auto& p, auto*... own) {
    if (is_plain(noise) && noise.noise_std != 0.0) {
      update_and_perturb_loop<Rule, kKind, opmath_t<master_t>>(p, noise, span, clean, grad, perturbed, own...);
    } else {
      update_then_perturb<Rule, kKind, opmath_t<master_t>>(p, noise, span, clean, grad, perturbed, own...);
    }
  });
}

}  // namespace
}  // namespace torch_ssam::cpu
