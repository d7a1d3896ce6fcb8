// CPU loops of the operators in ../update.h.
#include "../update.h"

#include "norms.h"
#include "scalars.h"

namespace torch_ssam::cpu {
namespace {

const TensorViews* present(const TensorViews& views) { return views.empty() ? nullptr : &views; }

void update_cpu(std::vector<Tensor> weights, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers, double lr,
                double momentum, double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step,
                std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  const UpdateOptions options =
      check_update_options(lr, momentum, dampening, weight_decay, nesterov, maximize, first_step);
  const UpdateTensors t =
      check_update(weights, grads, momentum_buffers, nullptr, options, lr_tensor, grad_scale, found_inf);
  for (size_t i = 0; i < weights.size(); ++i) (void)dtype_pair(t.weights[i].dtype, t.grads[i].dtype, "gradients");
  if (is_set(found_inf)) return;
  const UpdateArgs args = update_args(options, t);
  const Kernels& k = kernels();
  const std::array<Operand, 3> operands{Operand{&t.weights, Access::read_write}, Operand{&t.grads, Access::read},
                                        Operand{present(t.momentum_buffers), Access::read_write}};
  for_each_segment(t.weights, operands, 2 * kGrain, [&](size_t i, Span span, const std::array<void*, 3>& p) {
    const auto pair = dtype_pair(t.weights[i].dtype, t.grads[i].dtype);
    k.update[static_cast<int>(pair)](args, span, p[0], p[1], p[2]);
  });
}

void update_and_perturb_cpu(std::vector<Tensor> params, std::vector<Tensor> clean, std::vector<Tensor> grads,
                            std::vector<Tensor> momentum_buffers, Tensor generator, std::vector<int64_t> places,
                            double lr, double momentum, double dampening, double weight_decay, bool nesterov,
                            bool maximize, bool first_step, double noise_std, StringArgument distribution,
                            int64_t sample, bool negate, int64_t draw_offset, std::optional<Tensor> lr_tensor,
                            std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, StringArgument scale,
                            std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_fused_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  const UpdateOptions options =
      check_update_options(lr, momentum, dampening, weight_decay, nesterov, maximize, first_step);
  const UpdateTensors t =
      check_update(clean, grads, momentum_buffers, &params, options, lr_tensor, grad_scale, found_inf);
  check_places(places, params.size());
  const Shards parts = check_shards(shards, t.params);
  check_generator(generator);
  check_one_device(params, "params", generator, "generator");
  for (size_t i = 0; i < params.size(); ++i) (void)dtype_pair(t.weights[i].dtype, t.params[i].dtype);
  if (is_set(found_inf)) return;
  const UpdateArgs args = update_args(options, t);
  const GeneratorState state = read_generator(generator, draw_offset);
  const Kernels& k = kernels();
  const std::array<Operand, 4> operands{Operand{&t.weights, Access::read_write}, Operand{&t.grads, Access::read},
                                        Operand{present(t.momentum_buffers), Access::read_write},
                                        Operand{&t.params, Access::write}};
  const bool streams = exceeds_caches(operands);
  for_each_segment(t.weights, operands, kGrain, [&](size_t i, Span span, const std::array<void*, 4>& p) {
    const auto pair = dtype_pair(t.weights[i].dtype, t.params[i].dtype);
    NoiseArgs own = noise_args(noise, state, places, parts, i);
    own.streams = streams && t.params[i].contiguous;
    k.update_and_perturb[static_cast<int>(pair)](args, own, span, p[0], p[1], p[2], p[3]);
  });
}

// Two passes: the norm in pieces of fixed size, summed in order (the same bits for any number of threads), then, only
// where it exceeds the radius, the scaling.
void project_cpu(std::vector<Tensor> weights, double radius) {
  const TensorViews views = check_project(weights, radius);
  std::vector<int64_t> lengths;
  for (const TensorView& view : views) lengths.push_back(view.numel);
  double total = 0.0;
  for (const double sum : piece_sums(views, lengths).sums) total += sum;
  const math::Projection projection = math::make_projection(total, radius);
  if (!projection.outside) return;
  const Kernels& k = kernels();
  const std::array<Operand, 1> operands{Operand{&views, Access::read_write}};
  for_each_segment(views, operands, 4 * kGrain, [&](size_t t, Span span, const std::array<void*, 1>& p) {
    k.scale[static_cast<int>(dtype_pair(views[t].dtype, views[t].dtype))](projection.factor, p[0], span.count);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CPU, m) {
  m.impl("update_", TORCH_BOX(&update_cpu));
  m.impl("update_and_perturb_", TORCH_BOX(&update_and_perturb_cpu));
  m.impl("project_", TORCH_BOX(&project_cpu));
}

// Sparse tensors reach the same checks, which say what to do instead.
STABLE_TORCH_LIBRARY_IMPL(torch_ssam, SparseCPU, m) {
  m.impl("update_", TORCH_BOX(&update_cpu));
  m.impl("update_and_perturb_", TORCH_BOX(&update_and_perturb_cpu));
  m.impl("project_", TORCH_BOX(&project_cpu));
}

}  // namespace torch_ssam::cpu
