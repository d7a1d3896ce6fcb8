// Bodies of the kernels in perturb.cu: clean + noise with or without saving the clean weights, copying or rounding
// clean weights back, and the step of the generator. The arithmetic is csrc/math's. Tests: test_cuda_on_host.cpp,
// test_cuda.py.
#pragma once

#include "list_body.h"

namespace torch_ssam::cuda {

struct PerturbSettings {
  NoiseSettings noise;
};

// kSave: operand 0 (params) holds the clean weights, operand 1 receives them. Else operand 1 is the source.
template <typename master_t, typename model_t, bool kSave, bool kByElement>
struct PerturbOp {
  static constexpr int kOperands = 2;
  static constexpr bool kNoise = true;
  template <int kCount>
  static constexpr int kAhead = kCount * sizeof(master_t) > 16 ? 1 : 2;
  using math_t = math::opmath_t<master_t>;
  using Settings = PerturbSettings;
  struct Local {
    math_t noise_std;
    bool alone;
  };
  template <int kCount>
  struct Values {
    master_t clean[kCount];
  };

  TORCH_SSAM_BODY bool prepare(const Settings& settings, Local& local) {
    local.noise_std = static_cast<math_t>(settings.noise.noise_std);
    local.alone = settings.noise.alone;
    return true;
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void load(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                            const Local&) {
    load_operand(table, cursor, kSave ? 0 : 1, values.clean);
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void finish(const TableType& table, const Cursor<kOperands, kCount>& cursor,
                              const Values<kCount>& values, const uint32_t (&noise)[kCount], const Local& local) {
    model_t perturbed[kCount];
    perturb_group<kByElement>(values.clean, local.noise_std, noise, local.alone, perturbed);
    if constexpr (kSave) store_operand(table, cursor, 1, values.clean);
    store_operand(table, cursor, 0, perturbed);
  }
};

struct RestoreSettings {};

// Copies bits: bits_t is an unsigned integer of the dtype's size. Operand 0 from operand 1.
template <typename bits_t>
struct RestoreOp {
  static constexpr int kOperands = 2;
  static constexpr bool kNoise = false;
  template <int kCount>
  static constexpr int kAhead = sizeof(bits_t) == 8 ? 2 : 4;
  using Settings = RestoreSettings;
  struct Local {};
  template <int kCount>
  struct Values {
    bits_t bits[kCount];
  };

  TORCH_SSAM_BODY bool prepare(const Settings&, Local&) { return true; }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void load(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                            const Local&) {
    load_operand(table, cursor, 1, values.bits);
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void finish(const TableType& table, const Cursor<kOperands, kCount>& cursor,
                              const Values<kCount>& values, const uint32_t (&)[kCount], const Local&) {
    store_operand(table, cursor, 0, values.bits);
  }
};

struct RoundSettings {};

// Operand 0 (params) from operand 1 (clean), rounded to how parameters are stored.
template <typename master_t, typename model_t>
struct RoundOp {
  static constexpr int kOperands = 2;
  static constexpr bool kNoise = false;
  template <int kCount>
  static constexpr int kAhead = 2;
  using Settings = RoundSettings;
  struct Local {};
  template <int kCount>
  struct Values {
    master_t clean[kCount];
  };

  TORCH_SSAM_BODY bool prepare(const Settings&, Local&) { return true; }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void load(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                            const Local&) {
    load_operand(table, cursor, 1, values.clean);
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void finish(const TableType& table, const Cursor<kOperands, kCount>& cursor,
                              const Values<kCount>& values, const uint32_t (&)[kCount], const Local&) {
    model_t rounded[kCount];
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kCount; ++l) rounded[l] = math::round_stored<model_t>(values.clean[l]);
    store_operand(table, cursor, 0, rounded);
  }
};

struct FollowSettings {};

// Operand 0 (clean) takes what others wrote to operand 1 (params).
template <typename master_t, typename model_t>
struct FollowOp {
  static constexpr int kOperands = 2;
  static constexpr bool kNoise = false;
  template <int kCount>
  static constexpr int kAhead = 2;
  using Settings = FollowSettings;
  struct Local {};
  template <int kCount>
  struct Values {
    master_t clean[kCount];
    model_t params[kCount];
  };

  TORCH_SSAM_BODY bool prepare(const Settings&, Local&) { return true; }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void load(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                            const Local&) {
    load_operand(table, cursor, 0, values.clean);
    load_operand(table, cursor, 1, values.params);
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void finish(const TableType& table, const Cursor<kOperands, kCount>& cursor,
                              const Values<kCount>& values, const uint32_t (&)[kCount], const Local&) {
    master_t followed[kCount];
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kCount; ++l) followed[l] = math::follow_stored(values.clean[l], values.params[l]);
    store_operand(table, cursor, 0, followed);
  }
};

template <typename master_t, typename model_t, bool kSave, math::Scale kScale = math::Scale::isotropic>
struct PerturbBody {
  template <int kCount>
  using With = ListBody<PerturbOp<master_t, model_t, kSave, kScale == math::Scale::element>, kCount,
                        std::conditional_t<kScale == math::Scale::rows, RowScales, Nothing>>;
};

// Lanes a thread owns on the aligned path. With scales and eight lanes the registers would not do.
template <typename model_t, math::Scale kScale>
inline constexpr int kPerturbLanes =
    kScale != math::Scale::isotropic && sizeof(model_t) == 2 ? 4 : kLanesOwned<model_t>;

template <typename bits_t>
struct RestoreBody {
  template <int kCount>
  using With = ListBody<RestoreOp<bits_t>, kCount>;
};

template <typename master_t, typename model_t>
struct RoundBody {
  template <int kCount>
  using With = ListBody<RoundOp<master_t, model_t>, kCount>;
};

template <typename master_t, typename model_t>
struct FollowBody {
  template <int kCount>
  using With = ListBody<FollowOp<master_t, model_t>, kCount>;
};

struct AdvanceBody {
  struct Params {
    int64_t* generator;
    int64_t draws;
  };

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    if (global_index(at) != 0) return;
    params.generator[1] = math::later_draw(params.generator[1], params.draws);
  }
};

}  // namespace torch_ssam::cuda
