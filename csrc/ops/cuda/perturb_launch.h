// The launches of clean + noise for one kind of scale. They are templates, so that perturb.cu and perturb_scaled.cu
// compile side by side.
#pragma once

#include "launch.h"
#include "perturb_body.h"

namespace torch_ssam::cuda {

// With `save` the parameters are the source and `clean` receives them. noise_only: see perturb_group.
struct PerturbCall {
  const PerturbArgs& args;
  const Tensor& generator;
  const std::vector<int64_t>& places;
  bool save;
  bool noise_only;
  std::optional<Tensor> found_inf;
};

// params <- clean, rounded to their dtype.
void round_list(const TensorViews& params, const TensorViews& clean, const Tensor& on_device,
                const std::optional<Tensor>& found_inf);

template <math::Scale kScale>
void launch_perturb(const PerturbCall& call) {
  using More = std::conditional_t<kScale == math::Scale::rows, RowScales, Nothing>;
  const PerturbArgs& args = call.args;
  const Launcher launcher(call.generator);
  const PerturbSettings settings{noise_settings(args.noise, call.generator), number_of(call.found_inf, 0.0),
                                 call.noise_only};
  std::vector<More> more(args.params.size());
  if constexpr (kScale == math::Scale::rows) {
    for (size_t t = 0; t < more.size(); ++t) more[t] = {args.row_scales[t].data, args.row_scales[t].length};
  }
  for_each_pair(args.clean, args.params, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors = list_tensors<2, More>({&args.params, &args.clean}, chosen, &call.places, &more);
    with_types(pair, [&]<typename T>(T) {
      using master_t = typename T::master_t;
      using model_t = typename T::model_t;
      constexpr int kCount = kPerturbLanes<model_t, kScale>;
      if (!call.save) {
        launcher.run_list<PerturbBody<master_t, model_t, false, kScale>::template With, kCount>(tensors, settings);
      } else if constexpr (std::is_same_v<master_t, model_t>) {
        launcher.run_list<PerturbBody<master_t, model_t, true, kScale>::template With, kCount>(tensors, settings);
      }
    });
  });
}

extern template void launch_perturb<math::Scale::rows>(const PerturbCall&);
extern template void launch_perturb<math::Scale::element>(const PerturbCall&);

}  // namespace torch_ssam::cuda
