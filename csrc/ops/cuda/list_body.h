// The body that all element-wise kernels over lists share: finds the thread's tensor and elements, loads operands,
// makes noise while the loads are under way, and lets the operator (Op) finish. With kCount > 1 every access is 16
// bytes (table.h gives such launches only what is aligned); with kCount == 1 it is one element, of any stride. An Op
// says: kOperands, kNoise, Settings, Local, Values<kCount>, prepare, load, finish. With RowScales in the entries, the
// noise that an Op gets is multiplied by the scale of the element's row. Tests: test_cuda_on_host.cpp,
// test_cuda_scale_on_host.cpp, test_cuda_shards_on_host.cpp; tools/check_ptx.py looks at the compiled accesses.
#pragma once

#include "table.h"

namespace torch_ssam::cuda {

// Elements [element, element + kCount) of one tensor, for every operand. The pointers stay in the table, in constant
// memory, until an access needs them: kept in registers they would make the wide kernels spill.
template <int kOperands, int kCount>
struct Cursor {
  int index;
  int64_t element;

  template <typename TableType>
  TORCH_SSAM_BODY Cursor make(const TableType&, int index, int64_t element) {
    return {index, element};
  }
  TORCH_SSAM_BODY int64_t offset(const Cursor& c, int) { return c.element; }
};

template <int kOperands>
struct Cursor<kOperands, 1> {
  int index;
  int64_t offsets[kOperands];

  template <typename TableType>
  TORCH_SSAM_BODY Cursor make(const TableType& table, int index, int64_t element) {
    Cursor c;
    c.index = index;
    offsets_of(table, table.entries[index], element, c.offsets);
    return c;
  }
  TORCH_SSAM_BODY int64_t offset(const Cursor& c, int operand) { return c.offsets[operand]; }
};

template <typename T, int kCount, typename TableType>
TORCH_SSAM_BODY T* operand_pointer(const TableType& table, const Cursor<TableType::kOperands, kCount>& c, int operand) {
  return static_cast<T*>(table.entries[not_kept(c.index)].data[operand]) +
         Cursor<TableType::kOperands, kCount>::offset(c, operand);
}

template <typename T, int kCount, typename TableType>
TORCH_SSAM_BODY void load_operand(const TableType& table, const Cursor<TableType::kOperands, kCount>& c, int operand,
                                  T (&to)[kCount]) {
  load_group(operand_pointer<const T>(table, c, operand), to);
}
template <typename T, int kCount, typename TableType>
TORCH_SSAM_BODY void store_operand(const TableType& table, const Cursor<TableType::kOperands, kCount>& c, int operand,
                                   const T (&from)[kCount]) {
  store_group(operand_pointer<T>(table, c, operand), from);
}

// Where an element lies among the rows of its tensor. One division a thread: its other elements are in the same block
// of 64, hence in the next row at most, unless rows are shorter than a block.
struct RowPosition {
  int64_t row, inside;
};

TORCH_SSAM_BODY RowPosition row_position(const RowScales& rows, int64_t element) {
  const int64_t length = RowScales::length(rows);
  const int64_t count = RowScales::rows(rows);
  const int64_t row = element / length;
  return {count == 0 ? row : row % count, element % length};
}

// Not yet back at the first row after the last.
TORCH_SSAM_BODY int64_t row_of(const RowPosition& first, int64_t row_length, int distance) {
  const int64_t at = first.inside + distance;
  if (at < row_length) return first.row;
  if (row_length >= math::kGaussianBlock) return first.row + 1;
  return first.row + static_cast<uint32_t>(at) / static_cast<uint32_t>(row_length);
}

TORCH_SSAM_BODY float row_scale_at(const RowScales& rows, int64_t row) {
  const int64_t count = RowScales::rows(rows);
  if (count != 0 && row >= count) row = static_cast<uint32_t>(row) % static_cast<uint32_t>(count);
  return rows.row_scales[row];
}

// Multiplies the noise of the elements `distance`, ..., distance + kCount - 1 after the first by their rows' scales.
template <int kCount>
TORCH_SSAM_BODY void scale_by_rows(const RowScales& rows, const RowPosition& first, int distance,
                                   uint32_t (&noise)[kCount]) {
  const int64_t length = RowScales::length(rows);
  const int64_t row = row_of(first, length, distance);
  const float scale = row_scale_at(rows, row);
  const bool one_row = kCount == 1 || row_of(first, length, distance + kCount - 1) == row;
  TORCH_SSAM_UNROLL
  for (int l = 0; l < kCount; ++l) {
    const float own = one_row ? scale : row_scale_at(rows, row_of(first, length, distance + l));
    noise[l] = math::float_to_bits(math::scale_noise(math::bits_to_float(noise[l]), own));
  }
}

// What a perturbation writes: clean + noise, where by element times the clean element's own scale. `alone`, which has a
// meaning by element only, is without the clean element.
template <bool kByElement, typename master_t, typename model_t, int kCount>
TORCH_SSAM_BODY void perturb_group(const master_t (&clean)[kCount], math::opmath_t<master_t> noise_std,
                                   const uint32_t (&noise)[kCount], bool alone, model_t (&perturbed)[kCount]) {
  TORCH_SSAM_UNROLL
  for (int l = 0; l < kCount; ++l) {
    const float value = math::bits_to_float(noise[l]);
    if constexpr (kByElement) {
      perturbed[l] = math::perturb_stored_by_element<model_t>(clean[l], noise_std, value, alone);
    } else {
      perturbed[l] = math::perturb_stored<model_t>(clean[l], noise_std, value);
    }
  }
}

template <typename Op, int kCount, typename More = Nothing>
struct ListBody {
  static constexpr int kOperands = Op::kOperands;
  static constexpr bool kByRows = std::is_same_v<More, RowScales>;
  static constexpr int64_t kAlign = math::kGaussianBlock;
  static constexpr int64_t kSpan = kThreads * 4 * kCount;
  // Offsets of six operands and the state of the noise are more than 64 registers.
  static constexpr int kBlocksPerProcessor = kCount == 1 && Op::kNoise && kOperands > 5 ? 3 : 4;
  static constexpr int kAhead = Op::template kAhead<kCount>;  // groups loaded before the first is used: 1, 2 or 4
  using TableType = TableFor<kOperands, kCount, More>;
  using EntryType = typename TableType::EntryType;
  using CursorType = Cursor<kOperands, kCount>;

