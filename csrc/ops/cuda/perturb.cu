// CUDA kernels of the operators in ../perturb.cpp. Bodies: perturb_body.h; launches: perturb_launch.h, launch.h.
#include "perturb_launch.h"

namespace torch_ssam::cuda {

void perturb(const PerturbCall& call) {
  switch (call.noise.options.scale) {
    case math::Scale::isotropic:
      return launch_perturb<math::Scale::isotropic>(call);
    case math::Scale::rows:
      return launch_perturb<math::Scale::rows>(call);
    default:
      return launch_perturb<math::Scale::element>(call);
  }
}

void restore(const RestoreCall& call) {
  const Launcher launcher(call.on_device);
  for_each_pair(call.clean, call.params, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const ScalarType model = call.params[chosen[0]].dtype;
    const auto tensors = list_tensors<2>({&call.params, &call.clean}, chosen, nullptr);
    if (call.clean[chosen[0]].dtype != model) {
      return with_types(pair, [&]<typename T>(T) {
        using master_t = typename T::master_t;
        using model_t = typename T::model_t;
        if constexpr (!std::is_same_v<master_t, model_t>) {
          launcher.run_list<RoundBody<master_t, model_t>::template With, kLanesOwned<model_t>>(tensors,
                                                                                               RoundSettings{});
        }
      });
    }
    const RestoreSettings settings{};
    switch (bytes_of(model)) {
      case 8:
        return launcher.run_list<RestoreBody<uint64_t>::With, kLanesOwned<uint64_t>>(tensors, settings);
      case 4:
        return launcher.run_list<RestoreBody<uint32_t>::With, kLanesOwned<uint32_t>>(tensors, settings);
      default:
        return launcher.run_list<RestoreBody<uint16_t>::With, kLanesOwned<uint16_t>>(tensors, settings);
    }
  });
}

void follow(const FollowCall& call) {
  const Launcher launcher(call.on_device);
  for_each_pair(call.clean, call.params, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<2>({&call.clean, &call.params}, chosen, nullptr);
    with_types(pair, [&]<typename T>(T) {
      using master_t = typename T::master_t;
      using model_t = typename T::model_t;
      launcher.run_list<FollowBody<master_t, model_t>::template With, kLanesOwned<model_t>>(tensors, FollowSettings{});
    });
  });
}

void advance(const AdvanceCall& call) {
  const Launcher launcher(call.generator);
  launcher.run<AdvanceBody>({static_cast<int64_t*>(call.generator.data_ptr()), call.draws}, 1);
}

}  // namespace torch_ssam::cuda
