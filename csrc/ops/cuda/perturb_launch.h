// The launches of clean + noise for one kind of scale. They are templates, so that perturb.cu and perturb_scaled.cu
// compile side by side.
#pragma once

#include "launch.h"
#include "launches.h"
#include "perturb_body.h"

namespace torch_ssam::cuda {

template <math::Scale kScale>
void launch_perturb(const PerturbCall& call) {
  using More = std::conditional_t<kScale == math::Scale::rows, RowScales, Nothing>;
  const Noise& noise = call.noise;
  const Launcher launcher(call.on_device);
  const PerturbSettings settings{noise_settings(noise.options, noise.generator)};
  std::vector<More> more(call.params.size());
  if constexpr (kScale == math::Scale::rows) {
    for (size_t t = 0; t < more.size(); ++t) {
      const RowView& row = noise.row_scales[t];
      TORCH_SSAM_CHECK(!row.repeat || row.rows < RowScales::kMostRows, "row_scales[", t, "] has ", row.rows,
                       " rows along another dimension than 0; expected fewer than ", RowScales::kMostRows,
                       " on a GPU.");
      more[t] = {row.data, row.length, row.repeat ? row.rows : 0};
    }
  }
  for_each_pair(call.clean, call.params, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    const auto tensors =
        list_tensors<2, More>({&call.params, &call.clean}, chosen, &noise.places, &more, &noise.shards);
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
