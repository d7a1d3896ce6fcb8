// See scales.h.
#include "noise/scales.h"

namespace torch_ssam::detail {

std::optional<RowScale> row_scale_of(const std::string& scale) {
  if (scale == "filter" || scale == "fisher") return RowScale{"norm", false};
  if (scale == "tensor") return RowScale{"norm", true};
  if (scale == "absmax") return RowScale{"absmax", false};
  if (scale == "tensor_absmax") return RowScale{"absmax", true};
  return std::nullopt;
}

std::vector<at::Tensor> filters_first(std::vector<at::Tensor> tensors, std::int64_t channel_dim) {
  if (channel_dim == 0) return tensors;
  for (at::Tensor& tensor : tensors) {
    if (tensor.dim() >= 2) tensor = tensor.detach().movedim(channel_dim, 0);
  }
  return tensors;
}

ops::Noise Scales::of(const GroupNoise& group, const std::vector<SavedPtr>& saved,
                      const std::vector<at::Tensor>& clean) {
  ops::Noise noise = group.noise;
  if (group.scale == "element") noise.scale = "element";
  const std::optional<RowScale> by_rows = row_scale_of(group.scale);
  if (!by_rows) return noise;
  noise.scale = "rows";
  noise.channel_dim = by_rows->whole ? 0 : group.channel_dim;
  std::vector<at::Tensor> row_scales, fisher;
  for (const SavedPtr& one : saved) {
    const std::int64_t rows = by_rows->whole ? 1 : rows_of(one->param, noise.channel_dim);
    at::Tensor& known = one->row_scales;
    if (!known.defined() || known.numel() != rows || known.device() != one->param.device()) {
      known = ops::zeros_of_rows(one->param, rows);
    }
    row_scales.push_back(known);
    if (group.scale == "fisher") fisher.push_back(fisher_of(one->param, noise.channel_dim));
  }
  ops::row_scales_(row_scales, filters_first(clean, noise.channel_dim), fisher, group.fisher_factor, by_rows->kind);
  noise.row_scales = std::move(row_scales);
  return noise;
}

void Scales::observe(const Members& with_grad, double decay, std::int64_t channel_dim) {
  with_grad.by_device([&](at::Device, const Members& part) {
    std::vector<at::Tensor> sums, grads;
    for (const at::Tensor& p : part.params) {
      sums.push_back(fisher_of(p, channel_dim));
      grads.push_back(p.grad());
    }
    ops::row_fisher_(sums, filters_first(std::move(grads), channel_dim), decay);
  });
}

at::Tensor Scales::fisher_of(const at::Tensor& param, std::int64_t channel_dim) {
  at::Tensor& known = fisher_.try_emplace(key_of(param), Sums{param, {}}).first->second.sums;
  const std::int64_t rows = rows_of(param, channel_dim);
  if (!known.defined() || known.numel() != rows || known.device() != param.device()) {
    known = ops::zeros_of_rows(param, rows);
  }
  return known;
}

at::Tensor Scales::known_fisher(const at::Tensor& param) const {
  const auto found = fisher_.find(key_of(param));
  return found == fisher_.end() ? at::Tensor() : found->second.sums;
}

void Scales::set_fisher(const at::Tensor& param, at::Tensor sums) {
  if (sums.defined()) {
    fisher_[key_of(param)] = {param, std::move(sums)};
  } else {
    fisher_.erase(key_of(param));
  }
}

void Scales::keep_only(const Keys& keys) {
  std::erase_if(fisher_, [&](const auto& item) { return keys.count(item.first) == 0; });
}

}  // namespace torch_ssam::detail
