// Bodies of the kernels in rows.cu: sums of squares of the pieces of every row, then, a thread a row, their sum in
// order and what it is for. Nothing leaves the device; the arithmetic and every order are csrc/math's.
// Tests: test_cuda_scale_on_host.cpp, test_cuda.py.
#pragma once

#include "norms.h"

namespace torch_ssam::cuda {

struct RowLength {
  int64_t row_length;
};

struct RowSquaresSettings {
  double* sums;  // one a piece
};

// What an entry covers, and what it counts, are pieces: each row has norm_pieces(row_length) of them. An entry's number
// is its tensor's first piece.
template <typename scalar_t, int kCount>
struct RowSquaresBody {
  static constexpr int kOwners = static_cast<int>(math::kLanes) / kCount;  // threads that share a piece
  static constexpr int kPieces = kThreads / kOwners;
  static constexpr int64_t kAlign = 1;
  static constexpr int64_t kSpan = kPieces;
  using TableType = TableFor<1, kCount, RowLength>;

  struct Params {
    RowSquaresSettings settings;
    TableType table;
  };
  struct Shared {
    double lanes[kPieces][math::kLanes + 1];  // one more, so that the second phase meets all banks of the memory
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
    const int64_t each = math::norm_pieces(entry.row_length);
    const int64_t row_begin = piece / each * entry.row_length;
    const int64_t begin = row_begin + piece % each * math::kNormPiece;
    const int64_t row_end = row_begin + entry.row_length;
    const int64_t end = row_end < begin + math::kNormPiece ? row_end : begin + math::kNormPiece;
    double sums[kCount] = {};
    sum_squares<scalar_t>(params.table, index, begin, end, lane, sums);
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kCount; ++l) shared.lanes[at.index / kOwners][lane + l] = sums[l];
  }

  TORCH_SSAM_BODY void second_phase(const Params& params, Thread at, int64_t, Shared& shared) {
    if (at.index >= kPieces) return;
    const int index = entry_of(params.table, at.block);
    const auto& entry = params.table.entries[index];
    const int64_t piece = piece_of(params, at, index, at.index);
    if (piece >= entry.end) return;
    double lanes[math::kLanes];
    TORCH_SSAM_UNROLL
    for (int l = 0; l < math::kLanes; ++l) lanes[l] = shared.lanes[at.index][l];
    params.settings.sums[entry.number + piece] = math::add_lanes(lanes);
  }
};

template <typename scalar_t>
struct RowSquaresFor {
  template <int kCount>
  using With = RowSquaresBody<scalar_t, kCount>;
};

struct RowResultSettings {
  const double* sums;
  double number;  // fisher_factor, or the decay
};

// Operand 0 has a float a row. With kFisher it is F, which forgets and takes the sum in; else it becomes the row's
// scale and operand 1 is F, or null.
template <bool kFisher>
struct RowResultBody {
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
    const double* sums = params.settings.sums + entry.number + row * each;
    double total = 0.0;
    TORCH_SSAM_UNROLL_BY(8)
    for (int64_t i = 0; i < each; ++i) total += sums[i];
    float* result = static_cast<float*>(entry.data[0]) + row;
    if constexpr (kFisher) {
      *result = math::row_fisher(*result, total, params.settings.number);
    } else {
      const auto* fisher = static_cast<const float*>(entry.data[1]);
      *result =
          math::row_scale(total, fisher == nullptr ? 0.0 : static_cast<double>(fisher[row]), params.settings.number);
    }
  }
};

}  // namespace torch_ssam::cuda
