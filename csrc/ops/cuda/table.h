// A list of tensors as one kernel argument: where each starts in the launch grid, its pointers and, for tensors that
// are not contiguous, its shape. Passed by value (up to 32,764 bytes since CUDA 12.1), so that a launch needs no copy
// to the device and no synchronisation: up to 512 aligned tensors are one launch, and what is left of them and strided
// ones go 224 at a time. Nothing here needs CUDA or PyTorch.
// Entries may carry numbers of one kind of kernel (More); how many fit is computed from the limit.
// Tensors whose pointers are all aligned to 16 bytes go to the table of C lanes a thread but for the elements beyond
// the last multiple of C; these, and all others, go to the table of one lane a thread, which takes any address and
// stride, and shards of several runs: shards.h. Tests: test_cuda_on_host.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "../../math/shard.h"
#include "grid.h"

namespace torch_ssam::cuda {

struct Nothing {};

// The scales of a tensor's rows: element i, counted in row-major order, is in row i / row_length, or, where the rows
// come again and again, in row i / row_length % rows. Two numbers in one word, so that as many entries fit as without.
struct RowScales {
  static constexpr int kLengthBits = 40;
  static constexpr int64_t kMostRows = int64_t{1} << (63 - kLengthBits);  // where they come again
  const float* row_scales = nullptr;
  int64_t packed = 0;

