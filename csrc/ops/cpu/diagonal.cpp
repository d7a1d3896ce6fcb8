// CPU loops of the operators in ../diagonal.cpp: a chunk of coordinates at a time, small enough that its layers,
// product and sums stay in the first-level cache while the rows of the batch stream by. Threads share chunks, or, where
// there are fewer chunks than threads, segments of rows; the sums are the same bits either way.
#include "../../math/diagonal.h"

#include "loops.h"
#include "segments.h"

namespace torch_ssam::cpu {
namespace {

using math::kBatchSegment;
using math::kReadoutChunk;

struct Problem {
  DiagonalShape shape;
  DiagonalArgs args;
  int pair, master;  // where the tables have their loops
  const char *input, *weight;
  int64_t input_bytes, weight_bytes, math_bytes;

  const char* input_at(int64_t row, int64_t feature) const {
    return input + (row * shape.features + feature) * input_bytes;
  }

  // Whether the weights can be read where they lie: no noise, and in opmath already.
  bool plain() const { return !args.noisy && weight_bytes == math_bytes; }
};

Problem problem_of(const DiagonalCall& call) {
  Problem p;
  p.shape = call.shape;
  p.pair = static_cast<int>(call.pair);
  p.master = static_cast<int>(math::master_of(call.pair));
  p.input = static_cast<const char*>(call.input.data_ptr());
  p.weight = static_cast<const char*>(call.weight.data_ptr());
  p.input_bytes = static_cast<int64_t>(bytes_of(call.input.scalar_type()));
  p.weight_bytes = static_cast<int64_t>(bytes_of(call.weight.scalar_type()));
  p.math_bytes = p.weight_bytes == 8 ? 8 : 4;
  p.args.layers = p.shape.depth;
  p.args.features = p.shape.features;
  p.args.noisy = call.generator != nullptr;
  p.args.noise = p.args.noisy ? noise_args(call.noise, read_generator(call.generator, call.noise), 0) : NoiseArgs{};
  return p;
}

// Buffers of one thread for one chunk, in opmath: layers (depth, chunk), product, sum, total (chunk), and the scratch
// of the weight gradient (depth, chunk).
struct Workspace {
  Workspace(const Problem& p, int64_t chunk)
      : bytes(static_cast<size_t>(chunk * p.math_bytes)),
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

}  // namespace

void diagonal(const DiagonalCall& call, const Tensor& output) {
  const Problem p = problem_of(call);
  const bool readout = call.readout;
  const auto [depth, features, rows] = p.shape;
  const Kernels& k = kernels();
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
      k.diagonal_load[p.master](p.args, span, p.weight, p.args.noisy ? w.layers() : nullptr, w.product());
      for (int64_t row = rows * group / groups; row < rows * (group + 1) / groups; ++row) {
        const char* x = p.input_at(row, span.begin);
        if (readout) {
          partial[static_cast<size_t>(row * chunks + c)] = k.diagonal_readout[p.pair](w.product(), x, span.count);
        } else {
          char* y = out + (row * features + span.begin) * p.input_bytes;
          k.diagonal_multiply[p.pair](w.product(), x, y, span.count);
        }
      }
    }
  });
  for (int64_t row = 0; readout && row < rows; ++row) {
    k.diagonal_combine[p.pair](partial.data() + row * chunks, chunks, out + row * p.input_bytes);
  }
}

void diagonal_backward(const DiagonalBackwardCall& call, const Tensor& grad_input, const Tensor& grad_weight) {
  const Problem p = problem_of(call.forward);
  const auto [needs_input, needs_weight] = std::pair(call.needs_input, call.needs_weight);
  const bool readout = call.forward.readout;
  const auto [depth, features, rows] = p.shape;
  const Kernels& k = kernels();
  const char* g = static_cast<const char*>(call.grad_output.data_ptr());
  const int64_t grad_stride = readout ? 1 : features;
  const auto grad_at = [&](int64_t row, int64_t feature) {
    return g + (row * grad_stride + (readout ? 0 : feature)) * p.input_bytes;
  };

  const int64_t elements = features * (2 * rows + 2 * depth * (p.args.noisy ? 4 : 1));
  const int64_t segments = (rows + kBatchSegment - 1) / kBatchSegment;
  const int64_t chunk = chunk_size(p.shape, segments, elements);
  const int64_t chunks = chunks_of(features, chunk);
  const int64_t groups = groups_of(chunks, segments, elements);
  const int64_t math_bytes = p.math_bytes;
  // With several groups of rows, the sums of each segment wait here and are added up, in order, afterwards.
  std::vector<char> sums(groups > 1 && needs_weight ? static_cast<size_t>(segments * features * math_bytes) : 0);

  const auto finish_chunk = [&](Workspace& w, Span span) {
    char* target = static_cast<char*>(grad_weight.data_ptr()) + span.begin * p.weight_bytes;
    const void* layers = p.plain() ? p.weight + span.begin * math_bytes : w.layers();
    k.diagonal_weight_gradient[p.master](depth, features, w.total(), layers, p.plain() ? features : span.count,
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
        k.diagonal_load[p.master](p.args, span, p.weight, layers, needs_input ? w.product() : nullptr);
      }
      for (int64_t s = segments * group / groups; s < segments * (group + 1) / groups; ++s) {
        const int64_t row = s * kBatchSegment;
        const int64_t n = std::min(kBatchSegment, rows - row);
        const bool direct = groups == 1 && s == 0;  // the first segment starts the total
        char* sum = !needs_weight ? nullptr : (direct ? w.total() : w.sum());
        char* target = !needs_input
                           ? nullptr
                           : static_cast<char*>(grad_input.data_ptr()) + (row * features + span.begin) * p.input_bytes;
        k.diagonal_backward_rows[p.pair](grad_at(row, span.begin), grad_stride, readout, p.input_at(row, span.begin),
                                         target, features, n, span.count, w.product(), sum);
        if (needs_weight && groups > 1) {
          std::memcpy(sums.data() + (s * features + span.begin) * math_bytes, w.sum(), span_bytes);
        } else if (needs_weight && !direct) {
          k.diagonal_add[p.master](w.total(), w.sum(), span.count);
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
        if (!p.plain()) k.diagonal_load[p.master](p.args, span, p.weight, w.layers(), nullptr);
        for (int64_t s = 0; s < segments; ++s) {
          const char* sum = sums.data() + (s * features + span.begin) * math_bytes;
          if (s == 0) {
            std::memcpy(w.total(), sum, static_cast<size_t>(span.count * math_bytes));
          } else {
            k.diagonal_add[p.master](w.total(), sum, span.count);
          }
        }
        finish_chunk(w, span);
      }
    });
  }
}

}  // namespace torch_ssam::cpu
