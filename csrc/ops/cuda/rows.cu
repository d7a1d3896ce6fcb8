// CUDA kernels of the operators in ../rows.cpp. Bodies: rows_body.h; launches: launch.h.
#include "launch.h"
#include "launches.h"
#include "rows_body.h"

namespace torch_ssam::cuda {
namespace {

// The pieces of a list's rows, counted through.
struct RowPieces {
  std::vector<int64_t> first;  // of each tensor
  std::vector<RowLength> lengths;
  int64_t count = 0;
};

RowPieces count_pieces(const RowViews& rows) {
  RowPieces pieces;
  for (const RowView& row : rows) {
    pieces.first.push_back(pieces.count);
    pieces.lengths.push_back({row.length});
    pieces.count += row.rows * math::norm_pieces(row.length);
  }
  TORCH_SSAM_CHECK(pieces.count <= 0xffffffffLL, "rows of ", pieces.count,
                   " pieces of 4096 elements are beyond their counter.");
  return pieces;
}

// Body<scalar_t> over the pieces of rows; `numbers` are those of the tensors.
template <template <typename> class Body, typename Settings>
void launch_pieces(const Launcher& launcher, const TensorViews& views, const RowViews& rows, const RowPieces& pieces,
                   const std::vector<int64_t>& numbers, const Settings& settings) {
  for_each_pair(views, views, [&](DtypePair pair, const std::vector<size_t>& chosen) {
    auto tensors = list_tensors<1, RowLength>({&views}, chosen, &numbers, &pieces.lengths);
    for (size_t i = 0; i < chosen.size(); ++i) {
      tensors[i].numel = rows[chosen[i]].rows * math::norm_pieces(rows[chosen[i]].length);
    }
    with_types(pair, [&]<typename T>(T) {
      using scalar_t = typename T::master_t;
      launcher.run_list<Body<scalar_t>::template With, kVector<scalar_t>>(tensors, settings);
    });
  });
}

template <RowResult kResult>
struct PiecesOf {
  template <typename scalar_t>
  using For = RowPiecesFor<ReductionOf<kResult>, scalar_t>;
};

// What each tensor's rows write to, and read.
struct RowOperands {
  void* result;
  void* other;
};

template <RowResult kResult>
void launch_rows(const Launcher& launcher, const TensorViews& views, const RowViews& rows,
                 const std::vector<RowOperands>& operands, const Tensor& on_device, double number) {
  const RowPieces pieces = count_pieces(rows);
  Tensor memory = torch::stable::new_empty(on_device, {pieces.count}, ScalarType::Double);
  auto* values = static_cast<double*>(memory.data_ptr());
  launch_pieces<PiecesOf<kResult>::template For>(launcher, views, rows, pieces, pieces.first,
                                                 RowPiecesSettings{values});
  std::vector<ListTensor<2, RowLength>> results;
  for (size_t t = 0; t < rows.size(); ++t) {
    ListTensor<2, RowLength> result;
    result.data[0] = operands[t].result;
    result.data[1] = operands[t].other;
    result.numel = rows[t].rows;
    result.number = static_cast<uint32_t>(pieces.first[t]);
    result.row_length = rows[t].length;
    results.push_back(result);
  }
  launcher.run_table<RowResultBody<kResult>>(results, RowResultSettings{values, number});
}

// The rows' own numbers become the result.
template <RowResult kResult>
void launch_numbers(const TensorViews& views, const RowViews& rows, const RowViews& others, const Tensor& on_device,
                    double number) {
  std::vector<RowOperands> operands;
  for (size_t t = 0; t < rows.size(); ++t)
    operands.push_back({rows[t].data, others.empty() ? nullptr : others[t].data});
  launch_rows<kResult>(Launcher(on_device), views, rows, operands, on_device, number);
}

}  // namespace

void row_scales(const RowScalesCall& call) {
  if (call.kind == math::RowScale::absmax) {
    return launch_numbers<RowResult::range>(call.weights, call.row_scales, {}, call.on_device, 0.0);
  }
  launch_numbers<RowResult::scale>(call.weights, call.row_scales, call.fisher, call.on_device, call.fisher_factor);
}

void row_fisher(const RowFisherCall& call) {
  launch_numbers<RowResult::fisher>(call.grads, call.fisher, {}, call.on_device, call.decay);
}

// Sums of squares, the rows' limits, and the clipping. The limits stay on the device.
void clip_rows(const ClipRowsCall& call) {
  const Launcher launcher(call.on_device);
  std::vector<int64_t> first;
  int64_t count = 0;
  for (const RowView& row : call.rows) {
    first.push_back(count);
    count += row.rows;
  }
  Tensor memory = torch::stable::new_empty(call.on_device, {count}, ScalarType::Double);
  auto* limits = static_cast<double*>(memory.data_ptr());
  std::vector<RowOperands> operands;
  for (const int64_t row : first) operands.push_back({limits + row, nullptr});
  launch_rows<RowResult::limit>(launcher, call.weights, call.rows, operands, call.on_device, call.weight_clip);
  launch_pieces<ClipPiecesFor>(launcher, call.weights, call.rows, count_pieces(call.rows), first, ClipSettings{limits});
}

}  // namespace torch_ssam::cuda
