// Loops that put noise on weights, round them and copy them. Part of ../kernels.cpp.
#pragma once

#include "noise.h"
#include "stream.h"

namespace torch_ssam::cpu {
namespace {

template <typename master_t, typename model_t>
void round(const void* clean_, void* params_, int64_t count) {
  const auto* clean = static_cast<const master_t*>(clean_);
  auto* params = static_cast<model_t*>(params_);
  TORCH_SSAM_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) params[i] = math::round_stored<model_t>(clean[i]);
}

// Nearly always nobody wrote: a block without a difference is read only.
template <typename master_t, typename model_t>
void follow(void* clean_, const void* params_, int64_t count) {
  auto* clean = static_cast<master_t*>(clean_);
  const auto* params = static_cast<const model_t*>(params_);
  for (int64_t done = 0; done < count; done += kGaussianBlock) {
    const int64_t n = smaller(kGaussianBlock, count - done);
    int differs = 0;
    TORCH_SSAM_INDEPENDENT
    for (int64_t i = done; i < done + n; ++i) {
      const auto now = math::load_scalar(params[i]);
      differs |= now == math::load_scalar(math::round_stored<model_t>(clean[i])) ? 0 : 1;
    }
    if (differs == 0) continue;
    for (int64_t i = done; i < done + n; ++i) clean[i] = math::follow_stored(clean[i], params[i]);
  }
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

// perturb for all other noise, and beside updates: a loop of its own, so that the plain one stays as it is.
template <typename master_t, typename model_t>
void perturb_any(const NoiseArgs& args, Span span, const master_t* weights, master_t* saved, model_t* perturbed) {
  const auto noise_std = static_cast<opmath_t<master_t>>(args.noise_std);
  const math::Scale scale = args.scale;
  const bool alone = args.alone;
  const bool streams = args.streams && saved == nullptr;
  with_noise_of(args, span, [=, &args](const float* noise, int64_t offset, int64_t n) {
    const master_t* clean = weights + offset;
    alignas(64) model_t values[kGaussianBlock];
    const bool past = streams && n == kGaussianBlock && can_stream(perturbed + offset);
    model_t* target = past ? values : perturbed + offset;
    for (const void* const* next = args.next; *next != nullptr; ++next) {
      fetch<kBytes<master_t>>(static_cast<const master_t*>(*next) + offset);
    }
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
        target[i] = math::perturb_stored_by_element<model_t>(clean[i], noise_std, noise[i], alone);
      }
    }
    if (past) stream_block<kBytes<model_t>>(perturbed + offset, values);
  });
  if (streams) end_of_stream();
}

template <typename master_t, typename model_t>
void perturb(const NoiseArgs& args, Span span, const void* weights_, void* saved_, void* perturbed_) {
  using math_t = opmath_t<master_t>;
  const auto* weights = static_cast<const master_t*>(weights_);
  auto* saved = static_cast<master_t*>(saved_);
  auto* perturbed = static_cast<model_t*>(perturbed_);
  const auto noise_std = static_cast<math_t>(args.noise_std);
  const Span of_whole{args.origin + span.begin, span.count};
  if (!is_plain(args) || (args.streams && saved == nullptr)) {
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

}  // namespace
}  // namespace torch_ssam::cpu
