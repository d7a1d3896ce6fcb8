// CUDA kernels of the operator project_ (../update.cpp). Bodies: project_body.h; launches: launch.h.
#include "launch.h"
#include "launches.h"
#include "project_body.h"

namespace torch_ssam::cuda {

// Three kernels, the middle one a block of threads. The norm and the decision to scale stay on the device.
void project(const ProjectCall& call) {
  const TensorViews& views = call.weights;
  std::vector<int64_t> first(views.size());
  int64_t pieces = 0;
  for (size_t t = 0; t < views.size(); ++t) {
    first[t] = pieces;
    pieces += math::norm_pieces(views[t].numel);
  }
  if (pieces == 0) return;
  TORCH_SSAM_CHECK(pieces <= 0xffffffffLL, "project_ over ", pieces, " pieces of 4096 weights is beyond its counter.");
  const Launcher launcher(call.on_device);
  Tensor lanes = torch::stable::new_empty(call.on_device, {pieces * math::kLanes}, ScalarType::Double);
  Tensor result = torch::stable::new_empty(
      call.on_device, {static_cast<int64_t>(sizeof(math::Projection) / sizeof(double))}, ScalarType::Double);
  auto* sums = static_cast<double*>(lanes.data_ptr());
  auto* projection = static_cast<math::Projection*>(result.data_ptr());

  for_each_pair(views, views, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<1>({&views}, chosen, &first);
    with_types(pair, [&]<typename T>(T) {
      using scalar_t = typename T::master_t;
      launcher.run_list<SquaresFor<scalar_t>::template With, kVector<scalar_t>>(tensors, SquaresSettings{sums});
    });
  });
  launcher.run<ProjectionBody>({sums, pieces, call.radius, projection}, 1);
  for_each_pair(views, views, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<1>({&views}, chosen, nullptr);
    with_types(pair, [&]<typename T>(T) {
      using scalar_t = typename T::master_t;
      launcher.run_list<ScaleBody<scalar_t>::template With, kLanesOwned<scalar_t>>(tensors, ScaleSettings{projection});
    });
  });
}

}  // namespace torch_ssam::cuda
