// CUDA kernels of SGD's family, and the updates of ../update.cpp by any rule; the kernels of others are in files of
// their own. Bodies: update_body.h; launches: update_launch.h.
#include "update_launch.h"

namespace torch_ssam::cuda {

extern template void launch_update<math::AdamW>(const math::AdamW&, const UpdateCall&);
template void launch_update<math::Sgd>(const math::Sgd&, const UpdateCall&);

void update(const UpdateCall& call) {
  std::visit([&](const auto& rule) { launch_update(rule, call); }, call.rule);
  if (call.noise && call.noise->options.noise_std == 0.0) restore({call.params, call.weights, *call.on_device});
}

}  // namespace torch_ssam::cuda
