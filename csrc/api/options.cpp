// See options.h.
#include "options.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>

namespace torch_ssam::detail {

double check_number(const char* name, double value, double low, bool open_low) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value >= low && !(open_low && value == low), "torch_ssam: ", name, " is ",
                    value, "; expected a finite number ", open_low ? "> " : ">= ", low, ".");
  return value;
}

void check_count(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  TORCH_CHECK_VALUE(low <= value && value <= high, "torch_ssam: ", name, " is ", value, "; expected ", low, " to ",
                    high, ".");
}

void check_noise(double noise_std, const std::string& distribution, const std::string& scale,
                 const std::string& memory) {
  check_number("noise_std", noise_std);
  TORCH_CHECK_VALUE(distribution == "gaussian" || distribution == "rademacher", "torch_ssam: distribution is '",
                    distribution, "'; expected 'gaussian' or 'rademacher'.");
  TORCH_CHECK_VALUE(memory == "copy" || memory == kRegenerate, "torch_ssam: memory is '", memory,
                    "'; expected 'copy' or 'regenerate'.");
  const auto known = {"isotropic", "tensor", "filter", "element", "fisher"};
  TORCH_CHECK_VALUE(std::find(known.begin(), known.end(), scale) != known.end(), "torch_ssam: scale is '", scale,
                    "'; expected one of 'isotropic', 'tensor', 'filter', 'element', 'fisher'.");
  TORCH_CHECK_VALUE(scale == "isotropic" || memory == "copy", "torch_ssam: memory 'regenerate' with scale '", scale,
                    "': the clean weights that the scale depends on are gone when the noise is to be taken off; "
                    "expected scale 'isotropic'. Use memory 'copy'.");
}

void check_sgd(const SSAMOptions& o) {
  check_number("lr", o.lr());
  check_number("momentum", o.momentum());
  check_number("weight_decay", o.weight_decay());
  check_number("dampening", o.dampening(), -std::numeric_limits<double>::infinity());
  TORCH_CHECK_VALUE(!o.nesterov() || (o.momentum() > 0 && o.dampening() == 0), "torch_ssam: nesterov with momentum ",
                    o.momentum(), " and dampening ", o.dampening(),
                    "; Nesterov momentum expects momentum > 0 and dampening 0.");
  if (o.radius()) check_number("radius", *o.radius(), 0, /*open_low=*/true);
}

void check_masters(const SSAMOptions& o, const std::vector<at::Tensor>& params) {
  if (!o.master_dtype()) return;
  for (const at::Tensor& p : params) {
    TORCH_CHECK_VALUE(p.scalar_type() != at::kDouble,
                      "torch_ssam: master_dtype is Float and a parameter is Double, which is finer; expected BFloat16, "
                      "Half or Float (which needs no master). Give it a group without master_dtype.");
  }
}

void check_options(const SSAMOptions& o) {
  TORCH_CHECK_VALUE(!o.master_dtype() || *o.master_dtype() == at::kFloat, "torch_ssam: master_dtype is ",
                    o.master_dtype().value_or(at::kFloat),
                    "; expected at::kFloat, for BFloat16 and Half parameters, or std::nullopt.");
  TORCH_CHECK_VALUE(
      !o.master_dtype() || o.memory() == "copy",
      "torch_ssam: memory 'regenerate' with master_dtype: the masters are the clean weights, and are kept "
      "in any case. Use memory 'copy', which makes no further copy beside masters.");
  check_noise(o.noise_std(), o.distribution(), o.scale(), o.memory());
  check_number("fisher_decay", o.fisher_decay());
  TORCH_CHECK_VALUE(o.fisher_decay() <= 1, "torch_ssam: fisher_decay is ", o.fisher_decay(),
                    "; expected 0 <= fisher_decay <= 1.");
  check_number("fisher_factor", o.fisher_factor());
  check_count("samples", o.samples(), 1, 0xffffffffLL);
  check_number("clean_weight", o.clean_weight());
  TORCH_CHECK_VALUE(o.clean_weight() < 1, "torch_ssam: clean_weight is ", o.clean_weight(),
                    "; expected 0 <= clean_weight < 1 (the share of the gradient at the clean weights).");
  TORCH_CHECK_VALUE(
      !o.keep_perturbed() || passes_of(o) == 1,
      "torch_ssam: keep_perturbed keeps one perturbation in the parameters, so it goes with samples 1, no "
      "antithetic, clean_weight 0; got samples ",
      o.samples(), ", antithetic ", o.antithetic(), ", clean_weight ", o.clean_weight(),
      ". Use perturbations() without keep_perturbed for several passes a step.");
  check_sgd(o);
}

void check_common(const SSAMOptions& options, const SSAMOptions& first) {
  const auto same = [](const char* name, auto here, auto there) {
    TORCH_CHECK_VALUE(here == there, "torch_ssam: ", name, " is ", here, " in one parameter group and ", there,
                      " in another; expected the same in all groups, since a pass runs the whole model.");
  };
  same("samples", options.samples(), first.samples());
  same("antithetic", options.antithetic(), first.antithetic());
  same("clean_weight", options.clean_weight(), first.clean_weight());
  same("keep_perturbed", options.keep_perturbed(), first.keep_perturbed());
}

void check_regenerated(const std::vector<at::Tensor>& params) {
  for (const at::Tensor& p : params) {
    TORCH_CHECK_VALUE(p.scalar_type() == at::kFloat || p.scalar_type() == at::kDouble,
                      "torch_ssam: memory 'regenerate' with parameters of dtype ", p.scalar_type(),
                      ": taking noise off again rounds twice a step, which 16-bit weights do not survive; expected "
                      "Float or Double. Use memory 'copy'.");
  }
}

void check_group_seed(std::optional<std::int64_t> of_group, std::int64_t seed) {
  TORCH_CHECK_VALUE(!of_group || *of_group == seed, "torch_ssam: a parameter group has seed ", of_group.value_or(0),
                    " and the seed is ", seed,
                    "; expected none in a group, since one seed serves all. Set it in the options that are not of a "
                    "group.");
}

std::int64_t passes_of(const SSAMOptions& options) {
  return options.samples() * (options.antithetic() ? 2 : 1) + (options.clean_weight() > 0 ? 1 : 0);
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

std::vector<at::Tensor> check_params(const std::vector<at::Tensor>& params,
                                     const std::vector<torch::optim::OptimizerParamGroup>& others) {
  std::unordered_set<const c10::TensorImpl*> taken, seen;
  std::vector<at::Tensor> all;
  for (const auto& group : others) {
    for (const at::Tensor& p : group.params()) {
      taken.insert(p.unsafeGetTensorImpl());
      all.push_back(p);
    }
  }
  std::vector<at::Tensor> unique;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const at::Tensor& p = params[i];
    TORCH_CHECK_VALUE(p.defined(), "torch_ssam: parameter ", i, " of the group is an undefined tensor.");
    const bool strided = p.layout() == at::kStrided;
    TORCH_CHECK_VALUE(strided && p.is_floating_point(), "torch_ssam: parameter ", i, " of the group is ",
                      strided ? c10::toString(p.scalar_type()) : "sparse",
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

std::int64_t resolve_seed(std::optional<std::int64_t> seed) {
  if (seed) return *seed;
  return at::randint(0, std::int64_t{1} << 62, {1}, at::kLong).item<std::int64_t>();
}

}  // namespace torch_ssam::detail
