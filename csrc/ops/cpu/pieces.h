// Rows reduced in the order of csrc/math/reduce.h: pieces of kNormPiece elements counted from the start of each row,
// the same bits for any number of threads and any strides. Who wants a row's number joins its pieces in order.
#pragma once

#include "../../math/reduce.h"
#include "../rows.h"
#include "segments.h"

namespace torch_ssam::cpu {

using PieceKernel = double (*)(const void* values, int64_t count);

inline const PieceKernel (&kernels_of(math::SumOfSquares))[kDtypes] { return kernels().sum_of_squares; }
inline const PieceKernel (&kernels_of(math::LargestMagnitude))[kDtypes] { return kernels().largest_magnitude; }

struct Pieces {
  std::vector<int64_t> first;  // the first piece of each tensor, and one past the last of all
  std::vector<double> values;
};

// `row_lengths` has one number a tensor, which divides its elements; 0 where it has none.
inline Pieces reduce_pieces(const TensorViews& views, const std::vector<int64_t>& row_lengths,
                            const PieceKernel (&kernels)[kDtypes]) {
  constexpr int64_t kPiece = math::kNormPiece;
  Pieces result{std::vector<int64_t>(views.size() + 1, 0), {}};
  int64_t total = 0;
  for (size_t t = 0; t < views.size(); ++t) {
    const int64_t length = row_lengths[t];
    const int64_t pieces = views[t].numel == 0 ? 0 : views[t].numel / length * math::norm_pieces(length);
    result.first[t + 1] = result.first[t] + pieces;
    total += views[t].numel;
  }
  const std::vector<int64_t>& first = result.first;
  const int64_t pieces = first.back();
  if (pieces == 0) return result;
  result.values.resize(static_cast<size_t>(pieces));
  // 16 whole pieces a task, or as many short rows as have that many elements.
  const int64_t grain = std::max<int64_t>(16, pieces * 16 * kPiece / total);
  torch::stable::parallel_for(0, pieces, grain, [&](int64_t begin, int64_t end) {
    size_t t = static_cast<size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    std::vector<char> buffer;
    for (int64_t piece = begin; piece < end; ++piece) {
      while (piece >= first[t + 1]) ++t;
      const int64_t length = row_lengths[t];
      const int64_t each = math::norm_pieces(length);
      const int64_t row = (piece - first[t]) / each;
      const int64_t inside = (piece - first[t]) % each * kPiece;
      const Span span{row * length + inside, std::min(kPiece, length - inside)};
      const void* memory =
          static_cast<char*>(views[t].data) + span.begin * static_cast<int64_t>(bytes_of(views[t].dtype));
      if (!views[t].contiguous) {
        buffer.resize(static_cast<size_t>(kPiece) * sizeof(double));
        copy_strided(views[t], span, buffer.data(), /*gather=*/true);
        memory = buffer.data();
      }
      const auto dtype = static_cast<int>(dtype_of(views[t].dtype));
      result.values[static_cast<size_t>(piece)] = kernels[dtype](memory, span.count);
    }
  });
  return result;
}

// body(tensor, row, the row's number) for every row.
template <typename Reduction, typename Body>
void for_each_row(Reduction reduction, const TensorViews& views, const RowViews& rows, const Body& body) {
  std::vector<int64_t> lengths;
  lengths.reserve(rows.size());
  for (const RowView& row : rows) lengths.push_back(row.length);
  const Pieces pieces = reduce_pieces(views, lengths, kernels_of(reduction));
  for (size_t t = 0; t < views.size(); ++t) {
    const int64_t each = math::norm_pieces(rows[t].length);
    const double* values = pieces.values.data() + pieces.first[t];
    for (int64_t row = 0; row < rows[t].rows; ++row) {
      double total = 0.0;
      for (int64_t i = 0; i < each; ++i) total = Reduction::join_pieces(total, values[row * each + i]);
      body(t, row, total);
    }
  }
}

// body(row, the elements of the span before it, its elements in the span) for every row that a span has a part of.
template <typename Body>
void for_each_row_in(Span span, int64_t row_length, const Body& body) {
  for (int64_t done = 0; done < span.count;) {
    const int64_t row = (span.begin + done) / row_length;
    const int64_t count = std::min((row + 1) * row_length - (span.begin + done), span.count - done);
    body(row, done, count);
    done += count;
  }
}

}  // namespace torch_ssam::cpu
