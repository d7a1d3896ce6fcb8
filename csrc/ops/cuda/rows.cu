// CUDA kernels of the operators in ../rows.cpp. Bodies: rows_body.h; launches: launch.h.
#include "launch.h"
#include "launches.h"
#include "rows_body.h"

namespace torch_ssam::cuda {
namespace {

// Operand 0 of a kernel over rows, and operand 1, which may be empty.
template <RowResult kResult>
void launch_rows(const TensorViews& views, const RowViews& rows, const RowViews& others, const Tensor& on_device,
                 double number) {
  std::vector<int64_t> first;
  std::vector<RowLength> lengths;
  int64_t pieces = 0;
  for (const RowView& row : rows) {
    first.push_back(pieces);
    lengths.push_back({row.length});
    pieces += row.rows * math::norm_pieces(row.length);
  }
  TORCH_SSAM_CHECK(pieces <= 0xffffffffLL, "rows of ", pieces, " pieces of 4096 elements are beyond their counter.");
  const Launcher launcher(on_device);
  Tensor memory = torch::stable::new_empty(on_device, {pieces}, ScalarType::Double);
  auto* values = static_cast<double*>(memory.data_ptr());

  for_each_pair(views, views, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    auto tensors = list_tensors<1, RowLength>({&views}, chosen, &first, &lengths);
    for (size_t i = 0; i < chosen.size(); ++i) {
      tensors[i].numel = rows[chosen[i]].rows * math::norm_pieces(rows[chosen[i]].length);
    }
    with_types(pair, [&]<typename T>(T) {
      using scalar_t = typename T::master_t;
      launcher.run_list<RowPiecesFor<ReductionOf<kResult>, scalar_t>::template With, kVector<scalar_t>>(
          tensors, RowPiecesSettings{values});
    });
  });

  std::vector<ListTensor<2, RowLength>> results;
  for (size_t t = 0; t < rows.size(); ++t) {
    ListTensor<2, RowLength> result;
    result.data[0] = rows[t].data;
    result.data[1] = others.empty() ? nullptr : others[t].data;
    result.numel = rows[t].rows;
    result.number = static_cast<uint32_t>(first[t]);
    result.row_length = rows[t].length;
    results.push_back(result);
  }
  launcher.run_table<RowResultBody<kResult>>(results, RowResultSettings{values, number});
}

}  // namespace

void row_scales(const RowScalesCall& call) {
  if (call.kind == math::RowScale::absmax) {
    return launch_rows<RowResult::range>(call.weights, call.row_scales, {}, call.on_device, 0.0);
  }
  launch_rows<RowResult::scale>(call.weights, call.row_scales, call.fisher, call.on_device, call.fisher_factor);
}

void row_fisher(const RowFisherCall& call) {
  launch_rows<RowResult::fisher>(call.grads, call.fisher, {}, call.on_device, call.decay);
}

}  // namespace torch_ssam::cuda
