// Bodies of the kernels in rows.cu: the pieces of every row reduced, then, a thread a row, joined in order, and what
// the row's number is for. Nothing leaves the device; the arithmetic and every order are csrc/math's. Tests:
// test_cuda_scale_on_host.cpp, test_cuda.py.
#pragma once

#include "pieces.h"

namespace torch_ssam::cuda {

struct RowLength {
  int64_t row_length;
};

struct RowPiecesSettings {
  double* pieces;  // a number each
};

// A piece: its row, and where it begins and ends in the tensor, counted in row-major order.
struct Piece {
  int64_t row, begin, end;
};

TORCH_SSAM_BODY Piece piece_at(int64_t row_length, int64_t piece) {
  const int64_t each = math::norm_pieces(row_length);
  const int64_t row = piece / each;
  const int64_t begin = row * row_length + piece % each * math::kNormPiece;
  const int64_t row_end = (row + 1) * row_length;
  return {row, begin, row_end < begin + math::kNormPiece ? row_end : begin + math::kNormPiece};
}

// What an entry covers, and what it counts, are pieces: each row has norm_pieces(row_length) of them. An entry's number
// is its tensor's first piece.
template <typename Reduction, typename scalar_t, int kCount>
struct RowPiecesBody {
  using lane_t = typename Reduction::template lane_t<math::opmath_t<scalar_t>>;
  static constexpr int kOwners = static_cast<int>(math::kLanes) / kCount;  // threads that share a piece
  static constexpr int kPieces = kThreads / kOwners;
  static constexpr int64_t kAlign = 1;
  static constexpr int64_t kSpan = kPieces;
  using TableType = TableFor<1, kCount, RowLength>;

  struct Params {
    RowPiecesSettings settings;
    TableType table;
  };
  struct Shared {
    lane_t lanes[kPieces][math::kLanes + 1];  // one more, so that the second phase meets all banks of the memory
  };

  // Every row begins at a multiple of the access, or none of the tensor is read so.
  static int64_t whole(const ListTensor<1, RowLength>& tensor) {
    return tensor.row_length % kCount == 0 ? tensor.numel : 0;
  }

  TORCH_SSAM_BODY int64_t tiles(const Params&) { return 1; }

  // The block's piece that this many pieces precede; not below the entry's end where the block has no such piece.
  TORCH_SSAM_BODY int64_t piece_of(const Params& params, Thread at, int index, int inside) {
    return params.table.entries[index].begin + (at.block - params.table.first_block[index]) * kPieces + inside;
  }

  TORCH_SSAM_BODY void first_phase(const Params& params, Thread at, int64_t, Shared& shared) {
    const int index = entry_of(params.table, at.block);
    const auto& entry = params.table.entries[index];
    const int64_t piece = piece_of(params, at, index, at.index / kOwners);
    const int lane = at.index % kOwners * kCount;
    if (piece >= entry.end) return;
    const Piece own = piece_at(entry.row_length, piece);
    lane_t lanes[kCount] = {};
    reduce_lanes<Reduction, scalar_t>(params.table, index, own.begin, own.end, lane, lanes);
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kCount; ++l) shared.lanes[at.index / kOwners][lane + l] = lanes[l];
  }

  TORCH_SSAM_BODY void second_phase(const Params& params, Thread at, int64_t, Shared& shared) {
    if (at.index >= kPieces) return;
    const int index = entry_of(params.table, at.block);
    const auto& entry = params.table.entries[index];
    const int64_t piece = piece_of(params, at, index, at.index);
    if (piece >= entry.end) return;
    lane_t lanes[math::kLanes];
    TORCH_SSAM_UNROLL
    for (int l = 0; l < math::kLanes; ++l) lanes[l] = shared.lanes[at.index][l];
    params.settings.pieces[entry.number + piece] = Reduction::of_piece(math::join_lanes<Reduction>(lanes));
  }
};

template <typename Reduction, typename scalar_t>
struct RowPiecesFor {
  template <int kCount>
  using With = RowPiecesBody<Reduction, scalar_t, kCount>;
};

// What the number of a row becomes.
enum class RowResult : int { scale, range, fisher, limit };

