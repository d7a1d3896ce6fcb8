// DiagonalLinear and its autograd. Forward and backward are the fused operators; the backward of the backward is
// written in plain tensor operations, so it differentiates to any order. Formulas: docs/theory.md, P_i = prod_{k != i}
// w_k; Python's nn/diagonal_linear.py has the same steps.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch_ssam/diagonal_linear.h>

#include <ostream>

#include "checks.h"
#include "noise/seeds.h"
#include "operators.h"

namespace torch_ssam {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Takes the second argument's value and the first one's gradient.
struct Substitute : torch::autograd::Function<Substitute> {
  static Tensor forward(AutogradContext* /*ctx*/, const Tensor& /*weight*/, const Tensor& value) {
    return value.clone();
  }
  static variable_list backward(AutogradContext* /*ctx*/, variable_list grads) { return {grads[0], Tensor()}; }
};

// The layers' vectors as the kernels see them; the noise is a constant to autograd.
std::vector<Tensor> layers_of(const Tensor& weight, const Tensor& generator, double noise_std) {
  if (!generator.defined() || noise_std == 0) return weight.unbind(0);
  return Substitute::apply(weight, ops::perturbed(weight.detach(), generator, 0, {noise_std})).unbind(0);
}

Tensor saved_generator(const variable_list& saved, std::size_t i) { return saved.size() > i ? saved[i] : Tensor(); }

void save(AutogradContext* ctx, variable_list tensors, const Tensor& generator, double noise_std, bool readout) {
  if (generator.defined()) tensors.push_back(generator);
  ctx->save_for_backward(std::move(tensors));
  ctx->set_materialize_grads(false);
  ctx->saved_data["noise_std"] = noise_std;
  ctx->saved_data["readout"] = readout;
}

// The arguments of the two functions that are no tensors to differentiate.
struct Constants {
  Tensor generator;
  double noise_std;
  bool readout;
  bool needs_input = true, needs_weight = true;
};

struct DiagonalBackward : torch::autograd::Function<DiagonalBackward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& weight,
                               const Constants& c) {
    save(ctx, {grad, input, weight}, c.generator, c.noise_std, c.readout);
    ctx->saved_data["needs_input"] = c.needs_input;
    ctx->saved_data["needs_weight"] = c.needs_weight;
    auto [to_input, to_weight] =
        ops::diagonal_backward(grad, input, weight, c.generator, c.noise_std, c.readout, c.needs_input, c.needs_weight);
    return {to_input, to_weight};
  }

  // Backward of (g, x, w) -> (g P, (sum_b g x) P_i) for cotangents a, c of the two.
  // With Q = sum_i c_i P_i and s = sum_b g x:
  //   to g: a P + x Q;   to x: g Q;   to w_j: (sum_b a g) P_j + s dQ/dw_j,
  // P_j and dQ/dw_j from prefixes and suffixes of the pairs (P, Q): no division.
  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &input = saved[1], &weight = saved[2];
    const bool readout = ctx->saved_data["readout"].toBool();
    const Tensor a = ctx->saved_data["needs_input"].toBool() ? cotangents[0] : Tensor();
    const Tensor c = ctx->saved_data["needs_weight"].toBool() ? cotangents[1] : Tensor();
    const auto dtype = at::promote_types(input.scalar_type(), weight.scalar_type());
    const Tensor g = (readout ? grad.unsqueeze(-1) : grad).to(dtype);
    const Tensor x = input.to(dtype);
    const std::vector<Tensor> layers =
        layers_of(weight, saved_generator(saved, 3), ctx->saved_data["noise_std"].toDouble());
    const std::size_t depth = layers.size();
    std::vector<Tensor> w, directions;
    for (const Tensor& layer : layers) w.push_back(layer.to(dtype));
    const Tensor one = at::ones_like(w[0]), zero = at::zeros_like(w[0]);
    for (std::size_t l = 0; l < depth; ++l) {
      directions.push_back(c.defined() ? c.select(0, static_cast<std::int64_t>(l)).to(dtype) : zero);
    }

    using Pair = std::pair<Tensor, Tensor>;
    const auto extend = [&](const Pair& pair, std::size_t l) -> Pair {
      return {pair.first * w[l], pair.second * w[l] + pair.first * directions[l]};
    };
    std::vector<Pair> prefixes{{one, zero}}, suffixes(depth, {one, zero});
    for (std::size_t l = 0; l < depth; ++l) prefixes.push_back(extend(prefixes.back(), l));
    for (std::size_t l = depth - 1; l > 0; --l) suffixes[l - 1] = extend(suffixes[l], l);
    const auto& [product, tangent] = prefixes.back();

    std::vector<std::int64_t> rows;
    for (std::int64_t d = 0; d + 1 < x.dim(); ++d) rows.push_back(d);
    const auto over_rows = [&](const Tensor& value) {
      const Tensor whole = value.expand(x.sizes());
      return rows.empty() ? whole : whole.sum(rows);
    };
    Tensor to_g = x * tangent;
    if (a.defined()) to_g = a.to(dtype) * product + to_g;
    const Tensor to_x = (g * tangent).expand(x.sizes());
    const Tensor s = over_rows(g * x);
    const Tensor ag = a.defined() ? over_rows(g * a.to(dtype)) : zero;
    std::vector<Tensor> to_w;
    for (std::size_t l = 0; l < depth; ++l) {
      const auto& [p, q] = prefixes[l];
      const auto& [sp, sq] = suffixes[l];
      to_w.push_back(ag * (p * sp) + s * (q * sp + p * sq));
    }
    if (readout) to_g = to_g.sum(-1);
    return {to_g.to(grad.scalar_type()), to_x.to(input.scalar_type()), at::stack(to_w).to(weight.scalar_type()),
            Tensor()};
  }
};

