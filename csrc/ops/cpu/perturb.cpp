// CPU loops of the operators in ../perturb.h.
#include "../perturb.h"

#include "scalars.h"
#include "segments.h"

namespace torch_ssam::cpu {
namespace {

void perturb_loop(const PerturbArgs& args, const Tensor& generator, const std::vector<int64_t>& places, bool save,
                  bool noise_only = false) {
  const GeneratorState state = read_generator(generator, args.noise.draw_offset);
  const Kernels& k = kernels();
  // Where the clean weights are saved, the parameters are the source; else the clean weights are.
  const std::array<Operand, 2> operands{Operand{&args.params, save ? Access::read_write : Access::write},
                                        Operand{&args.clean, save ? Access::write : Access::read}};
  const bool streams = save && exceeds_caches(operands);
  for_each_segment(args.params, operands, kGrain, [&](size_t t, Span span, const std::array<void*, 2>& p) {
    const auto pair = dtype_pair(args.clean[t].dtype, args.params[t].dtype);
    NoiseArgs noise = noise_args(args.noise, state, places, args.shards, t);
    noise.noise_only = noise_only;
    noise.streams = streams && args.clean[t].contiguous;
    if (noise.scale == math::Scale::rows) {
      noise.row_scales = args.row_scales[t].data;
      noise.row_length = args.row_scales[t].length;
    }
    void* source = save ? p[0] : p[1];
    k.perturb[static_cast<int>(pair)](noise, span, source, save ? p[1] : nullptr, p[0]);
  });
}

void perturb_cpu(std::vector<Tensor> params, std::vector<Tensor> clean, Tensor generator, std::vector<int64_t> places,
                 double noise_std, StringArgument distribution, int64_t sample, bool negate, int64_t draw_offset,
                 StringArgument scale, std::optional<std::vector<Tensor>> row_scales,
                 std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  perturb_loop(check_perturb(params, clean, generator, places, noise, row_scales, shards, /*save=*/true), generator,
               places, true);
}

void perturb_from_clean_cpu(std::vector<Tensor> params, std::vector<Tensor> clean, Tensor generator,
                            std::vector<int64_t> places, double noise_std, StringArgument distribution, int64_t sample,
                            bool negate, int64_t draw_offset, std::optional<Tensor> found_inf, StringArgument scale,
                            std::optional<std::vector<Tensor>> row_scales, std::optional<std::vector<int64_t>> shards) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  const PerturbArgs args =
      check_perturb(params, clean, generator, places, noise, row_scales, shards, /*save=*/false, found_inf);
  for (size_t t = 0; t < params.size(); ++t) (void)dtype_pair(args.clean[t].dtype, args.params[t].dtype);
  if (is_set(found_inf)) return;
  perturb_loop(args, generator, places, false);
}

Tensor perturbed_cpu(Tensor weights, Tensor generator, int64_t place, double noise_std, StringArgument distribution,
                     int64_t sample, bool negate, int64_t draw_offset, StringArgument scale,
                     std::optional<std::vector<Tensor>> row_scales, std::optional<std::vector<int64_t>> shards,
                     bool noise_only) {
  const NoiseOptions noise = check_noise(noise_std, take(distribution), sample, negate, draw_offset, take(scale));
  check_strided(weights, "weights");
  Tensor output = torch::stable::empty_like(weights);
  const std::vector<int64_t> places{place};
  const Tensor source = noise_only ? source_of_noise(weights, noise.scale) : weights;
  perturb_loop(check_perturb({output}, {source}, generator, places, noise, row_scales, shards, /*save=*/false),
               generator, places, false, noise_only);
  return output;
}

void restore_cpu(std::vector<Tensor> params, std::vector<Tensor> clean) {
  const RestoreArgs args = check_restore(params, clean);
  const std::array<Operand, 2> operands{Operand{&args.params, Access::write}, Operand{&args.clean, Access::read}};
  for (size_t t = 0; t < params.size(); ++t) (void)dtype_pair(args.clean[t].dtype, args.params[t].dtype);
  const Kernels& k = kernels();
  const bool streams = exceeds_caches(operands);
  for_each_segment(args.params, operands, 4 * kGrain, [&](size_t t, Span span, const std::array<void*, 2>& p) {
    const size_t bytes = static_cast<size_t>(span.count) * bytes_of(args.params[t].dtype);
    if (args.clean[t].dtype == args.params[t].dtype && streams && args.params[t].contiguous) {
      k.stream_copy(p[0], p[1], static_cast<int64_t>(bytes));
    } else if (args.clean[t].dtype == args.params[t].dtype) {
      std::memcpy(p[0], p[1], bytes);
    } else {
      k.round[static_cast<int>(dtype_pair(args.clean[t].dtype, args.params[t].dtype))](p[1], p[0], span.count);
    }
  });
}

void advance_cpu(Tensor generator, int64_t draws, std::optional<Tensor> found_inf) {
  check_advance(generator, found_inf);
  if (is_set(found_inf)) return;
  auto* state = static_cast<int64_t*>(generator.data_ptr());
  state[1] = math::later_draw(state[1], draws);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CPU, m) {
  m.impl("perturb_", TORCH_BOX(&perturb_cpu));
  m.impl("perturb_from_clean_", TORCH_BOX(&perturb_from_clean_cpu));
  m.impl("perturbed", TORCH_BOX(&perturbed_cpu));
  m.impl("restore_", TORCH_BOX(&restore_cpu));
  m.impl("advance_", TORCH_BOX(&advance_cpu));
}

// Sparse tensors reach the same checks, which say what to do instead.
STABLE_TORCH_LIBRARY_IMPL(torch_ssam, SparseCPU, m) {
  m.impl("perturb_", TORCH_BOX(&perturb_cpu));
  m.impl("perturb_from_clean_", TORCH_BOX(&perturb_from_clean_cpu));
  m.impl("restore_", TORCH_BOX(&restore_cpu));
}

}  // namespace torch_ssam::cpu
