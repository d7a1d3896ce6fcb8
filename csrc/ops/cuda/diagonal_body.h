// Bodies of the kernels in diagonal.cu. The product of the layers of each coordinate, with its noise, is made once
// into a buffer of `features` numbers; the rows of the batch then stream by it. Sums have the fixed order of
// csrc/math/diagonal.h: segments of 64 rows, segments in order; a readout in chunks of 1024 coordinates, 16 lanes each.
// Notation of docs/theory.md: w (depth, features), x (rows, features). Tests: test_cuda_on_host.cpp, test_cuda.py.
#pragma once

#include "../../math/diagonal.h"
#include "../../math/reduce.h"
#include "grid.h"

namespace torch_ssam::cuda {

struct LayerSettings {
  const void* weight;
  int64_t depth;
  int64_t features;
  bool noisy;
  NoiseSettings noise;
};

// Four weights of one layer, of the coordinates 64 block + 16 j + lane: one counter where the layer starts a block.
template <typename master_t>
TORCH_SSAM_BODY void load_layer(const LayerSettings& s, const math::NoiseStream& stream, int64_t layer, int64_t block,
                                int lane, math::opmath_t<master_t> (&w)[4]) {
  const int64_t start = layer * s.features;
  const int64_t first = block * math::kGaussianBlock + lane;
  const auto* weight = static_cast<const master_t*>(s.weight) + start;
  master_t stored[4];
  TORCH_SSAM_UNROLL
  for (int j = 0; j < 4; ++j) {
    const int64_t h = first + j * math::kLanes;
    stored[j] = h < s.features ? weight[h] : master_t{};
  }
  float z[4] = {};
  if (s.noisy && start % math::kGaussianBlock == 0) {
    const int64_t noise_block = start / math::kGaussianBlock + block;
    OwnedNoise<1> noise;
    OwnedNoise<1>::make(noise, stream, s.noise.distribution, noise_block, lane);
    OwnedNoise<1>::to_values(noise, s.noise.distribution, rademacher_bit(noise_block), 0);
    OwnedNoise<1>::to_values(noise, s.noise.distribution, rademacher_bit(noise_block), 2);
    TORCH_SSAM_UNROLL
    for (int j = 0; j < 4; ++j) z[j] = math::bits_to_float(noise.word[j][0]);
  } else if (s.noisy) {
    TORCH_SSAM_UNROLL
    for (int j = 0; j < 4; ++j) {
      z[j] = math::element_noise(stream, s.noise.distribution, start + first + j * math::kLanes);
    }
  }
  const auto noise_std = static_cast<math::opmath_t<master_t>>(s.noise.noise_std);
  TORCH_SSAM_UNROLL
  for (int j = 0; j < 4; ++j) {
    // Rounded as SSAM would have stored it.
    w[j] = s.noisy ? math::load_scalar(math::perturb_stored<master_t>(stored[j], noise_std, z[j]))
                   : math::load_scalar(stored[j]);
  }
}

TORCH_SSAM_BODY math::NoiseStream layer_stream(const LayerSettings& s) {
  return s.noisy ? make_stream(s.noise, 0) : math::NoiseStream{};
}

// product[h] = w_1[h] ... w_L[h]; a thread has four coordinates of a block of 64.
template <typename master_t>
struct ProductBody {
  using math_t = math::opmath_t<master_t>;
  struct Params {
    LayerSettings layers;
    math_t* product;
  };

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    const LayerSettings& s = params.layers;
    const int64_t block = global_index(at) / math::kLanes;
    const int lane = static_cast<int>(global_index(at) % math::kLanes);
    const int64_t first = block * math::kGaussianBlock + lane;
    if (first >= s.features) return;
    const math::NoiseStream stream = layer_stream(s);
    math_t product[4];
    for (int64_t layer = 0; layer < s.depth; ++layer) {
      math_t w[4];
      load_layer<master_t>(s, stream, layer, block, lane, w);
      TORCH_SSAM_UNROLL
      for (int j = 0; j < 4; ++j) product[j] = layer == 0 ? w[j] : math::diagonal_extend(product[j], w[j]);
    }
    TORCH_SSAM_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int64_t h = first + j * math::kLanes;
      if (h < s.features) params.product[h] = product[j];
    }
  }
};

