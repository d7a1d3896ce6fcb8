// CUDA kernels of the operators add_squares_ and project_ (../update.cpp). Bodies: project_body.h; launches: launch.h.
#include <algorithm>

#include "launch.h"
#include "launches.h"
#include "project_body.h"

namespace torch_ssam::cuda {
namespace {

bool all_empty(const TensorViews& views) {
  return std::all_of(views.begin(), views.end(), [](const TensorView& view) { return view.numel == 0; });
}

// The squares of the views, their sum from `params.squared_norm` on, and what the sum is for: two kernels, the second a
// block of threads.
void sum_up(const Launcher& launcher, const Tensor& on_device, const TensorViews& views,
            ProjectionBody::Params params) {
  std::vector<int64_t> first(views.size());
  for (size_t t = 0; t < views.size(); ++t) {
    first[t] = params.pieces;
    params.pieces += math::norm_pieces(views[t].numel);
  }
  TORCH_SSAM_CHECK(params.pieces <= 0xffffffffLL, "a norm over ", params.pieces,
                   " pieces of 4096 weights is beyond its counter.");
  Tensor lanes = torch::stable::new_empty(on_device, {params.pieces * math::kLanes}, ScalarType::Double);
  auto* sums = static_cast<double*>(lanes.data_ptr());
  params.lanes = sums;
  for_each_pair(views, views, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<1>({&views}, chosen, &first);
    with_types(pair, [&]<typename T>(T) {
      using scalar_t = typename T::master_t;
      launcher.run_list<SquaresFor<scalar_t>::template With, kVector<scalar_t>>(tensors, SquaresSettings{sums});
    });
  });
  launcher.run<ProjectionBody>(params, 1);
}

}  // namespace

void add_squares(const AddSquaresCall& call) {
  if (all_empty(call.weights)) return;
  const Launcher launcher(call.on_device);
  ProjectionBody::Params params{};
  params.squared_norm = params.total = call.total;
  sum_up(launcher, call.on_device, call.weights, params);
}

// The norm and the decision to scale stay on the device.
void project(const ProjectCall& call) {
  const TensorViews& views = call.weights;
  if (all_empty(views)) return;
  const Launcher launcher(call.on_device);
  Tensor result = torch::stable::new_empty(
      call.on_device, {static_cast<int64_t>(sizeof(math::Projection) / sizeof(double))}, ScalarType::Double);
  auto* projection = static_cast<math::Projection*>(result.data_ptr());
  ProjectionBody::Params params{};
  params.radius = call.radius;
  params.result = projection;
  params.squared_norm = call.squared_norm;
  sum_up(launcher, call.on_device, call.squared_norm == nullptr ? views : TensorViews{}, params);
  for_each_pair(views, views, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<1>({&views}, chosen, nullptr);
    with_types(pair, [&]<typename T>(T) {
      using scalar_t = typename T::master_t;
      launcher.run_list<ScaleBody<scalar_t>::template With, kLanesOwned<scalar_t>>(tensors, ScaleSettings{projection});
    });
  });
}

}  // namespace torch_ssam::cuda
