// CPU loops of the operators in ../update.cpp.
#include "loops.h"
#include "pieces.h"

namespace torch_ssam::cpu {
namespace {

// Operands: weights, gradients, the buffers that a rule may have, and the parameters that get the noise.
template <typename Rule>
constexpr size_t kUpdateOperands = 3 + math::kMostBuffers<Rule>;

template <typename Rule>
std::array<Operand, kUpdateOperands<Rule>> operands_of(const UpdateCall& call) {
  std::array<Operand, kUpdateOperands<Rule>> operands{};
  operands[0] = {&call.weights, Access::read_write};
  operands[1] = {&call.grads, Access::read};
  for (size_t b = 0; b < call.buffers.size(); ++b) operands[2 + b] = {&call.buffers[b], Access::read_write};
  if (call.noise) operands.back() = {&call.params, Access::write};
  return operands;
}

template <typename Rule>
void update_by(Rule rule, const UpdateCall& call) {
  using Pointers = std::array<void*, kUpdateOperands<Rule>>;
  if (call.lr) rule.lr = read_number(*call.lr);
  const UpdateKernels<Rule>& k = kernels().rules.of<Rule>();
  const auto operands = operands_of<Rule>(call);
  if (!call.noise) {
    for_each_segment(call.weights, operands, 2 * kGrain, [&](size_t t, Span span, const Pointers& p) {
      const auto pair = static_cast<int>(dtype_pair(call.weights[t].dtype, call.grads[t].dtype));
      k.update[pair](rule, call.step_of(t), span, p[0], p[1], p.data() + 2);
    });
    return;
  }
  const GeneratorState state = read_generator(call.noise->generator, call.noise->options);
  const bool streams = exceeds_caches(operands);
  for_each_segment(call.weights, operands, kGrain, [&](size_t t, Span span, const Pointers& p) {
    const auto pair = static_cast<int>(dtype_pair(call.weights[t].dtype, call.params[t].dtype));
    NoiseArgs noise = noise_args(*call.noise, state, t);
    noise.streams = streams && call.params[t].contiguous;
    k.update_and_perturb[pair](rule, call.step_of(t), noise, span, p[0], p[1], p.data() + 2, p.back());
  });
}

}  // namespace

void update(const UpdateCall& call) {
  std::visit([&](const auto& rule) { update_by(rule, call); }, call.rule);
}

// In pieces of fixed size, summed in order: the same bits for any number of threads.
void add_squares(const AddSquaresCall& call) {
  std::vector<int64_t> lengths;
  for (const TensorView& view : call.weights) lengths.push_back(view.numel);
  for (const double sum : reduce_pieces(call.weights, lengths, kernels().sum_of_squares).values) *call.total += sum;
}

// Two passes: the norm, then, only where it exceeds the radius, the scaling.
void project(const ProjectCall& call) {
  double total = 0.0;
  if (call.squared_norm != nullptr) {
    total = *call.squared_norm;
  } else {
    add_squares({&total, call.weights, call.on_device});
  }
  const math::Projection projection = math::make_projection(total, call.radius);
  if (!projection.outside) return;
  const Kernels& k = kernels();
  const std::array<Operand, 1> operands{Operand{&call.weights, Access::read_write}};
  for_each_segment(call.weights, operands, 4 * kGrain, [&](size_t t, Span span, const std::array<void*, 1>& p) {
    k.scale[static_cast<int>(dtype_of(call.weights[t].dtype))](projection.factor, p[0], span.count);
  });
}

}  // namespace torch_ssam::cpu
