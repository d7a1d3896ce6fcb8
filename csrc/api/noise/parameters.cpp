// See parameters.h.
#include "noise/parameters.h"

#include <algorithm>
#include <unordered_set>

namespace torch_ssam::detail {

void check_regenerated(const std::vector<at::Tensor>& params) {
  for (const at::Tensor& p : params) {
    TORCH_CHECK_VALUE(!p.requires_grad() || p.scalar_type() == at::kFloat || p.scalar_type() == at::kDouble,
                      "torch_ssam: memory 'regenerate' with parameters of dtype ", p.scalar_type(),
                      ": taking noise off again rounds twice a step, which 16-bit weights do not survive; expected "
                      "Float or Double. Use memory 'copy'.");
  }
}

void check_channel_dim(const at::Tensor& param, std::size_t place, std::int64_t channel_dim) {
  TORCH_CHECK_VALUE(param.dim() < 2 || channel_dim < param.dim(), "torch_ssam: channel_dim is ", channel_dim,
                    " and parameter ", place, " has shape ", param.sizes(), "; expected one of its dimensions, 0 to ",
                    param.dim() - 1, ". Give it a group of its own.");
}

namespace {

// Where a tensor's elements lie; `whole` means without gaps, in which another tensor might lie.
struct Span {
  const char *begin, *end;
  bool whole;
  std::size_t place;

  // Whether it certainly shares memory with one that begins no later: this one's first element, or that one's last,
  // lies in the other. Two with gaps may pass each other by and are let through.
  bool shares_with(const Span& earlier) const {
    return begin == earlier.begin || (begin < earlier.end && (earlier.whole || (whole && earlier.end <= end)));
  }
};

// Memory that two tensors share would be perturbed twice.
void check_memory(const std::vector<at::Tensor>& tensors) {
  std::vector<Span> spans;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& t = tensors[i];
    if (t.numel() == 0 || !(t.is_cpu() || t.is_cuda())) continue;
    std::int64_t reach = 1;
    for (std::int64_t d = 0; d < t.dim(); ++d) reach += (t.size(d) - 1) * t.stride(d);
    const auto* begin = static_cast<const char*>(t.const_data_ptr());
    spans.push_back({begin, begin + reach * static_cast<std::int64_t>(t.element_size()), reach == t.numel(), i});
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  std::vector<Span> reaching;  // earlier ones that end beyond the present one's beginning; nearly always none
  for (const Span& b : spans) {
    std::erase_if(reaching, [&](const Span& a) { return a.end <= b.begin; });
    for (const Span& a : reaching) {
      TORCH_CHECK_VALUE(
          !b.shares_with(a), "torch_ssam: parameters ", std::min(a.place, b.place), " and ", std::max(a.place, b.place),
          " are two tensors in the same memory, which would be perturbed twice; expected one. Tie weights by "
          "registering the same tensor under both names.");
    }
    reaching.push_back(b);
  }
}

}  // namespace

std::vector<at::Tensor> check_params(const std::vector<at::Tensor>& params, const Groups& others) {
  std::unordered_set<const c10::TensorImpl*> taken, seen;
  std::vector<at::Tensor> all;
  for (const auto& group : others) {
    for (const at::Tensor& p : group.params()) {
      taken.insert(p.unsafeGetTensorImpl());
      all.push_back(p);
    }
  }
  // LibTorch does not tell a frozen parameter from a buffer: where nothing beside it can be perturbed it is a mistake.
  const bool others_move = std::any_of(params.begin(), params.end(), [](const at::Tensor& p) {
    return p.defined() && p.layout() == at::kStrided && p.is_floating_point();
  });
  std::vector<at::Tensor> unique;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const at::Tensor& p = params[i];
    TORCH_CHECK_VALUE(p.defined(), "torch_ssam: parameter ", i, " of the group is an undefined tensor.");
    const bool strided = p.layout() == at::kStrided;
    const bool counts_only = others_move && !p.requires_grad();  // of a quantised layer, say
    TORCH_CHECK_VALUE(strided && (p.is_floating_point() || counts_only), "torch_ssam: parameter ", i,
                      " of the group is ", strided ? c10::toString(p.scalar_type()) : "sparse",
                      "; expected a dense Double, Float, BFloat16 or Half tensor. Leave it out of the parameters, or "
                      "convert it.");
    TORCH_CHECK_VALUE(!p.is_inference(), "torch_ssam: parameter ", i,
                      " of the group was made under InferenceMode; expected a normal tensor. Create the model outside "
                      "of it, or clone() the tensor there.");
    TORCH_CHECK_VALUE(p.is_leaf(), "torch_ssam: parameter ", i,
                      " of the group is the result of a computation; expected a leaf tensor, as modules hold them.");
    TORCH_CHECK_VALUE(taken.count(p.unsafeGetTensorImpl()) == 0, "torch_ssam: parameter ", i,
                      " of the group is in another group too; expected each parameter in one group.");
    if (seen.insert(p.unsafeGetTensorImpl()).second) unique.push_back(p);
  }
  all.insert(all.end(), unique.begin(), unique.end());
  check_memory(all);
  return unique;
}

}  // namespace torch_ssam::detail