inline constexpr int kRowsOwned = 16;  // rows a thread of the multiplication has

struct MultiplyGrid {
  int64_t columns;       // groups of kCount coordinates
  int64_t column_tiles;  // blocks of threads side by side, each `width` columns and kThreads / width rows at a time
  int width;
  int64_t blocks;
};

inline MultiplyGrid multiply_grid(int64_t rows, int64_t features, int count) {
  const int64_t columns = features / count;
  const int width = columns < kThreads ? static_cast<int>(columns) : kThreads;
  const int64_t tiles = (columns + width - 1) / width;
  const int64_t rows_of_block = kThreads / width * static_cast<int64_t>(kRowsOwned);
  return {columns, tiles, width, tiles * ((rows + rows_of_block - 1) / rows_of_block)};
}

// output = input * product, a row a turn; a thread keeps the product of its kCount coordinates.
template <typename master_t, typename model_t, int kCount>
struct MultiplyBody {
  using math_t = math::opmath_t<master_t>;
  struct Params {
    const math_t* product;
    const model_t* input;
    model_t* output;
    int64_t rows;
    MultiplyGrid grid;
  };
  static constexpr int kAhead = sizeof(model_t) == 8 ? 2 : 4;  // rows whose loads are under way together

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    const int lines = kThreads / params.grid.width;
    const int64_t column = at.block % params.grid.column_tiles * params.grid.width + at.index % params.grid.width;
    const int line = at.index / params.grid.width;
    if (column >= params.grid.columns || line >= lines) return;
    const int64_t first_row = at.block / params.grid.column_tiles * lines * kRowsOwned + line;
    math_t product[kCount];
    load_group(params.product + column * kCount, product);
    TORCH_SSAM_UNROLL_BY(1)
    for (int turn = 0; turn < kRowsOwned; turn += kAhead) {
      model_t values[kAhead][kCount];
      int64_t position[kAhead];
      TORCH_SSAM_UNROLL
      for (int r = 0; r < kAhead; ++r) {
        const int64_t row = first_row + static_cast<int64_t>(turn + r) * lines;
        position[r] = row < params.rows ? (row * params.grid.columns + column) * kCount : -1;
        if (position[r] >= 0) load_group(params.input + position[r], values[r]);
      }
      TORCH_SSAM_UNROLL
      for (int r = 0; r < kAhead; ++r) {
        if (position[r] < 0) continue;
        TORCH_SSAM_UNROLL
        for (int l = 0; l < kCount; ++l) {
          values[r][l] = math::Store<model_t>::from(
              math::diagonal_extend(static_cast<math_t>(math::load_scalar(values[r][l])), product[l]));
        }
        store_group(params.output + position[r], values[r]);
      }
    }
  }
};

// Sum of product * input over a chunk of coordinates: lanes in the first phase, their tree in the second. With several
// chunks a row, CombineBody adds them up.
template <typename master_t, typename model_t, int kCount>
struct ReadoutBody {
  using math_t = math::opmath_t<master_t>;
  static constexpr int kOwners = static_cast<int>(math::kLanes) / kCount;  // threads that share a chunk
  static constexpr int kTasks = kThreads / kOwners;                        // pairs (row, chunk) of a block of threads
  static constexpr int kTurns = sizeof(model_t) == 2 ? 2 : 4;              // loads under way together
  struct Params {
    const math_t* product;
    const model_t* input;
    math_t* partial;  // (rows, chunks)
    int64_t rows;
    int64_t features;
    int64_t chunks;
  };
  struct Shared {
    math_t lanes[kTasks][math::kLanes + 1];  // one more, so that the second phase meets all banks of the memory
  };

