// CUDA kernels of AdamW. The rule: ../../math/rules/adamw.h; launches: update_launch.h.
#include "update_launch.h"

namespace torch_ssam::cuda {

template void launch_update<math::AdamW>(const math::AdamW&, const UpdateCall&);

}  // namespace torch_ssam::cuda