template <RowResult kResult>
using ReductionOf = std::conditional_t<kResult == RowResult::range, math::LargestMagnitude, math::SumOfSquares>;

struct RowResultSettings {
  const double* pieces;
  double number;  // fisher_factor, the decay, or weight_clip
};

// Operand 0 has a float a row. It becomes the row's scale, where operand 1 is F, or null; or the row's range; or it is
// F, which forgets and takes the sum in. Or it has a double a row, which becomes what the row is clipped to.
template <RowResult kResult>
struct RowResultBody {
  using Reduction = ReductionOf<kResult>;
  static constexpr int64_t kAlign = 1;
  static constexpr int64_t kSpan = kThreads;
  using TableType = AlignedTable<2, RowLength>;

  struct Params {
    RowResultSettings settings;
    TableType table;
  };

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    const int index = entry_of(params.table, at.block);
    const auto& entry = params.table.entries[index];
    const int64_t row = entry.begin + (at.block - params.table.first_block[index]) * kSpan + at.index;
    if (row >= entry.end) return;
    const int64_t each = math::norm_pieces(entry.row_length);
    const double* pieces = params.settings.pieces + entry.number + row * each;
    double total = 0.0;
    TORCH_SSAM_UNROLL_BY(8)
    for (int64_t i = 0; i < each; ++i) total = Reduction::join_pieces(total, pieces[i]);
    if constexpr (kResult == RowResult::limit) {
      static_cast<double*>(entry.data[0])[row] = math::row_limit(total, entry.row_length, params.settings.number);
      return;
    }
    float* result = static_cast<float*>(entry.data[0]) + row;
    if constexpr (kResult == RowResult::fisher) {
      *result = math::row_fisher(*result, total, params.settings.number);
    } else if constexpr (kResult == RowResult::range) {
      *result = math::row_range(total);
    } else {
      const auto* fisher = static_cast<const float*>(entry.data[1]);
      *result =
          math::row_scale(total, fisher == nullptr ? 0.0 : static_cast<double>(fisher[row]), params.settings.number);
    }
  }
};

struct ClipSettings {
  const double* limits;  // one for each row; an entry's number is its tensor's first
};

// Clips the pieces of rows, that the launches of RowPiecesBody cover, to their rows' limits.
template <typename scalar_t, int kCount>
struct ClipPiecesBody {
  static constexpr int kOwners = static_cast<int>(math::kLanes) / kCount;
  static constexpr int64_t kAlign = 1;
  static constexpr int64_t kSpan = kThreads / kOwners;
  using TableType = TableFor<1, kCount, RowLength>;
  using math_t = math::opmath_t<scalar_t>;

  struct Params {
    ClipSettings settings;
    TableType table;
  };

  static int64_t whole(const ListTensor<1, RowLength>& tensor) {
    return tensor.row_length % kCount == 0 ? tensor.numel : 0;
  }

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    const int index = entry_of(params.table, at.block);
    const auto& entry = params.table.entries[index];
    const int64_t in_launch = at.block - params.table.first_block[index];
    const int64_t piece = entry.begin + in_launch * kSpan + at.index / kOwners;
    if (piece >= entry.end) return;
    const Piece own = piece_at(entry.row_length, piece);
    const auto limit = static_cast<math_t>(params.settings.limits[entry.number + own.row]);
    TORCH_SSAM_UNROLL_BY(4)
    for (int64_t element = own.begin + at.index % kOwners * kCount; element < own.end; element += math::kLanes) {
      const auto cursor = Cursor<1, kCount>::make(params.table, index, element);
      scalar_t values[kCount];
      load_operand(params.table, cursor, 0, values);
      TORCH_SSAM_UNROLL
      for (int l = 0; l < kCount; ++l) {
        values[l] = math::Store<scalar_t>::from(math::clip_element(math::load_scalar(values[l]), limit));
      }
      store_operand(params.table, cursor, 0, values);
    }
  }
};

template <typename scalar_t>
struct ClipPiecesFor {
  template <int kCount>
  using With = ClipPiecesBody<scalar_t, kCount>;
};

}  // namespace torch_ssam::cuda
