// The CPU loop of update_rows_and_perturb_ (../update.cpp): update, clipping, numbers of rows and noise while the rows
// are in a cache, in one pass over memory. Rows longer than that take two: the second clips, and makes the noise. A
// loop over the kernels of the four operators, in their order, so the bits are theirs. Tests: test_ops_update_rows.py.
#include "../../math/stored.h"
#include "loops.h"
#include "pieces.h"

namespace torch_ssam::cpu {
namespace {

// Elements of a row that stays in a second-level cache with its gradient, buffers and noise, and of rows taken
// together.
constexpr int64_t kRowFits = int64_t{1} << 15;
constexpr int64_t kTogether = int64_t{1} << 13;

// How the elements of a tensor go together. A row that is scaled holds whole rows that are clipped.
struct Rows {
  int64_t clipped;  // the length of a row that is clipped; 0 where none is
  int64_t scaled;   // of a row that has a number; 0 where none has
  int64_t longest() const { return std::max(clipped, scaled); }
};

Rows rows_of_tensor(const UpdateRowsCall& call, size_t t) {
  const TensorView& view = call.update.weights[t];
  const RowViews& scales = call.update.noise->row_scales;
  const int64_t filters = view.dim < 2 ? 0 : view.sizes[0];
  return {call.weight_clip != 0.0 && filters > 0 ? view.numel / filters : 0, scales.empty() ? 0 : scales[t].length};
}

bool all_contiguous(const UpdateCall& call) {
  const auto contiguous = [](const TensorViews& views) {
    return std::all_of(views.begin(), views.end(), [](const TensorView& view) { return view.contiguous; });
  };
  return contiguous(call.weights) && contiguous(call.grads) && contiguous(call.params) &&
         std::all_of(call.buffers.begin(), call.buffers.end(), contiguous);
}

char* element(const TensorView& view, int64_t i) {
  return static_cast<char*>(view.data) + i * static_cast<int64_t>(bytes_of(view.dtype));
}

double clipped_largest(ScalarType dtype, double largest, double limit) {
  switch (dtype) {
    case ScalarType::Double:
      return math::clipped_largest<double>(largest, limit);
    case ScalarType::Float:
      return math::clipped_largest<float>(largest, limit);
    case ScalarType::BFloat16:
      return math::clipped_largest<math::bfloat16_t>(largest, limit);
    default:
      return math::clipped_largest<math::float16_t>(largest, limit);
  }
}

// Stretches of tensors, of whole rows where `row_of` says how long they are, cut so that threads share them evenly.
struct Stretch {
  size_t tensor;
  Span span;
};

template <typename RowOf>
std::vector<Stretch> cut(const TensorViews& views, const std::vector<size_t>& chosen, const RowOf& row_of) {
  std::vector<Stretch> stretches;
  for (const size_t t : chosen) {
    const int64_t row = std::max<int64_t>(row_of(t), 1);
    const int64_t each = std::max<int64_t>(kTogether / row, 1) * row;
    for (int64_t at = 0; at < views[t].numel; at += each) {
      stretches.push_back({t, {at, std::min(each, views[t].numel - at)}});
    }
  }
  return stretches;
}

template <typename Body>
void for_each_stretch(const std::vector<Stretch>& stretches, const Body& body) {
  if (stretches.empty()) return;
  constexpr int64_t kGrainOfStretches = kGrain / kTogether;
  torch::stable::parallel_for(0, static_cast<int64_t>(stretches.size()), kGrainOfStretches,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  const Stretch& stretch = stretches[static_cast<size_t>(i)];
                                  body(stretch.tensor, stretch.span);
                                }
                              });
}

template <typename Rule>
class RowStep {
 public:
  RowStep(Rule rule, const UpdateRowsCall& call)
      : call_(call),
        update_(call.update),
        rule_(rule),
        table_(kernels()),
        kernels_(table_.rules.template of<Rule>()),
        state_(read_generator(update_.noise->generator, update_.noise->options)),
        streams_(exceeds_caches(std::array<Operand, 3>{Operand{&update_.weights, Access::read_write},
                                                       Operand{&update_.grads, Access::read},
                                                       Operand{&update_.params, Access::write}})) {}