struct Diagonal : torch::autograd::Function<Diagonal> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Constants& c) {
    save(ctx, {input, weight}, c.generator, c.noise_std, c.readout);
    return ops::diagonal(input, weight, c.generator, c.noise_std, c.readout);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor()};
    const variable_list saved = ctx->get_saved_variables();
    const Constants c{saved_generator(saved, 2), ctx->saved_data["noise_std"].toDouble(),
                      ctx->saved_data["readout"].toBool(), ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const variable_list result = DiagonalBackward::apply(grads[0], saved[0], saved[1], c);
    return {c.needs_input ? result[0] : Tensor(), c.needs_weight ? result[1] : Tensor(), Tensor()};
  }
};

}  // namespace

DiagonalLinearImpl::DiagonalLinearImpl(const DiagonalLinearOptions& options_) : options(options_) { reset(); }

void DiagonalLinearImpl::reset() {
  detail::check_count("features", options.features(), 0, std::int64_t{1} << 62);
  detail::check_count("depth", options.depth(), 1, 0xffffffffLL);
  TORCH_CHECK_VALUE(!options.readout() || *options.readout() == "sum", "torch_ssam: readout is '",
                    options.readout().value_or(""), "'; expected 'sum' or none.");
  detail::check_number("noise_std", options.noise_std());
  const auto count = static_cast<std::int64_t>(options.init_scale().size());
  TORCH_CHECK_VALUE(count == 1 || count == options.depth(), "torch_ssam: init_scale has ", count,
                    " values; expected one number or one per layer (", options.depth(), ").");
  for (const double value : options.init_scale()) {
    detail::check_number("init_scale", value, -std::numeric_limits<double>::infinity());
  }
  weight = register_parameter("weight", at::empty({options.depth(), options.features()}));
  // A clone calls reset() too, and goes on with this one's seed.
  const std::int64_t seed =
      generator.defined() ? generator[0].item<std::int64_t>() : detail::resolve_seed(options.seed());
  generator = register_buffer("generator", at::tensor({seed, std::int64_t{0}}, at::kLong));
  reset_parameters();
}

template <typename... Args>
void DiagonalLinearImpl::keep_generator(Args... args) {
  const Tensor before = generator.clone();
  Cloneable::to(args...);
  generator.set_data(before.to(generator.device()));
}

void DiagonalLinearImpl::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  keep_generator(device, dtype, non_blocking);
}
void DiagonalLinearImpl::to(torch::Dtype dtype, bool non_blocking) { keep_generator(dtype, non_blocking); }
void DiagonalLinearImpl::to(torch::Device device, bool non_blocking) { keep_generator(device, non_blocking); }

void DiagonalLinearImpl::reset_parameters() {
  const at::NoGradGuard no_grad;
  const Tensor scale = at::tensor(options.init_scale(), at::kDouble).expand({options.depth()});
  weight.copy_(scale.to(weight.options()).unsqueeze(1).expand_as(weight));
}

void DiagonalLinearImpl::pretty_print(std::ostream& stream) const {
  stream << "torch_ssam::DiagonalLinear(features=" << options.features() << ", depth=" << options.depth();
  if (options.readout()) stream << ", readout='" << *options.readout() << '\'';
  if (options.noise_std() > 0) stream << ", noise_std=" << options.noise_std();
  stream << ')';
}

Tensor DiagonalLinearImpl::forward(const Tensor& input) {
  Tensor x = input, w = weight;
  const auto device = x.device().type();
  if (at::autocast::is_autocast_enabled(device) && x.is_floating_point() && x.scalar_type() != at::kDouble) {
    x = x.to(at::autocast::get_autocast_dtype(device));
    // The kernels take float32 weights as they are.
    if (w.scalar_type() == at::kHalf || w.scalar_type() == at::kBFloat16) w = w.to(x.scalar_type());
  } else {
    TORCH_CHECK_VALUE(x.scalar_type() == w.scalar_type(), "torch_ssam: input has dtype ", x.scalar_type(),
                      " and weight has ", w.scalar_type(),
                      "; expected the same outside of autocast. Convert the input, or the module with to(dtype).");
  }
  Constants constants{Tensor(), options.noise_std(), options.readout().has_value()};
  if (is_training() && options.noise_std() > 0) {
    constants.generator = generator.clone();  // of this forward, and its backward
    ops::advance_(generator);
  }
  return Diagonal::apply(x, w, constants);
}

Tensor DiagonalLinearImpl::product() const {
  Tensor product = weight[0];
  for (std::int64_t l = 1; l < weight.size(0); ++l) product = product * weight[l];
  return product;
}

Tensor DiagonalLinearImpl::balance_gaps() const {
  const Tensor squares = weight.square();
  return squares.unsqueeze(1) - squares.unsqueeze(0);
}

}  // namespace torch_ssam
