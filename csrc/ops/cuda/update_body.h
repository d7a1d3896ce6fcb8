// Bodies of the kernels in update.cu: the update, the update with the next noise in one pass, and the projection onto a
// ball in three kernels (squares of pieces, their sum in order, scaling), whose numbers stay on the device.
// The arithmetic and every order are csrc/math's. Tests: test_cuda_on_host.cpp, test_cuda.py.
#pragma once

#include "norms.h"

namespace torch_ssam::cuda {

template <typename math_t>
struct UpdateSettings {
  math::UpdateParams<math_t> params;  // but for lr and grad_scale
  math::Momentum momentum;
  bool scaled;
  Number lr, grad_scale, found_inf;
};

template <typename math_t>
struct UpdateAndPerturbSettings {
  UpdateSettings<math_t> update;
  NoiseSettings noise;
};

template <typename math_t>
struct UpdateLocal {
  math::UpdateParams<math_t> params;
  math::Momentum momentum;
  bool scaled;
  math_t noise_std;
};

template <typename math_t>
TORCH_SSAM_BODY bool prepare_update(const UpdateSettings<math_t>& settings, UpdateLocal<math_t>& local) {
  local.params = settings.params;
  local.params.lr = static_cast<math_t>(read(settings.lr));
  local.params.grad_scale = static_cast<math_t>(read(settings.grad_scale));
  local.momentum = settings.momentum;
  local.scaled = settings.scaled;
  return read(settings.found_inf) == 0.0;
}

template <typename master_t, typename model_t, int kCount>
struct UpdateValues {
  master_t clean[kCount];
  master_t buffer[kCount];
  model_t grad[kCount];
};

template <math::Momentum kMomentum, bool kScaled, typename master_t, typename model_t, int kCount>
TORCH_SSAM_BODY void update_group(UpdateValues<master_t, model_t, kCount>& values,
                                  const UpdateLocal<math::opmath_t<master_t>>& local) {
  TORCH_SSAM_UNROLL
  for (int l = 0; l < kCount; ++l) {
    values.clean[l] =
        math::update_stored<kMomentum, kScaled>(values.clean[l], values.grad[l], &values.buffer[l], local.params);
  }
}

// The kind of update: compiled in on the aligned path, a branch on the other, which is not about speed, and with noise
// by element, which is rare.
template <math::Momentum kMomentum, bool kScaled>
struct FixedKind {
  template <typename math_t>
  TORCH_SSAM_BODY bool has_buffer(const UpdateLocal<math_t>&) {
    return kMomentum != math::Momentum::none;
  }
  template <typename master_t, typename model_t, int kCount>
  TORCH_SSAM_BODY void update(UpdateValues<master_t, model_t, kCount>& values,
                              const UpdateLocal<math::opmath_t<master_t>>& local) {
    update_group<kMomentum, kScaled>(values, local);
  }
};

struct AnyKind {
  template <typename math_t>
  TORCH_SSAM_BODY bool has_buffer(const UpdateLocal<math_t>& local) {
    return local.momentum != math::Momentum::none;
  }
  template <math::Momentum kMomentum, typename master_t, typename model_t, int kCount>
  TORCH_SSAM_BODY void scaled_or_not(UpdateValues<master_t, model_t, kCount>& values,
                                     const UpdateLocal<math::opmath_t<master_t>>& local) {
    if (local.scaled) {
      update_group<kMomentum, true>(values, local);
    } else {
      update_group<kMomentum, false>(values, local);
    }
  }
  template <typename master_t, typename model_t, int kCount>
  TORCH_SSAM_BODY void update(UpdateValues<master_t, model_t, kCount>& values,
                              const UpdateLocal<math::opmath_t<master_t>>& local) {
    switch (local.momentum) {
      case math::Momentum::none:
        return scaled_or_not<math::Momentum::none>(values, local);
      case math::Momentum::heavy_ball:
        return scaled_or_not<math::Momentum::heavy_ball>(values, local);
      default:
        return scaled_or_not<math::Momentum::nesterov>(values, local);
    }
  }
};

// Operands: clean weights, gradients, momentum buffers and, with kPerturb, the parameters that get clean + noise.
template <typename Kind, typename master_t, typename model_t, bool kPerturb, bool kByElement>
struct UpdateOp {
  static constexpr int kOperands = kPerturb ? 4 : 3;
  static constexpr bool kNoise = kPerturb;
  template <int kCount>
  static constexpr int kAhead = sizeof(master_t) == 8 || kCount == 8 || kCount == 1 ? 1 : 2;
  using math_t = math::opmath_t<master_t>;
  using Settings = std::conditional_t<kPerturb, UpdateAndPerturbSettings<math_t>, UpdateSettings<math_t>>;
  using Local = UpdateLocal<math_t>;
  template <int kCount>
  using Values = UpdateValues<master_t, model_t, kCount>;

  TORCH_SSAM_BODY bool prepare(const Settings& settings, Local& local) {
    if constexpr (kPerturb) {
      local.noise_std = static_cast<math_t>(settings.noise.noise_std);
      return prepare_update(settings.update, local);
    } else {
      local.noise_std = math_t(0);
      return prepare_update(settings, local);
    }
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void load(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                            const Local& local) {
    load_operand(table, cursor, 0, values.clean);
    load_operand(table, cursor, 1, values.grad);
    if (Kind::has_buffer(local)) load_operand(table, cursor, 2, values.buffer);
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void finish(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                              const uint32_t (&noise)[kCount], const Local& local) {
    Kind::update(values, local);
    store_operand(table, cursor, 0, values.clean);
    if (Kind::has_buffer(local)) store_operand(table, cursor, 2, values.buffer);
    if constexpr (kPerturb) {
      model_t perturbed[kCount];
      perturb_group<kByElement>(values.clean, local.noise_std, noise, /*noise_only=*/false, perturbed);
      store_operand(table, cursor, 3, perturbed);
    }
  }
};

// Lanes a thread owns on the aligned path. With noise, momentum and eight lanes the registers would not do, so that
// there 16-bit operands are read and written 8 bytes at a time.
template <typename model_t, bool kPerturb>
inline constexpr int kUpdateLanes = kPerturb && sizeof(model_t) == 2 ? 4 : kLanesOwned<model_t>;

template <math::Momentum kMomentum, bool kScaled, typename master_t, typename model_t, bool kPerturb>
struct UpdateBody {
  template <int kCount>
  using With = ListBody<UpdateOp<std::conditional_t<kCount == 1, AnyKind, FixedKind<kMomentum, kScaled>>, master_t,
                                 model_t, kPerturb, false>,
                        kCount>;
};

template <typename master_t, typename model_t>
struct UpdateByElementBody {
  template <int kCount>
  using With = ListBody<UpdateOp<AnyKind, master_t, model_t, true, true>, kCount>;
};

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
    sum_squares<scalar_t>(params.table, index, piece * kAlign, end, lane, sums);
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
    math::Projection* result;
  };
  struct Shared {
    double sums[kThreads];
    double total;
  };

  TORCH_SSAM_BODY int64_t tiles(const Params& params) { return (params.pieces + kThreads - 1) / kThreads; }

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
    double total = tile == 0 ? 0.0 : shared.total;
    const int64_t rest = params.pieces - tile * kThreads;
    const int count = rest < kThreads ? static_cast<int>(rest) : kThreads;
    TORCH_SSAM_UNROLL_BY(8)
    for (int i = 0; i < count; ++i) total += shared.sums[i];
    shared.total = total;
    if (tile + 1 == tiles(params)) *params.result = math::make_projection(total, params.radius);
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