  TORCH_SSAM_BODY int64_t tiles(const Params&) { return 1; }

  TORCH_SSAM_BODY void first_phase(const Params& params, Thread at, int64_t, Shared& shared) {
    const int task_here = at.index / kOwners;
    const int lane = at.index % kOwners * kCount;
    const int64_t task = at.block * kTasks + task_here;
    if (task >= params.rows * params.chunks) return;
    const int64_t row = task / params.chunks;
    const int64_t begin = task % params.chunks * math::kReadoutChunk;
    const int64_t end = begin + math::kReadoutChunk < params.features ? begin + math::kReadoutChunk : params.features;
    math_t sums[kCount] = {};
    TORCH_SSAM_UNROLL_BY(kTurns)
    for (int64_t h = begin + lane; h < end; h += math::kLanes) {
      math_t product[kCount];
      model_t x[kCount];
      load_group(params.product + h, product);
      load_group(params.input + row * params.features + h, x);
      TORCH_SSAM_UNROLL
      for (int l = 0; l < kCount; ++l) {
        sums[l] = math::diagonal_accumulate(sums[l], product[l], static_cast<math_t>(math::load_scalar(x[l])));
      }
    }
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kCount; ++l) shared.lanes[task_here][lane + l] = sums[l];
  }

  TORCH_SSAM_BODY void second_phase(const Params& params, Thread at, int64_t, Shared& shared) {
    const int64_t task = at.block * kTasks + at.index;
    if (at.index >= kTasks || task >= params.rows * params.chunks) return;
    math_t lanes[math::kLanes];
    TORCH_SSAM_UNROLL
    for (int l = 0; l < math::kLanes; ++l) lanes[l] = shared.lanes[at.index][l];
    params.partial[task] = math::add_lanes(lanes);
  }
};

// output[row] = sum of its chunks, in order.
template <typename master_t, typename model_t>
struct CombineBody {
  using math_t = math::opmath_t<master_t>;
  struct Params {
    const math_t* partial;
    model_t* output;
    int64_t rows;
    int64_t chunks;
  };

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    const int64_t row = global_index(at);
    if (row >= params.rows) return;
    math_t sum = math_t(0);
    TORCH_SSAM_UNROLL_BY(4)
    for (int64_t c = 0; c < params.chunks; ++c) sum += params.partial[row * params.chunks + c];
    params.output[row] = math::Store<model_t>::from(sum);
  }
};

