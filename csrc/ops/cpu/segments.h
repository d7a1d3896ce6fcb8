// Walks lists of tensors in even shares: the elements of all tensors are laid end to end and cut into one stretch a
// thread, so that one large and many small tensors keep all threads busy. A loop sees contiguous pieces only: where a
// tensor is not contiguous, its elements are gathered in logical (row-major) order into a buffer, and written back.
// Tests: tests/python/test_ops_perturb.py (thread counts, strides, sizes).
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "../dtypes.h"
#include "kernels.h"

namespace torch_ssam::cpu {

enum class Access { read, write, read_write };

// One list that a loop walks, a tensor each; null where the operator has none.
struct Operand {
  const TensorViews* views;
  Access access;
};

// Copies elements [begin, begin + count), in row-major order, between strided memory and a contiguous buffer.
inline void copy_strided(const TensorView& view, Span span, char* buffer, bool gather) {
  const size_t size = bytes_of(view.dtype);
  std::vector<int64_t> index(static_cast<size_t>(view.dim));
  int64_t rest = span.begin;
  for (int64_t d = view.dim - 1; d >= 0; --d) {
    index[static_cast<size_t>(d)] = rest % view.sizes[d];
    rest /= view.sizes[d];
  }
  int64_t offset = 0;
  for (int64_t d = 0; d < view.dim; ++d) offset += index[static_cast<size_t>(d)] * view.strides[d];
  char* memory = static_cast<char*>(view.data);
  for (int64_t i = 0; i < span.count; ++i) {
    char* element = memory + offset * static_cast<int64_t>(size);
    char* copy = buffer + i * static_cast<int64_t>(size);
    gather ? std::memcpy(copy, element, size) : std::memcpy(element, copy, size);
    for (int64_t d = view.dim - 1; d >= 0; --d) {
      auto& at = index[static_cast<size_t>(d)];
      offset += view.strides[d];
      if (++at < view.sizes[d]) break;
      offset -= at * view.strides[d];
      at = 0;
    }
  }
}

// Bytes of a pass from which nothing that it wrote first is still in a cache for the next reader. The systems of
// virtual machines misreport caches (256 MiB where a core reaches 32), so it is a number: above what most processors
// have.
inline constexpr size_t kBeyondCaches = size_t{1} << 27;

template <size_t kOperands>
bool exceeds_caches(const std::array<Operand, kOperands>& operands) {
  size_t bytes = 0;
  for (const Operand& o : operands) {
    if (o.views == nullptr) continue;
    for (const TensorView& view : *o.views) bytes += static_cast<size_t>(view.numel) * bytes_of(view.dtype);
  }
  return bytes > kBeyondCaches;
}

// Elements below which a second thread costs more than it brings: about 10 microseconds of noise.
inline constexpr int64_t kGrain = 1 << 14;

// body(tensor, span, pointers): pointers[k] is element span.begin of operand k, or null.
template <size_t kOperands, typename Body>
void for_each_segment(const TensorViews& like, const std::array<Operand, kOperands>& operands, int64_t grain,
                      const Body& body) {
  constexpr int64_t kAlign = math::kGaussianBlock;
  constexpr int64_t kPerTensor = kAlign;  // what a tensor costs beside its elements, in elements
  std::vector<int64_t> ends(like.size());
  int64_t total = 0;
  for (size_t t = 0; t < like.size(); ++t) {
    total += like[t].numel == 0 ? 0 : (like[t].numel + kAlign - 1) / kAlign * kAlign + kPerTensor;
    ends[t] = total;
  }

  const auto run = [&](int64_t first, int64_t last) {
    std::unique_ptr<char[]> buffer;
    size_t t = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), first) - ends.begin());
    for (; t < like.size() && (t == 0 ? 0 : ends[t - 1]) < last; ++t) {
      const int64_t numel = like[t].numel;
      const int64_t start = t == 0 ? 0 : ends[t - 1];
      const auto inside = [&](int64_t position) {
        return std::clamp<int64_t>((position - start + kAlign - 1) / kAlign * kAlign, 0, numel);
      };
      const int64_t begin = first <= start ? 0 : inside(first);
      const int64_t end = last >= ends[t] ? numel : inside(last);
      if (begin >= end) continue;

      bool all_contiguous = true;
      for (const Operand& o : operands) all_contiguous &= o.views == nullptr || (*o.views)[t].contiguous;
      constexpr int64_t kPiece = 2048;  // elements gathered at a time
      const int64_t piece = all_contiguous ? end - begin : kPiece;
      if (!all_contiguous && buffer == nullptr) buffer.reset(new char[kOperands * kPiece * sizeof(double)]);

      for (int64_t at = begin; at < end; at += piece) {
        const Span span{at, std::min(piece, end - at)};
        std::array<void*, kOperands> pointers{};
        for (size_t k = 0; k < kOperands; ++k) {
          if (operands[k].views == nullptr) continue;
          const TensorView& view = (*operands[k].views)[t];
          if (view.contiguous) {
            pointers[k] = static_cast<char*>(view.data) + at * static_cast<int64_t>(bytes_of(view.dtype));
          } else {
            pointers[k] = buffer.get() + k * kPiece * sizeof(double);
            if (operands[k].access != Access::write) {
              copy_strided(view, span, static_cast<char*>(pointers[k]), /*gather=*/true);
            }
          }
        }
        body(t, span, pointers);
        for (size_t k = 0; k < kOperands; ++k) {
          if (operands[k].views == nullptr || operands[k].access == Access::read) continue;
          const TensorView& view = (*operands[k].views)[t];
          if (!view.contiguous) copy_strided(view, span, static_cast<char*>(pointers[k]), /*gather=*/false);
        }
      }
    }
  };

  if (total <= grain) {
    if (total > 0) run(0, total);
    return;
  }
  torch::stable::parallel_for(0, total, grain, run);
}

}  // namespace torch_ssam::cpu