  struct Params {
    typename Op::Settings settings;
    TableType table;
  };

  static int64_t whole(const ListTensor<kOperands, More>& tensor) {
    return (tensor.first + tensor.numel) / kCount * kCount;
  }

  // A distance from the thread's first element, cut to what matters within its 64, in one register.
  TORCH_SSAM_BODY int within_block(int64_t distance) {
    return distance < 0 ? 0
                        : (distance > math::kGaussianBlock ? static_cast<int>(math::kGaussianBlock)
                                                           : static_cast<int>(distance));
  }

  // Noise is that of the whole tensor's elements; without it all are as good as whole.
  TORCH_SSAM_BODY Stretch own_stretch(const TableType& table, const EntryType& entry, int64_t number) {
    if constexpr (kCount == 1 && Op::kNoise) {
      return stretch_at(table, entry, number);
    } else {
      const int64_t block = entry.begin / kAlign + number;
      return {block, block * kAlign, entry.begin, entry.end};
    }
  }

  // What the groups j, ..., j + kAhead - 1 need that is not there yet.
  TORCH_SSAM_BODY void make_noise(const Params& params, const EntryType& entry, int64_t block, int lane, int bit, int j,
                                  OwnedNoise<kCount>& noise) {
    const math::Distribution distribution = params.settings.noise.distribution;
    if (j == 0) {
      const math::NoiseStream stream = make_stream(params.settings.noise, entry.number);
      OwnedNoise<kCount>::make(noise, stream, distribution, block, lane);
    }
    TORCH_SSAM_UNROLL
    for (int k = j; k < j + kAhead; ++k) {
      if (k % 2 == 0) OwnedNoise<kCount>::to_values(noise, distribution, bit, k);
    }
  }

  TORCH_SSAM_BODY void run(const Params& params, Thread at) {
    typename Op::Local local;
    if (!Op::prepare(params.settings, local)) return;

    // The thread's block of 64 elements and its lanes in it.
    const int index = entry_of(params.table, at.block);
    const EntryType& entry = params.table.entries[index];
    constexpr int kOwners = static_cast<int>(math::kLanes) / kCount;  // threads that share a block
    const int64_t in_launch = at.block - params.table.first_block[index];
    const Stretch own = own_stretch(params.table, entry, in_launch * (kThreads / kOwners) + at.index / kOwners);
    const int64_t block = own.block;
    const int lane = at.index % kOwners * kCount;
    const int64_t first = own.first + lane;
    if (first >= own.end) return;
    const int bit = rademacher_bit(block);
    const int end = within_block(own.end - first);
    const int begin = kCount == 1 ? within_block(own.begin - first) : 0;

    [[maybe_unused]] RowPosition position;
    if constexpr (kByRows) {
      const int64_t from = kCount == 1 && first < 0 ? 0 : first;
      position = row_position(entry, from);
      position.inside += first - from;
    }
    OwnedNoise<kCount> noise;
    TORCH_SSAM_UNROLL
    for (int j = 0; j < 4; j += kAhead) {
      typename Op::template Values<kCount> values[kAhead];
      CursorType cursors[kAhead];
      bool inside[kAhead];
      TORCH_SSAM_UNROLL
      for (int a = 0; a < kAhead; ++a) {
        constexpr int kStep = static_cast<int>(math::kLanes);
        const int step = (j + a) * kStep;
        inside[a] = step < end && step >= begin;
        if (inside[a]) {
          cursors[a] = CursorType::make(params.table, index, first + step);
          Op::load(params.table, cursors[a], values[a], local);
        }
      }
      if constexpr (Op::kNoise) make_noise(params, entry, block, lane, bit, j, noise);
      TORCH_SSAM_UNROLL
      for (int a = 0; a < kAhead; ++a) {
        if (inside[a]) {
          if constexpr (kByRows) {
            constexpr int kStep = static_cast<int>(math::kLanes);
            scale_by_rows(params.table.entries[not_kept(index)], position, (j + a) * kStep, noise.word[j + a]);
          }
          Op::finish(params.table, cursors[a], values[a], noise.word[j + a], local);
        }
      }
    }
  }
};

}  // namespace torch_ssam::cuda