// One pass of the backward over a segment of kBatchSegment rows, for kCount coordinates: the sum of grad * input, and
// the gradient of the input, grad * product. With `spread` a row has one gradient (readout).
template <typename master_t, typename model_t, int kCount>
struct RowsBody {
  using math_t = math::opmath_t<master_t>;
  struct Params {
    const model_t* grad;
    const model_t* input;   // null where the weight needs no gradient
    const math_t* product;  // null where the input needs none
    model_t* grad_input;
    math_t* sums;  // (segments, features)
    int64_t rows;
    int64_t features;
    bool spread;
  };
  static constexpr int kAhead = sizeof(model_t) == 4 ? 4 : 2;  // rows whose loads are under way together

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    const int64_t columns = params.features / kCount;
    const int64_t segment = global_index(at) / columns;
    const int64_t h = global_index(at) % columns * kCount;
    const int64_t first = segment * math::kBatchSegment;
    if (first >= params.rows) return;
    const int64_t last = first + math::kBatchSegment < params.rows ? first + math::kBatchSegment : params.rows;
    math_t sums[kCount] = {};
    math_t product[kCount] = {};
    if (params.product != nullptr) load_group(params.product + h, product);
    TORCH_SSAM_UNROLL_BY(1)
    for (int64_t row = first; row < last; row += kAhead) {
      model_t g[kAhead][kCount];
      model_t x[kAhead][kCount];
      TORCH_SSAM_UNROLL
      for (int r = 0; r < kAhead; ++r) {
        if (row + r >= last) continue;
        const int64_t position = (row + r) * params.features + h;
        if (params.spread) {
          const model_t one = params.grad[row + r];
          TORCH_SSAM_UNROLL
          for (int l = 0; l < kCount; ++l) g[r][l] = one;
        } else {
          load_group(params.grad + position, g[r]);
        }
        if (params.input != nullptr) load_group(params.input + position, x[r]);
      }
      TORCH_SSAM_UNROLL
      for (int r = 0; r < kAhead; ++r) {
        if (row + r >= last) continue;
        if (params.input != nullptr) {
          TORCH_SSAM_UNROLL
          for (int l = 0; l < kCount; ++l) {
            sums[l] = math::diagonal_accumulate(sums[l], static_cast<math_t>(math::load_scalar(g[r][l])),
                                                static_cast<math_t>(math::load_scalar(x[r][l])));
          }
        }
        if (params.product == nullptr) continue;
        TORCH_SSAM_UNROLL
        for (int l = 0; l < kCount; ++l) {
          g[r][l] = math::Store<model_t>::from(
              math::diagonal_extend(static_cast<math_t>(math::load_scalar(g[r][l])), product[l]));
        }
        store_group(params.grad_input + (row + r) * params.features + h, g[r]);
      }
    }
    if (params.input != nullptr) store_group(params.sums + segment * params.features + h, sums);
  }
};

// Segments in order, then the gradient of every layer from a suffix going down (kept in a buffer) and a prefix going
// up.
template <typename master_t>
struct FinishBody {
  using math_t = math::opmath_t<master_t>;
  struct Params {
    LayerSettings layers;
    const math_t* sums;  // (segments, features)
    int64_t segments;
    math_t* suffix;         // (depth, features)
    master_t* grad_weight;  // (depth, features)
  };

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    const LayerSettings& s = params.layers;
    const int64_t block = global_index(at) / math::kLanes;
    const int lane = static_cast<int>(global_index(at) % math::kLanes);
    const int64_t first = block * math::kGaussianBlock + lane;
    if (first >= s.features) return;
    const math::NoiseStream stream = layer_stream(s);
    math_t total[4];
    math_t running[4];
    TORCH_SSAM_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int64_t h = first + j * math::kLanes;
      running[j] = math_t(1);
      total[j] = h < s.features ? params.sums[h] : math_t(0);
    }
    TORCH_SSAM_UNROLL_BY(8)
    for (int64_t segment = 1; segment < params.segments; ++segment) {
      TORCH_SSAM_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int64_t h = first + j * math::kLanes;
        if (h < s.features) total[j] += params.sums[segment * s.features + h];
      }
    }
    for (int64_t layer = s.depth - 1; layer >= 0; --layer) {
      math_t w[4];
      load_layer<master_t>(s, stream, layer, block, lane, w);
      TORCH_SSAM_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int64_t h = first + j * math::kLanes;
        if (h < s.features) params.suffix[layer * s.features + h] = running[j];
        running[j] = math::diagonal_extend(running[j], w[j]);
      }
    }
    TORCH_SSAM_UNROLL
    for (int j = 0; j < 4; ++j) running[j] = math_t(1);
    for (int64_t layer = 0; layer < s.depth; ++layer) {
      math_t w[4];
      load_layer<master_t>(s, stream, layer, block, lane, w);
      TORCH_SSAM_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int64_t h = first + j * math::kLanes;
        if (h < s.features) {
          const int64_t position = layer * s.features + h;
          params.grad_weight[position] =
              math::Store<master_t>::from(math::diagonal_layer_gradient(running[j], params.suffix[position], total[j]));
        }
        running[j] = math::diagonal_extend(running[j], w[j]);
      }
    }
  }
};

}  // namespace torch_ssam::cuda
