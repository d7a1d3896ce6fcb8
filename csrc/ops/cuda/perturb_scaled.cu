// CUDA kernels of perturbations whose noise is scaled by rows or by element (../perturb.cpp).
#include "perturb_launch.h"

namespace torch_ssam::cuda {

template void launch_perturb<math::Scale::rows>(const PerturbCall&);
template void launch_perturb<math::Scale::element>(const PerturbCall&);

}  // namespace torch_ssam::cuda
