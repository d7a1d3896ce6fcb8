// CPU loops of the operators in ../perturb.cpp.
#include "loops.h"
#include "segments.h"

namespace torch_ssam::cpu {

void perturb(const PerturbCall& call) {
  const GeneratorState state = read_generator(call.noise.generator, call.noise.options);
  const Kernels& k = kernels();
  // Where the clean weights are saved, the parameters are the source; else the clean weights are.
  const bool save = call.save;
  const std::array<Operand, 2> operands{Operand{&call.params, save ? Access::read_write : Access::write},
                                        Operand{&call.clean, save ? Access::write : Access::read}};
  const bool streams = save && exceeds_caches(operands);
  for_each_segment(call.params, operands, kGrain, [&](size_t t, Span span, const std::array<void*, 2>& p) {
    const auto pair = static_cast<int>(dtype_pair(call.clean[t].dtype, call.params[t].dtype));
    NoiseArgs noise = noise_args(call.noise, state, t);
    noise.streams = streams && call.clean[t].contiguous;
    k.perturb[pair](noise, span, save ? p[0] : p[1], save ? p[1] : nullptr, p[0]);
  });
}

void restore(const RestoreCall& call) {
  const std::array<Operand, 2> operands{Operand{&call.params, Access::write}, Operand{&call.clean, Access::read}};
  const Kernels& k = kernels();
  const bool streams = exceeds_caches(operands);
  for_each_segment(call.params, operands, 4 * kGrain, [&](size_t t, Span span, const std::array<void*, 2>& p) {
    const ScalarType master = call.clean[t].dtype;
    const ScalarType model = call.params[t].dtype;
    const size_t bytes = static_cast<size_t>(span.count) * bytes_of(model);
    if (master != model) {
      k.round[static_cast<int>(dtype_pair(master, model))](p[1], p[0], span.count);
    } else if (streams && call.params[t].contiguous) {
      k.stream_copy(p[0], p[1], static_cast<int64_t>(bytes));
    } else {
      std::memcpy(p[0], p[1], bytes);
    }
  });
}

void follow(const FollowCall& call) {
  const std::array<Operand, 2> operands{Operand{&call.clean, Access::read_write}, Operand{&call.params, Access::read}};
  const Kernels& k = kernels();
  for_each_segment(call.clean, operands, 4 * kGrain, [&](size_t t, Span span, const std::array<void*, 2>& p) {
    const auto pair = static_cast<int>(dtype_pair(call.clean[t].dtype, call.params[t].dtype));
    k.follow[pair](p[0], p[1], span.count);
  });
}

void advance(const AdvanceCall& call) {
  auto* state = static_cast<int64_t*>(call.generator.data_ptr());
  state[1] = math::later_draw(state[1], call.draws);
}

}  // namespace torch_ssam::cpu
