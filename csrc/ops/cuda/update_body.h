// Bodies of the kernels in update_launch.h: a rule's update, and the update with the next noise in one pass. The
// arithmetic is csrc/math's. Tests: test_cuda_on_host.cpp, test_cuda.py.
#pragma once

#include <utility>

#include "list_body.h"

namespace torch_ssam::cuda {

template <typename Rule, typename math_t>
struct UpdateSettings {
  typename Rule::template Params<math_t> params;  // but for lr
  typename Rule::Kind kind;
  Number lr;
};

template <typename Rule, typename math_t>
struct UpdateAndPerturbSettings {
  UpdateSettings<Rule, math_t> update;
  NoiseSettings noise;
};

template <typename Rule, typename math_t>
struct UpdateLocal {
  typename Rule::template Params<math_t> params;
  typename Rule::Kind kind;
  math_t noise_std;
};

template <typename Rule, typename master_t, typename model_t, int kCount>
struct UpdateValues {
  master_t clean[kCount];
  master_t buffers[math::kMostBuffers<Rule>][kCount];
  model_t grad[kCount];
};

template <typename Rule, typename Rule::Kind kKind, typename master_t, typename model_t, int kCount, int... kBuffer>
TORCH_SSAM_BODY void update_group(UpdateValues<Rule, master_t, model_t, kCount>& values,
                                  const UpdateLocal<Rule, math::opmath_t<master_t>>& local,
                                  std::integer_sequence<int, kBuffer...>) {
  TORCH_SSAM_UNROLL
  for (int l = 0; l < kCount; ++l) {
    values.clean[l] =
        math::update_stored<Rule, kKind>(values.clean[l], values.grad[l], local.params, &values.buffers[kBuffer][l]...);
  }
}

// The kind of the rule: compiled in on the aligned path, a branch on the other, which is not about speed, and with
// noise by element, which is rare.
template <typename Rule_, typename Rule_::Kind kKind>
struct FixedKind {
  using Rule = Rule_;
  template <typename math_t>
  TORCH_SSAM_BODY int buffers(const UpdateLocal<Rule, math_t>&) {
    return Rule::buffers_of(kKind);
  }
  template <typename master_t, typename model_t, int kCount>
  TORCH_SSAM_BODY void update(UpdateValues<Rule, master_t, model_t, kCount>& values,
                              const UpdateLocal<Rule, math::opmath_t<master_t>>& local) {
    update_group<Rule, kKind>(values, local, std::make_integer_sequence<int, Rule::buffers_of(kKind)>{});
  }
};

template <typename Rule_>
struct AnyKind {
  using Rule = Rule_;
  template <typename math_t>
  TORCH_SSAM_BODY int buffers(const UpdateLocal<Rule, math_t>& local) {
    return Rule::buffers_of(local.kind);
  }
  template <int kFirst = 0, typename master_t, typename model_t, int kCount>
  TORCH_SSAM_BODY void update(UpdateValues<Rule, master_t, model_t, kCount>& values,
                              const UpdateLocal<Rule, math::opmath_t<master_t>>& local) {
    constexpr auto kKind = static_cast<typename Rule::Kind>(kFirst);
    if constexpr (kFirst + 1 == Rule::kKinds) {
      FixedKind<Rule, kKind>::update(values, local);
    } else if (local.kind == kKind) {
      FixedKind<Rule, kKind>::update(values, local);
    } else {
      update<kFirst + 1>(values, local);
    }
  }
};

// Operands: clean weights, gradients, the buffers that the rule may have and, with kPerturb, the parameters that get
// clean + noise.
template <typename KindOf, typename master_t, typename model_t, bool kPerturb, bool kByElement>
struct UpdateOp {
  using Rule = typename KindOf::Rule;
  static constexpr int kBuffers = math::kMostBuffers<Rule>;
  static constexpr int kOperands = 2 + kBuffers + (kPerturb ? 1 : 0);
  static constexpr bool kNoise = kPerturb;
  // A rule of several buffers loads enough at a time; two groups of it would spill.
  template <int kCount>
  static constexpr int kAhead = sizeof(master_t) == 8 || kCount == 8 || kCount == 1 || kBuffers > 1 ? 1 : 2;
  using math_t = math::opmath_t<master_t>;
  using Settings = std::conditional_t<kPerturb, UpdateAndPerturbSettings<Rule, math_t>, UpdateSettings<Rule, math_t>>;
  using Local = UpdateLocal<Rule, math_t>;
  template <int kCount>
  using Values = UpdateValues<Rule, master_t, model_t, kCount>;

  TORCH_SSAM_BODY void prepare_update(const UpdateSettings<Rule, math_t>& settings, Local& local) {
    local.params = settings.params;
    Rule::set_lr(local.params, read(settings.lr));
    local.kind = settings.kind;
  }

  TORCH_SSAM_BODY bool prepare(const Settings& settings, Local& local) {
    if constexpr (kPerturb) {
      local.noise_std = static_cast<math_t>(settings.noise.noise_std);
      prepare_update(settings.update, local);
    } else {
      local.noise_std = math_t(0);
      prepare_update(settings, local);
    }
    return true;
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void load(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                            const Local& local) {
    load_operand(table, cursor, 0, values.clean);
    load_operand(table, cursor, 1, values.grad);
    TORCH_SSAM_UNROLL
    for (int b = 0; b < kBuffers; ++b) {
      if (b < KindOf::buffers(local)) load_operand(table, cursor, 2 + b, values.buffers[b]);
    }
  }

  template <int kCount, typename TableType>
  TORCH_SSAM_BODY void finish(const TableType& table, const Cursor<kOperands, kCount>& cursor, Values<kCount>& values,
                              const uint32_t (&noise)[kCount], const Local& local) {
    KindOf::update(values, local);
    store_operand(table, cursor, 0, values.clean);
    TORCH_SSAM_UNROLL
    for (int b = 0; b < kBuffers; ++b) {
      if (b < KindOf::buffers(local)) store_operand(table, cursor, 2 + b, values.buffers[b]);
    }
    if constexpr (kPerturb) {
      model_t perturbed[kCount];
      perturb_group<kByElement>(values.clean, local.noise_std, noise, /*alone=*/false, perturbed);
      store_operand(table, cursor, 2 + kBuffers, perturbed);
    }
  }
};

// Lanes a thread owns on the aligned path. With noise, momentum and eight lanes the registers would not do, so that
// there 16-bit operands are read and written 8 bytes at a time.
template <typename model_t, bool kPerturb>
inline constexpr int kUpdateLanes = kPerturb && sizeof(model_t) == 2 ? 4 : kLanesOwned<model_t>;

template <typename Rule, typename Rule::Kind kKind, typename master_t, typename model_t, bool kPerturb>
struct UpdateBody {
  template <int kCount>
  using With = ListBody<UpdateOp<std::conditional_t<kCount == 1, AnyKind<Rule>, FixedKind<Rule, kKind>>, master_t,
                                 model_t, kPerturb, false>,
                        kCount>;
};

template <typename Rule, typename master_t, typename model_t>
struct UpdateByElementBody {
  template <int kCount>
  using With = ListBody<UpdateOp<AnyKind<Rule>, master_t, model_t, true, true>, kCount>;
};

}  // namespace torch_ssam::cuda