  // Everything, for whole rows.
  void step(size_t t, Span span) const {
    update(t, span);
    const Rows rows = rows_of_tensor(call_, t);
    const int dtype = dtype_index(t);
    for (int64_t at = span.begin; rows.clipped != 0 && at < span.begin + span.count; at += rows.clipped) {
      const double sum = reduce<math::SumOfSquares>(t, at, rows.clipped);
      table_.clip[dtype](math::row_limit(sum, rows.clipped, call_.weight_clip), element(update_.weights[t], at),
                         rows.clipped);
    }
    for (int64_t at = span.begin; rows.scaled != 0 && at < span.begin + span.count; at += rows.scaled) {
      update_.noise->row_scales[t].data[at / rows.scaled] =
          call_.kind == math::RowScale::absmax
              ? math::row_range(reduce<math::LargestMagnitude>(t, at, rows.scaled))
              : math::row_scale(reduce<math::SumOfSquares>(t, at, rows.scaled), 0.0, 0.0);
    }
    perturb(t, span, /*all_next=*/true);
  }

  // The first pass over longer rows: the update, and the limit of each row and the number of each scaled one.
  std::vector<double> first_pass(size_t t) const {
    const Rows rows = rows_of_tensor(call_, t);
    const int64_t length = rows.clipped != 0 ? rows.clipped : rows.scaled;
    const int64_t each = math::norm_pieces(length);
    const int64_t count = update_.weights[t].numel / length;
    const bool sums = rows.clipped != 0 || call_.kind == math::RowScale::norm;
    const bool ranges = rows.scaled != 0 && call_.kind == math::RowScale::absmax;
    std::vector<double> squares(static_cast<size_t>(sums ? count * each : 0));
    std::vector<double> largest(static_cast<size_t>(ranges ? count * each : 0));
    const int64_t grain = std::max<int64_t>(1, kGrain / std::min(length, math::kNormPiece));
    torch::stable::parallel_for(0, count * each, grain, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t inside = piece % each * math::kNormPiece;
        const Span span{piece / each * length + inside, std::min(math::kNormPiece, length - inside)};
        update(t, span);
        const void* weights = element(update_.weights[t], span.begin);
        const auto i = static_cast<size_t>(piece);
        if (sums) squares[i] = table_.sum_of_squares[dtype_index(t)](weights, span.count);
        if (ranges) largest[i] = table_.largest_magnitude[dtype_index(t)](weights, span.count);
      }
    });
    std::vector<double> limits(static_cast<size_t>(rows.clipped != 0 ? count : 0));
    double number = 0.0;  // of the scaled row, as far as it has come
    for (int64_t row = 0; row < count; ++row) {
      double sum = 0.0, range = 0.0;
      for (int64_t i = row * each; i < (row + 1) * each; ++i) {
        const auto piece = static_cast<size_t>(i);
        if (sums) sum = math::SumOfSquares::join_pieces(sum, squares[piece]);
        if (ranges) range = math::LargestMagnitude::join_pieces(range, largest[piece]);
      }
      if (rows.clipped != 0) {
        const double limit = math::row_limit(sum, length, call_.weight_clip);
        limits[static_cast<size_t>(row)] = limit;
        range = clipped_largest(update_.weights[t].dtype, range, limit);
      }
      if (rows.scaled == 0) continue;
      number = ranges ? math::LargestMagnitude::join_pieces(number, range) : sum;
      if ((row + 1) * length % rows.scaled != 0) continue;
      update_.noise->row_scales[t].data[row * length / rows.scaled] =
          ranges ? math::row_range(number) : math::row_scale(number, 0.0, 0.0);
      number = 0.0;
    }
    return limits;
  }

  void second_pass(size_t t, Span span, const std::vector<double>& limits) const {
    if (!limits.empty()) {
      for_each_row_in(span, rows_of_tensor(call_, t).clipped, [&](int64_t row, int64_t done, int64_t count) {
        table_.clip[dtype_index(t)](limits[static_cast<size_t>(row)], element(update_.weights[t], span.begin + done),
                                    count);
      });
    }
    perturb(t, span, /*all_next=*/false);
  }

 private:
  int dtype_index(size_t t) const { return static_cast<int>(dtype_of(update_.weights[t].dtype)); }

  void update(size_t t, Span span) const {
    std::array<void*, math::kMostBuffers<Rule> + 1> buffers{};
    for (size_t b = 0; b < update_.buffers.size(); ++b) buffers[b] = element(update_.buffers[b][t], span.begin);
    const auto pair = static_cast<int>(dtype_pair(update_.weights[t].dtype, update_.grads[t].dtype));
    kernels_.update[pair](rule_, update_.step_of(t), span, element(update_.weights[t], span.begin),
                          element(update_.grads[t], span.begin), buffers.data());
  }

  // Beyond the caches, what the next stretch reads is fetched meanwhile: all that an update reads, or the weights.
  void perturb(size_t t, Span span, bool all_next) const {
    NoiseArgs noise = noise_args(*update_.noise, state_, t);
    noise.streams = streams_;
    const int64_t end = span.begin + span.count;
    if (streams_ && end < update_.weights[t].numel) {
      size_t count = 0;
      noise.next[count++] = element(update_.weights[t], end);
      if (all_next) {
        noise.next[count++] = element(update_.grads[t], end);
        for (const TensorViews& buffer : update_.buffers) noise.next[count++] = element(buffer[t], end);
      }
    }
    const auto pair = static_cast<int>(dtype_pair(update_.weights[t].dtype, update_.params[t].dtype));
    table_.perturb[pair](noise, span, element(update_.weights[t], span.begin), nullptr,
                         element(update_.params[t], span.begin));
  }

  template <typename Reduction>
  double reduce(size_t t, int64_t begin, int64_t length) const {
    double total = 0.0;
    for (int64_t at = 0; at < length; at += math::kNormPiece) {
      total = Reduction::join_pieces(total,
                                     kernels_of(Reduction())[dtype_index(t)](element(update_.weights[t], begin + at),
                                                                             std::min(math::kNormPiece, length - at)));
    }
    return total;
  }

  const UpdateRowsCall& call_;
  const UpdateCall& update_;
  Rule rule_;
  const Kernels& table_;
  const UpdateKernels<Rule>& kernels_;
  GeneratorState state_;
  bool streams_;
};

