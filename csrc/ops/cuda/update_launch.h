// The launches of one update rule. They are templates, so that rules compile side by side, a file each.
#pragma once

#include <map>

#include "launch.h"
#include "launches.h"
#include "update_body.h"

namespace torch_ssam::cuda {

// lr given as a tensor, which lies on the device of the call, is read there.
inline Number number_of(const std::optional<Tensor>& tensor, double otherwise) {
  if (!tensor) return {nullptr, false, otherwise};
  return {tensor->data_ptr(), tensor->scalar_type() == ScalarType::Double, 0.0};
}

// body(step, indices) for the tensors that are at the same step: one launch serves one.
template <typename Body>
void for_each_step(const UpdateCall& call, const std::vector<size_t>& chosen, const Body& body) {
  if (call.steps.empty()) return body(0, chosen);
  std::map<int64_t, std::vector<size_t>> groups;
  for (const size_t t : chosen) groups[call.steps[t]].push_back(t);
  for (const auto& [step, group] : groups) body(step, group);
}

// body<kind>() for the kind of the rule.
template <typename Rule, int kFirst = 0, typename Body>
void with_kind(typename Rule::Kind kind, const Body& body) {
  constexpr auto kKind = static_cast<typename Rule::Kind>(kFirst);
  if constexpr (kFirst + 1 == Rule::kKinds) {
    body.template operator()<kKind>();
  } else if (kind == kKind) {
    body.template operator()<kKind>();
  } else {
    with_kind<Rule, kFirst + 1>(kind, body);
  }
}

template <typename Rule>
constexpr size_t kUpdateOperands = 2 + math::kMostBuffers<Rule>;

template <typename Rule, size_t kOperands>
std::array<const TensorViews*, kOperands> operands_of(const UpdateCall& call) {
  static const TensorViews none;
  std::array<const TensorViews*, kOperands> operands;
  operands.fill(&none);
  operands[0] = &call.weights;
  operands[1] = &call.grads;
  for (size_t b = 0; b < call.buffers.size(); ++b) operands[2 + b] = &call.buffers[b];
  if (kOperands > kUpdateOperands<Rule>) operands[kOperands - 1] = &call.params;
  return operands;
}

// With the noise of the call where it has some, in the same pass.
template <typename Rule>
void launch_update(const Rule& rule, const UpdateCall& call) {
  const Launcher launcher(*call.on_device);
  const auto kind = Rule::kind_of(rule);
  const bool noisy = call.noise && call.noise->options.noise_std != 0.0;
  const auto launch = [&]<typename T>(T, int64_t step, const std::vector<size_t>& chosen) {
    using master_t = typename T::master_t;
    using model_t = typename T::model_t;
    using math_t = math::opmath_t<master_t>;
    const UpdateSettings<Rule, math_t> settings{Rule::template params<math_t>(rule, step), kind,
                                                number_of(call.lr, rule.lr)};
    if (!noisy) {
      constexpr size_t kOperands = kUpdateOperands<Rule>;
      const auto tensors = list_tensors<kOperands>(operands_of<Rule, kOperands>(call), chosen, nullptr);
      return with_kind<Rule>(kind, [&]<typename Rule::Kind kKind>() {
        launcher
            .run_list<UpdateBody<Rule, kKind, master_t, model_t, false>::template With, kUpdateLanes<model_t, false>>(
                tensors, settings);
      });
    }
    constexpr size_t kOperands = kUpdateOperands<Rule> + 1;
    const auto tensors = list_tensors<kOperands, Nothing>(operands_of<Rule, kOperands>(call), chosen,
                                                          &call.noise->places, nullptr, &call.noise->shards);
    const UpdateAndPerturbSettings<Rule, math_t> both{settings,
                                                      noise_settings(call.noise->options, call.noise->generator)};
    constexpr int kLanes = kUpdateLanes<model_t, true>;
    if (call.noise->options.scale == math::Scale::element) {
      return launcher.run_list<UpdateByElementBody<Rule, master_t, model_t>::template With, kLanes>(tensors, both);
    }
    with_kind<Rule>(kind, [&]<typename Rule::Kind kKind>() {
      launcher.run_list<UpdateBody<Rule, kKind, master_t, model_t, true>::template With, kLanes>(tensors, both);
    });
  };
  for_each_pair(call.weights, call.grads, [&](DtypePair pair, const std::vector<size_t>& of_pair) {
    with_types(pair, [&]<typename T>(T types) {
      for_each_step(call, of_pair,
                    [&](int64_t step, const std::vector<size_t>& chosen) { launch(types, step, chosen); });
    });
  });
}

}  // namespace torch_ssam::cuda
