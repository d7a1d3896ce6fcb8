// The noise of a range of elements, 64 at a time, for the loops that use it: through a buffer of one block that stays
// in the first-level cache, so that one generator serves every dtype, stride and use. Part of ../kernels.cpp.
#pragma once

#include "../../../math/noise_blocks.h"
#include "../../../math/stored.h"
#include "../kernels.h"

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
  math::with_distribution(
      distribution, [&]<Distribution kDistribution>()
                        __attribute__((always_inline)) { for_each_noise_block<kDistribution>(stream, span, body); });
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
  } else {
    math::with_distribution(
        args.distribution, [&]<Distribution kDistribution>() __attribute__((always_inline)) {
          for_each_collected_block<kDistribution>(args.stream, *args.shard, span, body);
        });
  }
}

// The noise of the elements element, element + 1, ..., each times the scale of its row.
void scale_by_rows(const NoiseArgs& args, int64_t element, const float* noise, int64_t n, float* scaled) {
  int64_t row = element / args.row_length;
  if (args.rows != 0) row %= args.rows;
  if (args.row_length == 1) {  // neighbours in memory, until the rows come again
    for (int64_t i = 0; i < n; row = 0) {
      const int64_t end = args.rows == 0 ? n : smaller(n, i + args.rows - row);
      const float* scales = args.row_scales + row;
      TORCH_SSAM_INDEPENDENT
      for (int64_t k = i; k < end; ++k) scaled[k] = math::scale_noise(noise[k], scales[k - i]);
      i = end;
    }
    return;
  }
  int64_t left = args.row_length - element % args.row_length;  // in this row
  for (int64_t i = 0; i < n; left = args.row_length) {
    const float scale = args.row_scales[row];
    const int64_t end = smaller(n, i + left);
    TORCH_SSAM_INDEPENDENT
    for (int64_t k = i; k < end; ++k) scaled[k] = math::scale_noise(noise[k], scale);
    i = end;
    row = row + 1 == args.rows ? 0 : row + 1;
  }
}

}  // namespace
}  // namespace torch_ssam::cpu
