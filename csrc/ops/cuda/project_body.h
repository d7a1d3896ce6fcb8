// Bodies of the kernels in project.cu: the projection onto a ball in three kernels (squares of pieces, their sum in
// order, scaling), whose numbers stay on the device. The arithmetic and every order are csrc/math's.
// Tests: test_cuda_on_host.cpp, test_cuda.py.
#pragma once

#include "pieces.h"

namespace torch_ssam::cuda {

struct SquaresSettings {
  double* lanes;
};

// Lane sums of every piece of kNormPiece elements: lanes[16 piece + l]. An entry's number is its tensor's first piece.
template <typename scalar_t, int kCount>
struct SquaresBody {
  static constexpr int kOwners = static_cast<int>(math::kLanes) / kCount;  // threads that share a piece
  static constexpr int64_t kAlign = math::kNormPiece;
  static constexpr int64_t kSpan = kThreads / kOwners * math::kNormPiece;
  using TableType = TableFor<1, kCount>;

  struct Params {
    SquaresSettings settings;
    TableType table;
  };

  static int64_t whole(const ListTensor<1>& tensor) { return tensor.numel / math::kNormPiece * math::kNormPiece; }

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    const int index = entry_of(params.table, at.block);
    const Entry<1>& entry = params.table.entries[index];
    const int64_t in_launch = at.block - params.table.first_block[index];
    const int64_t piece = entry.begin / kAlign + in_launch * (kThreads / kOwners) + at.index / kOwners;
    const int lane = at.index % kOwners * kCount;
    if (piece * kAlign >= entry.end) return;

    double sums[kCount] = {};
    const int64_t end = entry.end < (piece + 1) * kAlign ? entry.end : (piece + 1) * kAlign;
    reduce_lanes<math::SumOfSquares, scalar_t>(params.table, index, piece * kAlign, end, lane, sums);
    store_group(params.settings.lanes + (entry.number + piece) * math::kLanes + lane, sums);
  }
};

template <typename scalar_t>
struct SquaresFor {
  template <int kCount>
  using With = SquaresBody<scalar_t, kCount>;
};

// One block of threads: trees of 256 pieces at a time, then their sum in order, by one thread, as the contract has it.
struct ProjectionBody {
  struct Params {
    const double* lanes;
    int64_t pieces;
    double radius;
    math::Projection* result;              // null where the sum is all
    const double* squared_norm = nullptr;  // what the sum starts from, where it is not 0
    double* total = nullptr;               // what receives the sum
  };
  struct Shared {
    double sums[kThreads];
    double total;
  };

  TORCH_SSAM_BODY int64_t tiles(const Params& params) {
    return params.pieces == 0 ? 1 : (params.pieces + kThreads - 1) / kThreads;
  }

  TORCH_SSAM_BODY void first_phase(const Params& params, Thread at, int64_t tile, Shared& shared) {
    const int64_t piece = tile * kThreads + at.index;
    if (piece >= params.pieces) return;
    double lanes[math::kLanes];
    TORCH_SSAM_UNROLL
    for (int l = 0; l < math::kLanes; ++l) lanes[l] = params.lanes[piece * math::kLanes + l];
    shared.sums[at.index] = math::add_lanes(lanes);
  }

  TORCH_SSAM_BODY void second_phase(const Params& params, Thread at, int64_t tile, Shared& shared) {
    if (at.index != 0) return;
    double total = tile != 0 ? shared.total : params.squared_norm != nullptr ? *params.squared_norm : 0.0;
    const int64_t rest = params.pieces - tile * kThreads;
    const int count = rest < kThreads ? static_cast<int>(rest) : kThreads;
    TORCH_SSAM_UNROLL_BY(8)
    for (int i = 0; i < count; ++i) total += shared.sums[i];
    shared.total = total;
    if (tile + 1 != tiles(params)) return;
    if (params.total != nullptr) *params.total = total;
    if (params.result != nullptr) *params.result = math::make_projection(total, params.radius);
  }
};

struct ScaleSettings {
  const math::Projection* projection;
};

template <typename scalar_t>
struct ScaleOp {
  static constexpr int kOperands = 1;
  static constexpr bool kNoise = false;
  template <int kCount>
  static constexpr int kAhead = sizeof(scalar_t) == 8 ? 2 : 4;
  using math_t = math::opmath_t<scalar_t>;
  using Settings = ScaleSettings;
  struct Local {
    math_t factor;
  };
  template <int kCount>
  struct Values {
    scalar_t weight[kCount];
  };

  TORCH_SSAM_BODY bool prepare(const Settings& settings, Local& local) {
    local.factor = static_cast<math_t>(settings.projection->factor);
    return settings.projection->outside;
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void load(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                            const Local&) {
    load_operand(table, cursor, 0, values.weight);
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void finish(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                              const uint32_t (&)[kCount], const Local& local) {
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kCount; ++l) {
      values.weight[l] =
          math::Store<scalar_t>::from(math::scale_element(math::load_scalar(values.weight[l]), local.factor));
    }
    store_operand(table, cursor, 0, values.weight);
  }
};

template <typename scalar_t>
struct ScaleBody {
  template <int kCount>
  using With = ListBody<ScaleOp<scalar_t>, kCount>;
};

}  // namespace torch_ssam::cuda