  RowScales() = default;
  RowScales(const float* scales, int64_t row_length, int64_t rows = 0)
      : row_scales(scales), packed(row_length | rows << kLengthBits) {}
  TORCH_SSAM_BODY int64_t length(const RowScales& r) { return r.packed & ((int64_t{1} << kLengthBits) - 1); }
  TORCH_SSAM_BODY int64_t rows(const RowScales& r) { return r.packed >> kLengthBits; }  // 0: each comes once
};

template <int kOperands, typename More = Nothing>
struct Entry : More {
  void* data[kOperands];
  int64_t begin;  // first element of the tensor that the entry covers, and the one past its last
  int64_t end;
  uint32_t number;  // the tensor's place, or another number an operator gives it
  int16_t layout;   // where its shape starts in the pool; negative where contiguous
  int16_t runs;     // where the map to the whole tensor starts there; negative where elements are counted as in it
};

inline constexpr int kArgumentBytes = 32764;  // what a kernel takes
inline constexpr int kSettingsBytes = 512;    // kept free for what is not the table

// Entries that fit beside a pool of so many words, at most `most`.
template <typename EntryType, int kPool>
constexpr int capacity(int most) {
  const int bytes = kArgumentBytes - kSettingsBytes - kPool * static_cast<int>(sizeof(int64_t));
  return std::min(most, bytes / static_cast<int>(sizeof(EntryType) + sizeof(int32_t)));
}

// A block of threads covers a stretch of the entry's elements: kSpan, starting at a multiple of kAlign elements.
template <int kOperands_, typename More, int kMost, int kPool_>
struct Table {
  using EntryType = Entry<kOperands_, More>;
  static constexpr int kOperands = kOperands_, kCapacity = capacity<EntryType, kPool_>(kMost), kPool = kPool_;
  int32_t count;
  int32_t first_block[kCapacity];
  EntryType entries[kCapacity];
  // Shapes: dim, then dim sizes, then dim strides for each operand. Maps: origin, dims, sizes and pitches of a Shard.
  int64_t pool[kPool > 0 ? kPool : 1];
  static_assert(kPool <= 0x7fff, "an entry counts its words in 16 bits");
};

template <int kOperands, typename More = Nothing>
using AlignedTable = Table<kOperands, More, 512, 0>;
template <int kOperands, typename More = Nothing>
using AnyTable = Table<kOperands, More, 224, 2048>;
template <int kOperands, int kCount, typename More = Nothing>
using TableFor = std::conditional_t<kCount == 1, AnyTable<kOperands, More>, AlignedTable<kOperands, More>>;

// The entry that a block of threads works on: the last that starts at or before it.
template <typename TableType>
TORCH_SSAM_BODY int entry_of(const TableType& table, int64_t block) {
  int low = 0;
  int high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.first_block[middle] <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Where element `element`, counted in row-major order, lies in each operand, in elements.
template <typename TableType>
TORCH_SSAM_BODY void offsets_of(const TableType& table, const typename TableType::EntryType& entry, int64_t element,
                                int64_t (&offsets)[TableType::kOperands]) {
  constexpr int kOperands = TableType::kOperands;
  TORCH_SSAM_UNROLL
  for (int k = 0; k < kOperands; ++k) offsets[k] = entry.layout < 0 ? element : 0;
  if (entry.layout < 0) return;
  const int64_t* shape = table.pool + entry.layout;
  const int64_t dim = shape[0];
  int64_t rest = element;
  for (int64_t d = dim - 1; d >= 0; --d) {
    const int64_t size = shape[1 + d];
    const int64_t index = rest % size;
    rest /= size;
    TORCH_SSAM_UNROLL
    for (int k = 0; k < kOperands; ++k) offsets[k] += index * shape[1 + (k + 1) * dim + d];
  }
}

// 64 neighbours of the whole tensor, and which elements of an entry may be among them. The entry's element that would
// be the first of the block may lie before `begin`, and before the tensor.
struct Stretch {
  int64_t block;  // of the whole tensor
  int64_t first, begin, end;
};

// The entry's stretch of this number: its elements are those of the whole tensor, or runs of them. Each run has as many
// stretches as it may need, wherever it starts.
template <typename TableType>
TORCH_SSAM_BODY Stretch stretch_at(const TableType& table, const typename TableType::EntryType& entry, int64_t number) {
  constexpr int64_t kBlock = math::kGaussianBlock;
  if (entry.runs < 0) {
    const int64_t block = entry.begin / kBlock + number;
    return {block, block * kBlock, entry.begin, entry.end};
  }
  const int64_t* map = table.pool + entry.runs;
  const int64_t dims = map[1];
  const int64_t length = map[1 + dims];
  const int64_t each = math::blocks_of_run(length, kBlock);
  const int64_t begin = number / each * length;
  if (begin >= entry.end) return {0, entry.end, entry.end, entry.end};
  const int64_t whole = math::whole_element(map[0], dims, map + 2, map + 2 + dims, begin);
  const int64_t inside = number % each * kBlock;
  return {(whole + inside) / kBlock, begin - whole % kBlock + inside, begin, begin + length};
}

// --- Host side: from tensors to tables.

template <int kOperands_, typename More_ = Nothing>
struct ListTensor : More_ {
  static constexpr int kOperands = kOperands_;
  using More = More_;
  void* data[kOperands] = {};              // null where an operator has no such operand
  const int64_t* strides[kOperands] = {};  // null where contiguous
  const int64_t* sizes = nullptr;
  int64_t dim = 0;
  int64_t numel = 0;
  uint32_t number = 0;
  int64_t first = 0;                  // its elements are [first, first + numel) of what the pointers count from
  const math::Shard* runs = nullptr;  // of a shard whose elements are not counted as in the whole tensor

  bool contiguous() const {
    return std::all_of(strides, strides + kOperands, [](const int64_t* s) { return s == nullptr; });
  }
  bool aligned() const {
    return contiguous() && runs == nullptr && std::all_of(data, data + kOperands, [](const void* p) {
             return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
           });
  }
};

// Collects entries and calls launch(table, blocks) whenever a table is full, and at the end.
template <typename TableType, typename Launch>
class TableBuilder {
 public:
  static constexpr int kOperands = TableType::kOperands;
  TableBuilder(int64_t align, int64_t span, Launch launch) : align_(align), span_(span), launch_(launch) {}

  template <typename TensorType>
  void add(const TensorType& tensor, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const bool shaped = !tensor.contiguous();
    const int64_t words = (shaped ? 1 + tensor.dim * (1 + kOperands) : 0) +
                          (tensor.runs != nullptr ? 2 + 2 * static_cast<int64_t>(tensor.runs->dims) : 0);
    if (table_.count == TableType::kCapacity || used_ + words > TableType::kPool) flush();
    auto& entry = table_.entries[table_.count];
    static_cast<typename TensorType::More&>(entry) = tensor;
    std::copy(tensor.data, tensor.data + kOperands, entry.data);
    entry.begin = begin;
    entry.end = end;
    entry.number = tensor.number;
    entry.layout = shaped ? static_cast<int16_t>(used_) : int16_t{-1};
    if (shaped) write_shape(tensor);
    entry.runs = tensor.runs != nullptr ? static_cast<int16_t>(used_) : int16_t{-1};
    if (tensor.runs != nullptr) write_map(*tensor.runs);
    table_.first_block[table_.count] = static_cast<int32_t>(blocks_);
    ++table_.count;
    blocks_ += (stretches(tensor, begin, end) * align_ + span_ - 1) / span_;
  }

  void flush() {
    if (table_.count > 0) launch_(table_, blocks_);
    table_.count = 0;
    used_ = 0;
    blocks_ = 0;
  }

 private:
  // Of align_ elements.
  template <typename TensorType>
  int64_t stretches(const TensorType& tensor, int64_t begin, int64_t end) const {
    if (tensor.runs == nullptr) return (end + align_ - 1) / align_ - begin / align_;
    const int64_t length = math::left_in_run(*tensor.runs, 0);
    return tensor.numel / length * math::blocks_of_run(length, align_);
  }

  void write_map(const math::Shard& shard) {
    int64_t* at = table_.pool + used_;
    *at++ = shard.origin;
    *at++ = shard.dims;
    at = std::copy(shard.sizes, shard.sizes + shard.dims, at);
    at = std::copy(shard.pitches, shard.pitches + shard.dims, at);
    used_ = at - table_.pool;
  }

  template <typename TensorType>
  void write_shape(const TensorType& tensor) {
    int64_t* at = table_.pool + used_;
    *at++ = tensor.dim;
    at = std::copy(tensor.sizes, tensor.sizes + tensor.dim, at);
    for (int k = 0; k < kOperands; ++k) {
      int64_t step = 1;
      for (int64_t d = tensor.dim - 1; d >= 0; --d) {
        at[d] = tensor.strides[k] == nullptr ? step : tensor.strides[k][d];
        step *= tensor.sizes[d];
      }
      at += tensor.dim;
    }
    used_ = at - table_.pool;
  }

  int64_t align_, span_;
  Launch launch_;
  TableType table_{};
  int64_t used_ = 0;
  int64_t blocks_ = 0;
};

// A list in one table after the other, whatever its alignment.
template <typename Body, typename TensorType, typename Launch>
void for_each_table(const std::vector<TensorType>& tensors, const Launch& launch) {
  TableBuilder<typename Body::TableType, Launch> builder(Body::kAlign, Body::kSpan, launch);
  for (const TensorType& tensor : tensors) builder.add(tensor, 0, tensor.numel);
  builder.flush();
}

// Cuts a list into launches. A Body for kCount lanes a thread says what a block of threads covers (kAlign, kSpan) and
// how much of a tensor whose pointers are aligned the aligned path may take (whole).
template <template <int> class Body, int kCount, typename TensorType, typename Launch>
void for_each_launch(const std::vector<TensorType>& tensors, const Launch& launch) {
  using Aligned = Body<kCount>;
  using Any = Body<1>;
  const auto launch_aligned = [&](const auto& table, int64_t blocks) {
    launch.template operator()<Aligned>(table, blocks);
  };
  const auto launch_any = [&](const auto& table, int64_t blocks) { launch.template operator()<Any>(table, blocks); };
  TableBuilder<typename Aligned::TableType, decltype(launch_aligned)> aligned(Aligned::kAlign, Aligned::kSpan,
                                                                              launch_aligned);
  TableBuilder<typename Any::TableType, decltype(launch_any)> any(Any::kAlign, Any::kSpan, launch_any);
  for (const TensorType& tensor : tensors) {
    const int64_t end = tensor.first + tensor.numel;
    const int64_t wide = (tensor.first + Aligned::kAlign - 1) / Aligned::kAlign * Aligned::kAlign;
    const int64_t wide_end = tensor.aligned() ? Aligned::whole(tensor) : 0;
    if (wide >= wide_end) {
      any.add(tensor, tensor.first, end);
      continue;
    }
    any.add(tensor, tensor.first, wide);
    aligned.add(tensor, wide, wide_end);
    any.add(tensor, wide_end, end);
  }
  aligned.flush();
  any.flush();
}

}  // namespace torch_ssam::cuda
