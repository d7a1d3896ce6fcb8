// Rows of tensors, and the operators that make their numbers, or clip them. A tensor has a row for each index of
// dimension 0; where filters lie along another dimension, fronts hand over a view with that one first.
//   row_scales_  row_scales <- |w_r|_2 / sqrt(1 + fisher_factor F_r); without `fisher` F is 0. Or, with kind "absmax",
//                <- max_r |w|
//   row_fisher_  fisher <- decay fisher + sum over the row of grad^2
//   clip_rows_   weights <- at most weight_clip |w_r|_2 / sqrt(n_r) in size, for a row of n_r elements
// Sums have the one order of csrc/math/reduce.h, pieces counted from the start of each row. Tests: test_ops_scale.py.
#include "rows.h"

#include <cmath>

#include "operators.h"

namespace torch_ssam {

RowViews view_rows(const std::vector<Tensor>& rows, const char* name, const TensorViews& like, const char* like_name,
                   int64_t channel_dim) {
  TORCH_SSAM_CHECK(rows.size() == like.size(), name, " has ", rows.size(), " tensors and ", like_name, " has ",
                   like.size(), "; expected one for each.");
  TORCH_SSAM_CHECK(channel_dim >= 0, "channel_dim is ", channel_dim, "; expected 0 or more.");
  RowViews views;
  views.reserve(rows.size());
  for (size_t t = 0; t < rows.size(); ++t) {
    const TensorView view = view_parameter(rows[t], name, t, Use::reads);
    TORCH_SSAM_CHECK(view.dtype == ScalarType::Float && view.contiguous, name, "[", t, "] has dtype ",
                     dtype_name(view.dtype), view.contiguous ? "" : " and is not contiguous",
                     "; expected a contiguous float32 tensor.");
    const int64_t filters = channel_dim < like[t].dim ? like[t].sizes[channel_dim] : 1;
    TORCH_SSAM_CHECK(view.numel == 1 || view.numel == filters, name, "[", t, "] has ", view.numel, " elements and ",
                     like_name, "[", t, "] has shape ", shape_of(like[t]), "; expected 1 or ", filters,
                     ", one for each row.");
    int64_t before = 1;  // how often the rows come
    for (int64_t d = 0; view.numel != 1 && d < channel_dim; ++d) before *= like[t].sizes[d];
    const int64_t length = before * view.numel == 0 ? 1 : like[t].numel / (before * view.numel);
    views.push_back({static_cast<float*>(view.data), view.numel, length, before > 1});
  }
  return views;
}

RowViews rows_of(const TensorViews& views) {
  RowViews rows;
  rows.reserve(views.size());
  for (const TensorView& view : views) {
    const int64_t count = view.dim < 2 ? 1 : view.sizes[0];
    rows.push_back({nullptr, count, count == 0 ? 1 : view.numel / count});
  }
  return rows;
}

math::RowScale check_row_scale(const std::string& kind) {
  constexpr Named<math::RowScale> kKinds[] = {{"norm", math::RowScale::norm}, {"absmax", math::RowScale::absmax}};
  return find_named(kind, "kind", kKinds);
}

void check_weight_clip(double weight_clip) {
  TORCH_SSAM_CHECK(std::isfinite(weight_clip) && weight_clip > 1.0, "weight_clip is ", weight_clip,
                   "; expected a finite number > 1: clipped to its root mean square or less, a row would shrink at "
                   "every step.");
}

namespace {

void row_scales_(const TensorList& row_scales, const TensorList& weights, const TensorList& fisher,
                 double fisher_factor, StringArgument kind_name) {
  const math::RowScale kind = check_row_scale(take(kind_name));
  check_finite_nonnegative(fisher_factor, "fisher_factor");
  TensorViews views = view_parameters(weights, "weights", Use::reads);
  RowViews scales = view_rows(row_scales, "row_scales", views, "weights");
  RowViews sums = fisher.empty() ? RowViews{} : view_rows(fisher, "fisher", views, "weights");
  for (size_t t = 0; t < sums.size(); ++t) {
    TORCH_SSAM_CHECK(sums[t].rows == scales[t].rows, "fisher[", t, "] has ", sums[t].rows, " elements and row_scales[",
                     t, "] has ", scales[t].rows, "; expected the same.");
  }
  TORCH_SSAM_CHECK(kind == math::RowScale::norm || fisher.empty(),
                   "kind is 'absmax' and fisher is given; expected it with 'norm' only.");
  if (weights.empty()) return;
  check_one_device(weights, "weights", weights[0], "weights[0]");
  check_one_device(row_scales, "row_scales", weights[0], "weights[0]");
  check_one_device(fisher, "fisher", weights[0], "weights[0]");
  backend_of(weights[0])
      .row_scales({std::move(views), std::move(scales), std::move(sums), fisher_factor, kind, weights[0]});
}

void row_fisher_(const TensorList& fisher, const TensorList& grads, double decay) {
  TORCH_SSAM_CHECK(decay >= 0.0 && decay <= 1.0, "decay is ", decay, "; expected 0 to 1.");
  TensorViews views = view_parameters(grads, "grads", Use::reads);
  RowViews sums = view_rows(fisher, "fisher", views, "grads");
  if (grads.empty()) return;
  check_one_device(grads, "grads", grads[0], "grads[0]");
  check_one_device(fisher, "fisher", grads[0], "grads[0]");
  backend_of(grads[0]).row_fisher({std::move(views), std::move(sums), decay, grads[0]});
}

void clip_rows_(const TensorList& weights, double weight_clip) {
  check_weight_clip(weight_clip);
  TensorViews views = view_parameters(weights, "weights", Use::writes);
  if (weights.empty()) return;
  check_one_device(weights, "weights", weights[0], "weights[0]");
  RowViews rows = rows_of(views);
  backend_of(weights[0]).clip_rows({std::move(views), std::move(rows), weight_clip, weights[0]});
}

}  // namespace

TORCH_SSAM_OPERATOR(
    row_scales_,
    "(Tensor(a!)[] row_scales, Tensor[] weights, Tensor[] fisher, float fisher_factor=0, str kind='norm') -> ()");
TORCH_SSAM_OPERATOR(row_fisher_, "(Tensor(a!)[] fisher, Tensor[] grads, float decay) -> ()");
TORCH_SSAM_OPERATOR(clip_rows_, "(Tensor(a!)[] weights, float weight_clip) -> ()");

}  // namespace torch_ssam
