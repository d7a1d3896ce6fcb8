// CPU loops of the operators in ../diagonal.h: a chunk of coordinates at a time, small enough that its layers, product
// and sums stay in the first-level cache while the rows of the batch stream by. Threads share chunks, or, where there
// are fewer chunks than threads, segments of rows; the sums are the same bits either way.
#include "../diagonal.h"

#include "../../math/diagonal.h"
#include "scalars.h"
#include "segments.h"

namespace torch_ssam::cpu {
namespace {

using math::kBatchSegment;
using math::kReadoutChunk;

struct Problem {
  DiagonalShape shape;
  DiagonalArgs args;
  DtypePair pair;
  Tensor input, weight;  // contiguous
  size_t input_bytes, weight_bytes, math_bytes;

  const char* input_at(int64_t row, int64_t feature) const {
    return static_cast<const char*>(input.data_ptr()) +
           (row * shape.features + feature) * static_cast<int64_t>(input_bytes);
  }
  const char* weight_data() const { return static_cast<const char*>(weight.data_ptr()); }

  // Whether the weights can be read where they lie: no noise, and in opmath already.
  bool plain() const { return !args.noisy && weight_bytes == math_bytes; }
};

Problem make_problem(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& generator,
                     double noise_std, const std::string& distribution) {
  Problem p;
  p.shape = check_diagonal(input, weight, generator);
  const NoiseOptions noise = check_noise(noise_std, distribution, 0, false, 0);
  p.input = torch::stable::contiguous(input);
  p.weight = torch::stable::contiguous(weight);
  const ScalarType x = input.scalar_type();
  const ScalarType w = weight.scalar_type();
  p.pair = dtype_pair(w, x);
  p.input_bytes = bytes_of(x);
  p.weight_bytes = bytes_of(w);
  p.math_bytes = w == ScalarType::Double ? 8 : 4;
  p.args.layers = p.shape.depth;
  p.args.features = p.shape.features;
  p.args.noisy = generator.has_value() && noise_std > 0;
  p.args.noise = p.args.noisy ? noise_args(noise, read_generator(*generator, 0), 0) : NoiseArgs{};
  return p;
}

// Buffers of one thread for one chunk, in opmath: layers (depth, chunk), product, sum, total (chunk), and the scratch
// of the weight gradient (depth, chunk).
struct Workspace {
  Workspace(const Problem& p, int64_t chunk)
      : bytes(static_cast<size_t>(chunk) * p.math_bytes),
        memory(new char[bytes * static_cast<size_t>(2 * p.shape.depth + 3)]) {}
  size_t bytes;
  std::unique_ptr<char[]> memory;
  char* product() { return memory.get(); }
  char* sum() { return memory.get() + bytes; }
  char* total() { return memory.get() + 2 * bytes; }
  char* layers() { return memory.get() + 3 * bytes; }
  char* scratch(int64_t depth) { return layers() + bytes * static_cast<size_t>(depth); }
};

int64_t chunks_of(int64_t features, int64_t chunk) { return (features + chunk - 1) / chunk; }

// At most kReadoutChunk coordinates; fewer where neither chunks nor row segments are enough for all threads. Rows are
// the better split: half as wide a chunk reads rows in pieces that are too short for the prefetcher (1.7 times as
// long).
int64_t chunk_size(const DiagonalShape& s, int64_t segments, int64_t elements) {
  const int64_t threads = elements > kGrain ? torch::stable::get_num_threads() : 1;
  if (segments >= threads) return kReadoutChunk;
  const int64_t share = (s.features + threads - 1) / threads;
  return std::clamp<int64_t>((share + 63) / 64 * 64, 64, kReadoutChunk);
}

template <typename Body>
void run_tasks(int64_t tasks, int64_t elements, const Body& body) {
  if (tasks <= 0) return;
  if (elements <= kGrain) {
    body(0, tasks);
  } else {
    torch::stable::parallel_for(0, tasks, 1 + kGrain / (1 + elements / tasks), body);
  }
}

// The row segments [0, ceil(rows / kBatchSegment)) in groups, so that chunks x groups is enough for all threads.
int64_t groups_of(int64_t chunks, int64_t segments, int64_t elements) {
  if (elements <= kGrain) return 1;
  const int64_t threads = torch::stable::get_num_threads();
  return chunks >= threads ? 1 : std::min<int64_t>(segments, (2 * threads + chunks - 1) / chunks);
}

Tensor diagonal_cpu(Tensor input, Tensor weight, std::optional<Tensor> generator, double noise_std,
                    StringArgument distribution, bool readout) {
  const Problem p = make_problem(input, weight, generator, noise_std, take(distribution));
  const auto [depth, features, rows] = p.shape;
  const Kernels& k = kernels();
  const int pair = static_cast<int>(p.pair);
  const auto sizes = input.sizes();
  std::vector<int64_t> out_sizes(sizes.begin(), sizes.end());
  if (readout) out_sizes.pop_back();
  Tensor output = readout ? torch::stable::new_zeros(input, out_sizes) : torch::stable::new_empty(input, out_sizes);
  if (features == 0 || output.numel() == 0) return output;
  char* out = static_cast<char*>(output.data_ptr());

  const int64_t elements = features * (rows + depth * (p.args.noisy ? 4 : 1));
  const int64_t chunk = readout ? kReadoutChunk : chunk_size(p.shape, rows, elements);
  const int64_t chunks = chunks_of(features, chunk);
  const int64_t groups = groups_of(chunks, rows, elements);
  std::vector<double> partial(readout ? static_cast<size_t>(rows * chunks) : 0);
  run_tasks(chunks * groups, elements, [&](int64_t first, int64_t last) {
    Workspace w(p, chunk);
    for (int64_t task = first; task < last; ++task) {
      const int64_t c = task / groups;
      const int64_t group = task % groups;
      const Span span{c * chunk, std::min(chunk, features - c * chunk)};
      k.diagonal_load[pair](p.args, span, p.weight_data(), p.args.noisy ? w.layers() : nullptr, w.product());
      for (int64_t row = rows * group / groups; row < rows * (group + 1) / groups; ++row) {
        const char* x = p.input_at(row, span.begin);
        if (readout) {
          partial[static_cast<size_t>(row * chunks + c)] = k.diagonal_readout[pair](w.product(), x, span.count);
        } else {
          char* y = out + (row * features + span.begin) * static_cast<int64_t>(p.input_bytes);
          k.diagonal_multiply[pair](w.product(), x, y, span.count);
        }
      }
    }
  });
  for (int64_t row = 0; readout && row < rows; ++row) {
    k.diagonal_combine[pair](partial.data() + row * chunks, chunks, out + row * static_cast<int64_t>(p.input_bytes));
  }
  return output;
}

std::tuple<Tensor, Tensor> diagonal_backward_cpu(Tensor grad_output, Tensor input, Tensor weight,
                                                 std::optional<Tensor> generator, double noise_std,
                                                 StringArgument distribution, bool readout, bool needs_input,
                                                 bool needs_weight) {
  const Problem p = make_problem(input, weight, generator, noise_std, take(distribution));
  check_diagonal_grad(grad_output, input, readout);
  const auto [depth, features, rows] = p.shape;
  const Kernels& k = kernels();
  const int pair = static_cast<int>(p.pair);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const std::vector<int64_t> none{0};
  const auto sizes = input.sizes();
  const std::vector<int64_t> weight_sizes{depth, features};
  Tensor grad_input =
      torch::stable::new_empty(input, needs_input ? sizes : torch::headeronly::IntHeaderOnlyArrayRef(none));
  Tensor grad_weight = needs_weight && rows > 0 ? torch::stable::new_empty(weight, weight_sizes)
                       : needs_weight           ? torch::stable::new_zeros(weight, weight_sizes)
                                                : torch::stable::new_empty(weight, none);
  if (features == 0 || rows == 0 || !(needs_input || needs_weight)) return {grad_input, grad_weight};
  const char* g = static_cast<const char*>(grad.data_ptr());
  const int64_t grad_stride = readout ? 1 : features;
  const auto grad_at = [&](int64_t row, int64_t feature) {
    return g + (row * grad_stride + (readout ? 0 : feature)) * static_cast<int64_t>(p.input_bytes);
  };

  const int64_t elements = features * (2 * rows + 2 * depth * (p.args.noisy ? 4 : 1));
  const int64_t segments = (rows + kBatchSegment - 1) / kBatchSegment;
  const int64_t chunk = chunk_size(p.shape, segments, elements);
  const int64_t chunks = chunks_of(features, chunk);
  const int64_t groups = groups_of(chunks, segments, elements);
  const auto math_bytes = static_cast<int64_t>(p.math_bytes);
  // With several groups of rows, the sums of each segment wait here and are added up, in order, afterwards.
  std::vector<char> sums(groups > 1 && needs_weight ? static_cast<size_t>(segments * features * math_bytes) : 0);

  const auto finish_chunk = [&](Workspace& w, Span span) {
    char* target = static_cast<char*>(grad_weight.data_ptr()) + span.begin * static_cast<int64_t>(p.weight_bytes);
    const void* layers = p.plain() ? p.weight_data() + span.begin * math_bytes : w.layers();
    k.diagonal_weight_gradient[pair](depth, features, w.total(), layers, p.plain() ? features : span.count,
                                     w.scratch(depth), target, span.count);
  };

  run_tasks(chunks * groups, elements, [&](int64_t first, int64_t last) {
    Workspace w(p, chunk);
    for (int64_t task = first; task < last; ++task) {
      const int64_t c = task / groups;
      const int64_t group = task % groups;
      const Span span{c * chunk, std::min(chunk, features - c * chunk)};
      const auto span_bytes = static_cast<size_t>(span.count * math_bytes);
      char* layers = p.plain() ? nullptr : w.layers();
      if (needs_input || layers != nullptr) {
        k.diagonal_load[pair](p.args, span, p.weight_data(), layers, needs_input ? w.product() : nullptr);
      }
      for (int64_t s = segments * group / groups; s < segments * (group + 1) / groups; ++s) {
        const int64_t row = s * kBatchSegment;
        const int64_t n = std::min(kBatchSegment, rows - row);
        const bool direct = groups == 1 && s == 0;  // the first segment starts the total
        char* sum = !needs_weight ? nullptr : (direct ? w.total() : w.sum());
        char* target = !needs_input ? nullptr
                                    : static_cast<char*>(grad_input.data_ptr()) +
                                          (row * features + span.begin) * static_cast<int64_t>(p.input_bytes);
        k.diagonal_backward_rows[pair](grad_at(row, span.begin), grad_stride, readout, p.input_at(row, span.begin),
                                       target, features, n, span.count, w.product(), sum);
        if (needs_weight && groups > 1) {
          std::memcpy(sums.data() + (s * features + span.begin) * math_bytes, w.sum(), span_bytes);
        } else if (needs_weight && !direct) {
          k.diagonal_add[pair](w.total(), w.sum(), span.count);
        }
      }
      if (needs_weight && groups == 1) finish_chunk(w, span);
    }
  });

  if (needs_weight && groups > 1) {
    run_tasks(chunks, features * (segments + depth), [&](int64_t first, int64_t last) {
      Workspace w(p, chunk);
      for (int64_t c = first; c < last; ++c) {
        const Span span{c * chunk, std::min(chunk, features - c * chunk)};
        if (!p.plain()) k.diagonal_load[pair](p.args, span, p.weight_data(), w.layers(), nullptr);
        for (int64_t s = 0; s < segments; ++s) {
          const char* sum = sums.data() + (s * features + span.begin) * math_bytes;
          if (s == 0) {
            std::memcpy(w.total(), sum, static_cast<size_t>(span.count * math_bytes));
          } else {
            k.diagonal_add[pair](w.total(), sum, span.count);
          }
        }
        finish_chunk(w, span);
      }
    });
  }
  return {grad_input, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CPU, m) {
  m.impl("diagonal", TORCH_BOX(&diagonal_cpu));
  m.impl("diagonal_backward", TORCH_BOX(&diagonal_backward_cpu));
}

}  // namespace torch_ssam::cpu