template <typename Rule>
bool update_rows_by(Rule rule, const UpdateRowsCall& call) {
  const UpdateCall& update = call.update;
  if (update.lr) rule.lr = read_number(*update.lr);
  std::vector<size_t> fitting, longer;
  for (size_t t = 0; t < update.weights.size(); ++t) {
    const Rows rows = rows_of_tensor(call, t);
    (rows.longest() <= kRowFits ? fitting : longer).push_back(t);
    // A norm of clipped rows is a pass of its own where they are long.
    if (rows.longest() > kRowFits && rows.clipped != 0 && rows.scaled != 0 && call.kind == math::RowScale::norm) {
      return false;
    }
  }
  const RowStep<Rule> step(rule, call);
  for_each_stretch(cut(update.weights, fitting, [&](size_t t) { return rows_of_tensor(call, t).longest(); }),
                   [&](size_t t, Span span) { step.step(t, span); });
  for (const size_t t : longer) {
    const std::vector<double> limits = step.first_pass(t);
    for_each_stretch(cut(update.weights, {t}, [](size_t) { return math::kGaussianBlock; }),
                     [&](size_t, Span span) { step.second_pass(t, span, limits); });
  }
  return true;
}

}  // namespace

bool update_rows(const UpdateRowsCall& call) {
  if (!all_contiguous(call.update)) return false;
  return std::visit([&](const auto& rule) { return update_rows_by(rule, call); }, call.update.rule);
}

}  // namespace torch_ssam::cpu
