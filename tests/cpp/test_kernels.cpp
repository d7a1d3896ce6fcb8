// The inner loops of csrc/ops/cpu/kernels.cpp: the plain table against the scalar bodies of csrc/math taken one element
// at a time in the documented layout, every other table bit for bit against the plain one, and a range cut in two
// against the whole, for all dtype pairs, kinds of update, odd sizes and starting offsets.
// A variant that this processor lacks is skipped, and says so.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "kernel_calls.h"
#include "math/diagonal.h"
#include "math/storage.h"

namespace torch_ssam::cpu {
namespace {

using math::Distribution;

constexpr int64_t kSizes[] = {0, 1, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 2047, 2048, 2049, 4097};
// 2^34 - 40 is where the counters of Gaussian noise carry into their high word, 2^39 - 40 those of Rademacher noise.
constexpr int64_t kOffsets[] = {0, 1, 63, 100, 2047, (1LL << 34) - 40, (1LL << 39) - 40};
constexpr Distribution kDistributions[] = {Distribution::gaussian, Distribution::rademacher};
constexpr math::NoiseStream kStream{0x01234567U, 0x89abcdefU, 3, 5, 0xfedcba98U, 0x76543210U};

struct PairSizes {
  size_t master, model, math;
};
PairSizes sizes_of(int pair) {
  constexpr PairSizes kTable[] = {{8, 8, 8}, {4, 4, 4}, {2, 2, 4}, {2, 2, 4}, {4, 2, 4}, {4, 2, 4}};
  return kTable[pair];
}

// Where the tables have the loops over one dtype.
int master_dtype(int pair) { return static_cast<int>(math::master_of(static_cast<DtypePair>(pair))); }

using Bytes = std::vector<unsigned char>;

// A fixed sequence of values about 1 in size, of either sign, in the dtype that has `size` bytes in this pair.
Bytes random_values(int64_t count, int pair, size_t size, uint32_t seed) {
  Bytes bytes(static_cast<size_t>(count) * size + 1);  // never empty, so that data() is never null
  uint32_t state = seed * 2654435769U + 1U;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;
    const float value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-30F;
    unsigned char* target = bytes.data() + static_cast<size_t>(i) * size;
    if (size == 8) {
      const double wide = static_cast<double>(value) + 0x1p-40 * static_cast<double>(state & 0xffU);
      std::memcpy(target, &wide, size);
    } else if (size == 4) {
      std::memcpy(target, &value, size);
    } else {
      const bool is_bf16 = pair == static_cast<int>(DtypePair::bf16) || pair == static_cast<int>(DtypePair::f32_bf16);
      const uint16_t half = is_bf16 ? static_cast<uint16_t>(math::Store<math::bfloat16_t>::from(value))
                                    : static_cast<uint16_t>(math::Store<math::float16_t>::from(value));
      std::memcpy(target, &half, size);
    }
  }
  return bytes;
}

Update update_of(int kind, bool with_buffer = true) {
  Update update{{0.1, 0.9, 0.25, 0.01, false, false}, 0};
  math::Sgd& rule = update.rule;
  rule.nesterov = (kind & 1) != 0;
  if (rule.nesterov) rule.dampening = 0.0;
  rule.maximize = (kind & 2) != 0;
  if (rule.maximize) rule.weight_decay = 0.0;
  update.step = (kind & 4) != 0 ? 1 : 0;
  if (!with_buffer) rule.momentum = 0.0;
  return update;
}
constexpr int kUpdateKinds = 8;

// The outputs of every kernel on one problem, end to end, so that one comparison covers them all. `cut` splits the
// range into two calls; reductions, whose result depends on the range by contract, are left out where cut > 0.
class Outputs {
 public:
  Outputs(const Kernels& kernels, int pair, int64_t begin, int64_t count, int64_t cut = 0)
      : k_(kernels),
        pair_(pair),
        dtype_(master_dtype(pair)),
        begin_(begin),
        count_(count),
        cut_(cut),
        size_(sizes_of(pair)) {}

  Outputs& perturb(Distribution distribution, double noise_std) {
    const NoiseArgs args{kStream, distribution, noise_std};
    std::vector<float> noise(static_cast<size_t>(count_) + 1);
    Bytes weights = random_values(count_, pair_, size_.master, 1);
    Bytes saved(weights.size()), perturbed = empty(size_.model), from_saved = empty(size_.model);
    each([&](Span s, int64_t at) {
      fill_noise(k_, kStream, distribution, s, noise.data() + at);
      k_.perturb[pair_](args, s, in(weights, at, size_.master), in(saved, at, size_.master),
                        in(perturbed, at, size_.model));
      k_.perturb[pair_](args, s, in(weights, at, size_.master), nullptr, in(from_saved, at, size_.model));
    });
    const auto* values = reinterpret_cast<const unsigned char*>(noise.data());
    bytes_.insert(bytes_.end(), values, values + count_ * 4);
    return keep({&saved, &perturbed, &from_saved});
  }

  // By rows of `row_length` (0: by element), in place with the weights saved and from clean weights; then the fused
  // step.
  Outputs& perturb_scaled(Distribution distribution, int64_t row_length) {
    NoiseArgs args{kStream, distribution, 0.125, row_length == 0 ? math::Scale::element : math::Scale::rows};
    // Rows are counted from element 0: offsets are small here.
    std::vector<float> scales(static_cast<size_t>(row_length == 0 ? 0 : (begin_ + count_) / row_length + 1));
    for (size_t r = 0; r < scales.size(); ++r) scales[r] = 0.25F + 0.375F * static_cast<float>(r % 7);
    args.row_scales = scales.data();
    args.row_length = row_length == 0 ? 1 : row_length;
    const Bytes weights = random_values(count_, pair_, size_.master, 1);
    const Bytes grad = random_values(count_, pair_, size_.model, 2);
    Bytes in_place = weights, clean = weights, updated = weights;
    Bytes saved(weights.size()), perturbed = empty(size_.model), fused = empty(size_.model), after = empty(size_.model);
    const Update how = update_of(0, /*with_buffer=*/false);
    each([&](Span s, int64_t at) {
      const void* g = grad.data() + static_cast<size_t>(at) * size_.model;
      if (size_.master == size_.model) {
        k_.perturb[pair_](args, s, in(in_place, at, size_.master), in(saved, at, size_.master),
                          in(in_place, at, size_.master));
      }
      k_.perturb[pair_](args, s, in(clean, at, size_.master), nullptr, in(perturbed, at, size_.model));
      if (row_length != 0) return;
      cpu::update_and_perturb(k_, pair_, how, args, s, in(clean, at, size_.master), g, nullptr,
                              in(fused, at, size_.model));
      cpu::update(k_, pair_, how, s, in(updated, at, size_.master), g, nullptr);
      k_.perturb[pair_](args, s, in(updated, at, size_.master), nullptr, in(after, at, size_.model));
    });
    if (size_.master == size_.model) same_update_ &= saved == weights && in_place == perturbed;
    if (row_length == 0) same_update_ &= clean == updated && fused == after;
    return keep({&saved, &in_place, &perturbed, &fused});
  }

  // Of a shard, in place with the weights saved and from clean weights; then the fused step.
  Outputs& perturb_shard(Distribution distribution, const math::Shard& shard) {
    NoiseArgs args{kStream, distribution, 0.125};
    args.origin = shard.one_run() ? shard.origin : 0;
    args.shard = shard.one_run() ? nullptr : &shard;
    const Bytes weights = random_values(count_, pair_, size_.master, 1);
    const Bytes grad = random_values(count_, pair_, size_.model, 2);
    Bytes in_place = weights, clean = weights, updated = weights;
    Bytes saved(weights.size()), fused = empty(size_.model), after = empty(size_.model);
    const Update how = update_of(0, /*with_buffer=*/false);
    each([&](Span s, int64_t at) {
      const void* g = grad.data() + static_cast<size_t>(at) * size_.model;
      if (size_.master == size_.model) {
        k_.perturb[pair_](args, s, in(in_place, at, size_.master), in(saved, at, size_.master),
                          in(in_place, at, size_.master));
      }
      cpu::update_and_perturb(k_, pair_, how, args, s, in(clean, at, size_.master), g, nullptr,
                              in(fused, at, size_.model));
      cpu::update(k_, pair_, how, s, in(updated, at, size_.master), g, nullptr);
      k_.perturb[pair_](args, s, in(updated, at, size_.master), nullptr, in(after, at, size_.model));
    });
    if (size_.master == size_.model) same_update_ &= saved == weights;
    same_update_ &= clean == updated && fused == after;
    return keep({&saved, &in_place, &fused});
  }

  Outputs& update(int kind, bool with_buffer, Distribution distribution) {
    const Update how = update_of(kind, with_buffer);
    const NoiseArgs noise{kStream, distribution, 0.125};
    const Bytes grad = random_values(count_, pair_, size_.model, 2);
    Bytes weights = random_values(count_, pair_, size_.master, 1), clean = weights;
    Bytes buffer = random_values(count_, pair_, size_.master, 3), fused_buffer = buffer;
    Bytes perturbed = empty(size_.model);
    each([&](Span s, int64_t at) {
      const void* g = grad.data() + static_cast<size_t>(at) * size_.model;
      cpu::update(k_, pair_, how, s, in(weights, at, size_.master), g,
                  with_buffer ? in(buffer, at, size_.master) : nullptr);
      cpu::update_and_perturb(k_, pair_, how, noise, s, in(clean, at, size_.master), g,
                              with_buffer ? in(fused_buffer, at, size_.master) : nullptr,
                              in(perturbed, at, size_.model));
    });
    same_update_ &= weights == clean && buffer == fused_buffer;
    return keep({&weights, &buffer, &perturbed});
  }

  // `layers` layers of a weight with 2 features more than the range, on `rows` rows of input.
  Outputs& diagonal(int64_t layers, int64_t rows, bool noisy, Distribution distribution) {
    const int64_t features = begin_ + count_ + 2;
    const DiagonalArgs args{layers, features, {kStream, distribution, 0.125}, noisy};
    const Bytes weight = random_values(layers * features, pair_, size_.master, 4);
    const Bytes input = random_values(rows * features, pair_, size_.model, 5);
    const Bytes grad = random_values(rows * features, pair_, size_.model, 6);
    Bytes output = empty(size_.model), rowwise = empty(size_.model), spread = empty(size_.model);
    Bytes sums = empty(size_.math);
    Bytes grad_weight(static_cast<size_t>(layers * features) * size_.master + 1);
    each([&](Span s, int64_t at) {
      const auto model_offset = static_cast<size_t>(s.begin) * size_.model;
      const auto math_count = static_cast<size_t>(s.count) * size_.math;
      Bytes layer(static_cast<size_t>(layers) * math_count + 1), product(math_count + 1), sum(math_count + 1);
      Bytes total(math_count + 1), scratch(static_cast<size_t>(layers) * math_count + 1);
      k_.diagonal_load[dtype_](args, s, weight.data(), layer.data(), product.data());
      if (!noisy) {  // the product comes out the same without a copy of the layers
        Bytes alone(math_count + 1);
        k_.diagonal_load[dtype_](args, s, weight.data(), nullptr, alone.data());
        EXPECT_EQ(std::memcmp(alone.data(), product.data(), math_count), 0);
      }
      k_.diagonal_multiply[pair_](product.data(), input.data() + model_offset, in(output, at, size_.model), s.count);
      // Of `rows` rows the last one's gradient of the input is kept.
      const auto backward = [&](const void* g, int64_t stride, bool spread, Bytes& target, Bytes& to) {
        Bytes every(static_cast<size_t>(rows * features) * size_.model + 1);
        k_.diagonal_backward_rows[pair_](g, stride, spread, input.data() + model_offset, every.data(), features, rows,
                                         s.count, product.data(), target.data());
        std::memcpy(in(to, at, size_.model), in(every, (rows - 1) * features, size_.model),
                    static_cast<size_t>(s.count) * size_.model);
      };
      backward(grad.data() + model_offset, features, false, total, rowwise);
      backward(grad.data(), 1, true, sum, spread);
      k_.diagonal_add[dtype_](total.data(), sum.data(), s.count);
      std::memcpy(in(sums, at, size_.math), total.data(), math_count);
      k_.diagonal_weight_gradient[dtype_](layers, features, total.data(), layer.data(), s.count, scratch.data(),
                                          grad_weight.data() + static_cast<size_t>(s.begin) * size_.master, s.count);
      if (cut_ == 0) {
        keep_number(k_.diagonal_readout[pair_](product.data(), input.data() + model_offset, s.count));
      }
    });
    return keep({&output, &rowwise, &spread, &sums, &grad_weight});
  }

  Outputs& project() {
    Bytes weights = random_values(count_, pair_, size_.master, 7);
    if (cut_ == 0) keep_number(k_.sum_of_squares[dtype_](weights.data(), count_));
    keep_number(std::max(k_.largest_magnitude[dtype_](weights.data(), std::min(cut_, count_)),
                         k_.largest_magnitude[dtype_](in(weights, std::min(cut_, count_), size_.master),
                                                      count_ - std::min(cut_, count_))));
    each([&](Span s, int64_t at) { k_.scale[dtype_](0.7, in(weights, at, size_.master), s.count); });
    return keep({&weights});
  }

  const Bytes& bytes() const { return bytes_; }
  bool update_agrees_with_update_and_perturb() const { return same_update_; }

 private:
  Bytes empty(size_t size) const { return Bytes(static_cast<size_t>(count_) * size + 1); }
  static void* in(Bytes& bytes, int64_t at, size_t size) { return bytes.data() + static_cast<size_t>(at) * size; }

  template <typename Body>
  void each(const Body& body) const {
    if (cut_ > 0) body(Span{begin_, cut_}, 0);
    body(Span{begin_ + cut_, count_ - cut_}, cut_);
  }

  Outputs& keep(std::initializer_list<const Bytes*> parts) {
    for (const Bytes* part : parts) bytes_.insert(bytes_.end(), part->begin(), part->end());
    return *this;
  }

  void keep_number(double value) {
    unsigned char raw[sizeof(value)];
    std::memcpy(raw, &value, sizeof(value));
    bytes_.insert(bytes_.end(), raw, raw + sizeof(value));
  }

  const Kernels& k_;
  int pair_, dtype_;
  int64_t begin_, count_, cut_;
  PairSizes size_;
  Bytes bytes_;
  bool same_update_ = true;
};

// --- every table against the plain one.

// Parameter: the variant and the pair of dtypes.
class VariantTest : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  void SetUp() override {
    const auto [name, pair] = GetParam();
    if (!select_kernels(name)) {
      GTEST_SKIP() << "NOT TESTED: this processor or build has no " << name
                   << "; its kernels are compiled here and their bits compared on no machine of this run.";
    }
    table_ = &kernels();
    ASSERT_STREQ(table_->name, name);
    pair_ = pair;
  }

  void expect_same(const Outputs& a, const Outputs& b, const std::string& what) const {
    ASSERT_EQ(a.bytes().size(), b.bytes().size()) << what;
    ASSERT_TRUE(a.bytes() == b.bytes()) << what;
    ASSERT_TRUE(b.update_agrees_with_update_and_perturb()) << what;
  }

  const Kernels* table_ = nullptr;
  int pair_ = 0;
};

std::string label(int64_t offset, int64_t size) {
  return "offset " + std::to_string(offset) + " size " + std::to_string(size);
}

TEST_P(VariantTest, PerturbHasTheBitsOfThePlainVariant) {
  for (const int64_t offset : kOffsets) {
    for (const int64_t size : kSizes) {
      for (const Distribution d : kDistributions) {
        ASSERT_NO_FATAL_FAILURE(
            expect_same(Outputs(*kernels_plain(), pair_, offset, size).perturb(d, 0.01).perturb(d, -0.5),
                        Outputs(*table_, pair_, offset, size).perturb(d, 0.01).perturb(d, -0.5), label(offset, size)));
      }
    }
  }
}

// The bytes of `source` where the address is `shift` beyond a multiple of 64; between guards that must stay as they
// are.
class Placed {
 public:
  Placed(const Bytes& source, size_t shift) : size_(source.size()), memory_(source.size() + 256 + shift, 0xa5) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    begin_ = 64 + (64 - address % 64) % 64 + shift;
    std::memcpy(data(), source.data(), size_);
  }
  unsigned char* data() { return memory_.data() + begin_; }
  Bytes bytes() { return Bytes(data(), data() + size_); }
  bool guards_hold() const {
    const auto is_guard = [](unsigned char c) { return c == 0xa5; };
    return std::all_of(memory_.begin(), memory_.begin() + static_cast<std::ptrdiff_t>(begin_), is_guard) &&
           std::all_of(memory_.begin() + static_cast<std::ptrdiff_t>(begin_ + size_), memory_.end(), is_guard);
  }

 private:
  size_t size_;
  Bytes memory_;
  size_t begin_;
};

TEST_P(VariantTest, StreamedStoresGiveTheSameBits) {
  const PairSizes size = sizes_of(pair_);
  const auto pair = static_cast<size_t>(pair_);
  for (const int64_t offset : {0, 1, 100}) {
    for (const int64_t count : {1, 63, 64, 65, 2049, 4097}) {
      for (const size_t shift : {0, 1, 4, 8}) {  // elements off the alignment of tensors
        const Bytes weights = random_values(count, pair_, size.master, 1);
        const Bytes grad = random_values(count, pair_, size.model, 2);
        const Bytes momentum = random_values(count, pair_, size.master, 3);
        const auto run = [&](bool streams, Distribution d) {
          NoiseArgs noise{kStream, d, 0.125};
          noise.streams = streams;
          const Span span{offset, count};
          Placed clean(weights, 0), buffer(momentum, 0), kept(Bytes(grad.size()), shift * size.model);
          update_and_perturb(*table_, pair_, update_of(0), noise, span, clean.data(), grad.data(), buffer.data(),
                             kept.data());
          Placed source(weights, 0), saved(Bytes(weights.size()), shift * size.master),
              perturbed(Bytes(grad.size()), 0);
          table_->perturb[pair](noise, span, source.data(), saved.data(), perturbed.data());
          EXPECT_TRUE(kept.guards_hold() && saved.guards_hold() && perturbed.guards_hold());
          EXPECT_TRUE(std::memcmp(saved.data(), weights.data(), static_cast<size_t>(count) * size.master) == 0);
          Bytes all;
          for (Placed* part : {&clean, &buffer, &kept, &saved, &perturbed}) {
            const Bytes bytes = part->bytes();
            all.insert(all.end(), bytes.begin(), bytes.end());
          }
          return all;
        };
        for (const Distribution d : kDistributions) {
          ASSERT_TRUE(run(true, d) == run(false, d)) << label(offset, count) << " shift " << shift;
        }
      }
    }
  }
}

TEST_P(VariantTest, StreamCopyCopiesEveryByteAndNoOther) {
  const Bytes source = random_values(1200, static_cast<int>(DtypePair::f32), 4, 9);
  for (const size_t bytes : {0, 1, 31, 63, 64, 255, 256, 257, 1000, 4097}) {
    for (const size_t shift : {0, 1, 4, 60}) {
      Placed target(Bytes(bytes + 1), shift);
      table_->stream_copy(target.data(), source.data(), static_cast<int64_t>(bytes));
      EXPECT_TRUE(target.guards_hold());
      EXPECT_EQ(target.data()[bytes], 0);
      EXPECT_EQ(std::memcmp(target.data(), source.data(), bytes), 0) << bytes << " bytes, shift " << shift;
    }
  }
}

TEST_P(VariantTest, ScaledNoiseHasTheBitsOfThePlainVariant) {
  for (const int64_t offset : {0, 1, 63, 100, 2047}) {
    for (const int64_t size : kSizes) {
      for (const Distribution d : kDistributions) {
        const auto run = [&](const Kernels& k) {
          Outputs outputs(k, pair_, offset, size);
          for (const int64_t row_length : {0, 1, 3, 64, 100, 5000}) outputs.perturb_scaled(d, row_length);
          return outputs;
        };
        ASSERT_NO_FATAL_FAILURE(expect_same(run(*kernels_plain()), run(*table_), label(offset, size)));
      }
    }
  }
}

// A box of `sizes` from `starts` on in a tensor of `whole` sizes.
math::Shard shard_of(const std::vector<int64_t>& whole, const std::vector<int64_t>& starts,
                     const std::vector<int64_t>& sizes) {
  math::Shard shard;
  for (size_t d = 0; d < whole.size(); ++d) EXPECT_TRUE(math::add_dimension(shard, starts[d], sizes[d], whole[d]));
  return shard;
}

TEST_P(VariantTest, NoiseOfShardsHasTheBitsOfThePlainVariantAndOfAnyCut) {
  const math::Shard shards[] = {shard_of({9000, 3}, {100, 0}, {4000, 3}), shard_of({2111, 7}, {0, 3}, {2111, 2}),
                                shard_of({40, 99, 5}, {1, 30, 2}, {38, 31, 3})};
  for (const math::Shard& shard : shards) {
    for (const Distribution d : kDistributions) {
      const auto run = [&](const Kernels& k, int64_t cut) {
        Outputs outputs(k, pair_, 0, 2111, cut);
        outputs.perturb_shard(d, shard);
        return outputs;
      };
      ASSERT_NO_FATAL_FAILURE(expect_same(run(*kernels_plain(), 2111), run(*table_, 2111), "whole"));
      for (const int64_t cut : {1, 64, 67, 2100}) {
        ASSERT_NO_FATAL_FAILURE(expect_same(run(*table_, 2111), run(*table_, cut), "cut"));
      }
    }
  }
}

TEST_P(VariantTest, EveryKindOfUpdateHasTheBitsOfThePlainVariant) {
  const auto run = [&](const Kernels& k, int64_t offset, int64_t size) {
    Outputs outputs(k, pair_, offset, size);
    for (int kind = 0; kind < kUpdateKinds; ++kind) {
      for (const bool with_buffer : {false, true}) {
        outputs.update(kind, with_buffer, kDistributions[kind / 2 % 2]);
      }
    }
    return outputs;
  };
  for (const int64_t offset : {int64_t{0}, int64_t{100}}) {
    for (const int64_t size : kSizes) {
      ASSERT_NO_FATAL_FAILURE(
          expect_same(run(*kernels_plain(), offset, size), run(*table_, offset, size), label(offset, size)));
    }
  }
}

TEST_P(VariantTest, DiagonalAndProjectionHaveTheBitsOfThePlainVariant) {
  const auto run = [&](const Kernels& k, int64_t offset, int64_t size) {
    Outputs outputs(k, pair_, offset, size);
    outputs.diagonal(1, 1, false, Distribution::gaussian).diagonal(2, 3, true, Distribution::rademacher);
    outputs.diagonal(5, 2, true, Distribution::gaussian).diagonal(3, 64, false, Distribution::gaussian).project();
    return outputs;
  };
  for (const int64_t offset : {0, 1, 63, 100}) {
    for (const int64_t size : kSizes) {
      ASSERT_NO_FATAL_FAILURE(
          expect_same(run(*kernels_plain(), offset, size), run(*table_, offset, size), label(offset, size)));
    }
  }
}

TEST_P(VariantTest, ARangeCutInTwoHasTheBitsOfTheWhole) {
  for (const int64_t offset : {int64_t{0}, int64_t{100}, (int64_t{1} << 34) - 40}) {
    for (const int64_t cut : {1, 63, 64, 65, 130, 2048, 2100}) {
      const auto run = [&](int64_t at) {
        Outputs outputs(*table_, pair_, offset, 2111, at);
        outputs.perturb(Distribution::gaussian, 0.1).perturb(Distribution::rademacher, 0.1).project();
        outputs.update(0, true, Distribution::gaussian).update(3, true, Distribution::rademacher);
        if (offset < 1000)
          outputs.perturb_scaled(Distribution::gaussian, 9).perturb_scaled(Distribution::rademacher, 0);
        if (offset < 1000) outputs.diagonal(3, 5, true, Distribution::gaussian);
        return outputs;
      };
      ASSERT_NO_FATAL_FAILURE(expect_same(run(2111), run(cut), label(offset, cut)));
    }
  }
}

std::string variant_name(const testing::TestParamInfo<VariantTest::ParamType>& info) {
  constexpr const char* kPairs[] = {"f64", "f32", "bf16", "f16", "f32_bf16", "f32_f16"};
  return std::string(std::get<0>(info.param)) + "_" + kPairs[std::get<1>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Tables, VariantTest,
                         testing::Combine(testing::Values("plain", "avx2", "avx512"), testing::Range(0, kDtypePairs)),
                         variant_name);

// --- the plain table against the scalar bodies.

float documented_noise(Distribution distribution, int64_t element) {
  const bool gaussian = distribution == Distribution::gaussian;
  const int64_t per_block = gaussian ? 64 : 2048;
  const int64_t inside = element % per_block;
  const int64_t lane = inside % 16, word = inside / 16 % 4, bit = inside / 64;
  const auto counter = static_cast<uint64_t>(16 * (element / per_block) + lane);
  const auto low = static_cast<uint32_t>(counter), high = static_cast<uint32_t>(counter >> 32);
  if (gaussian) {
    const math::Words4 w = math::noise_words(kStream, low, high);
    const auto pair = word < 2 ? math::gaussian_pair(w.x0, w.x1) : math::gaussian_pair(w.x2, w.x3);
    return word % 2 == 0 ? pair.first : pair.second;
  }
  const math::Words4 w = math::noise_words(kStream, low, high);
  return math::rademacher(word == 0 ? w.x0 : word == 1 ? w.x1 : word == 2 ? w.x2 : w.x3, static_cast<int>(bit));
}

TEST(PlainKernelsTest, NoiseHasTheDocumentedLayout) {
  for (const Distribution d : kDistributions) {
    for (const int64_t begin : kOffsets) {
      std::vector<float> values(2200);
      fill_noise(*kernels_plain(), kStream, d, {begin, 2200}, values.data());
      for (int64_t i = 0; i < 2200; ++i) {
        ASSERT_EQ(values[static_cast<size_t>(i)], documented_noise(d, begin + i)) << begin + i;
      }
    }
  }
}

TEST(PlainKernelsTest, ScaledNoiseIsTheBodyOfEachElement) {
  const int64_t begin = 70, count = 200;
  const int pair = static_cast<int>(DtypePair::f64);
  const Bytes weights = random_values(count, pair, 8, 1);
  const auto* w = reinterpret_cast<const double*>(weights.data());
  const std::vector<float> scales{0.5F, 1.7F, 0.0F, 3.1F};
  std::vector<double> by_rows(count), by_element(count);
  NoiseArgs args{kStream, Distribution::gaussian, 0.3, math::Scale::rows, scales.data(), 90};
  kernels_plain()->perturb[pair](args, {begin, count}, w, nullptr, by_rows.data());
  args.scale = math::Scale::element;
  kernels_plain()->perturb[pair](args, {begin, count}, w, nullptr, by_element.data());
  for (int64_t i = 0; i < count; ++i) {
    const float z = documented_noise(Distribution::gaussian, begin + i);
    const auto at = static_cast<size_t>(i);
    const float scaled = math::scale_noise(z, scales[static_cast<size_t>((begin + i) / 90)]);
    ASSERT_EQ(by_rows[at], math::perturb_element(w[i], 0.3, scaled));
    ASSERT_EQ(by_element[at], std::fma(0.3, static_cast<double>(z) * (std::fabs(w[i]) + 0.01), w[i]));
  }
}

// NaN is larger than infinity, wherever it lies; -0 is 0; the order does not matter.
template <typename T, typename Values>
double largest_of(math::Dtype dtype, const Values& values) {
  std::vector<T> stored;
  for (const double value : values) stored.push_back(math::Store<T>::from(static_cast<math::opmath_t<T>>(value)));
  return kernels_plain()->largest_magnitude[static_cast<int>(dtype)](stored.data(), std::ssize(stored));
}

template <typename T>
void expect_largest_magnitudes(math::Dtype dtype) {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  std::vector<double> values(100, -0.0);
  EXPECT_EQ(largest_of<T>(dtype, values), 0.0);
  EXPECT_FALSE(std::signbit(largest_of<T>(dtype, values)));
  for (const size_t at : {0, 15, 16, 63, 95, 99}) {
    values.assign(100, 0.25);
    values[at] = -1.5;
    EXPECT_EQ(largest_of<T>(dtype, values), 1.5) << at;
    values[99 - at] = -infinity;
    EXPECT_EQ(largest_of<T>(dtype, values), infinity) << at;
    values[at] = nan;
    EXPECT_TRUE(std::isnan(largest_of<T>(dtype, values))) << at;
  }
  EXPECT_EQ(largest_of<T>(dtype, std::vector<double>()), 0.0);
}

TEST(PlainKernelsTest, TheLargestMagnitudeIsThatOfAnyOrder) {
  expect_largest_magnitudes<double>(math::Dtype::f64);
  expect_largest_magnitudes<float>(math::Dtype::f32);
  expect_largest_magnitudes<math::bfloat16_t>(math::Dtype::bf16);
  expect_largest_magnitudes<math::float16_t>(math::Dtype::f16);
}

// Every box, walked by its indices, against the documented noise of the element of the whole tensor.
TEST(PlainKernelsTest, NoiseOfAShardIsThatOfItsElementsInTheWholeTensor) {
  struct Box {
    std::vector<int64_t> whole, starts, sizes;
  };
  const int64_t far = (1LL << 34) / 60;  // where the counters carry
  const Box boxes[] = {{{7}, {3}, {2}},
                       {{1000, 2}, {0, 1}, {1000, 1}},
                       {{50, 130}, {7, 0}, {20, 130}},
                       {{50, 130}, {0, 66}, {50, 64}},
                       {{50, 130}, {10, 100}, {1, 30}},
                       {{5, 6, 70, 3}, {1, 2, 3, 0}, {3, 4, 60, 3}},
                       {{5, 6, 70, 3}, {1, 0, 3, 1}, {3, 6, 60, 2}},
                       {{far + 9, 60}, {far - 3, 20}, {12, 39}}};
  const int pair = static_cast<int>(DtypePair::f64);
  for (const Box& box : boxes) {
    const math::Shard shard = shard_of(box.whole, box.starts, box.sizes);
    int64_t count = 1;
    for (const int64_t size : box.sizes) count *= size;
    const std::vector<double> weights(static_cast<size_t>(count), 0.0);
    for (const Distribution d : kDistributions) {
      NoiseArgs args{kStream, d, 1.0};
      args.origin = shard.one_run() ? shard.origin : 0;
      args.shard = shard.one_run() ? nullptr : &shard;
      std::vector<double> noise(weights.size());
      kernels_plain()->perturb[pair](args, {0, count}, weights.data(), nullptr, noise.data());
      for (int64_t i = 0; i < count; ++i) {
        int64_t rest = i, whole = 0, step = 1;
        for (size_t k = box.sizes.size(); k-- > 0;) {
          whole += (box.starts[k] + rest % box.sizes[k]) * step;
          rest /= box.sizes[k];
          step *= box.whole[k];
        }
        ASSERT_EQ(math::whole_element(shard, i), whole);
        ASSERT_EQ(noise[static_cast<size_t>(i)], static_cast<double>(documented_noise(d, whole))) << i;
      }
    }
  }
}

TEST(PlainKernelsTest, AShardKnowsItsRuns) {
  EXPECT_TRUE(shard_of({9, 5}, {2, 0}, {4, 5}).one_run());
  EXPECT_TRUE(shard_of({9, 5, 2}, {2, 1, 0}, {1, 3, 2}).one_run());
  EXPECT_TRUE(math::Shard{}.one_run());
  const math::Shard columns = shard_of({9, 5, 2}, {0, 1, 0}, {9, 3, 2});
  EXPECT_FALSE(columns.one_run());
  EXPECT_EQ(math::left_in_run(columns, 0), 6);
  EXPECT_EQ(math::left_in_run(columns, 11), 1);
  math::Shard split;
  for (int d = 0; d < math::Shard::kMaxDims; ++d) EXPECT_TRUE(math::add_dimension(split, 1, 2, 4));
  EXPECT_FALSE(math::add_dimension(split, 1, 2, 4));
}

TEST(PlainKernelsTest, UpdateAndPerturbIsTheBodiesOneAfterTheOther) {
  const int64_t count = 200;
  const int pair = static_cast<int>(DtypePair::f32_bf16);
  const Bytes grad = random_values(count, pair, 2, 2);
  Bytes clean = random_values(count, pair, 4, 1), buffer = random_values(count, pair, 4, 3), out(count * 2);
  const Bytes clean_before = clean, buffer_before = buffer;
  update_and_perturb(*kernels_plain(), pair, update_of(0), {kStream, Distribution::gaussian, 0.25}, {70, count},
                     clean.data(), grad.data(), buffer.data(), out.data());
  const math::Sgd::Params<float> p{0.1F, 0.9F, 0.9F, 0.75F, 0.01F, 1.0F};
  const auto float_at = [](const Bytes& bytes, int64_t i) {
    float value = 0;
    std::memcpy(&value, bytes.data() + 4 * i, 4);
    return value;
  };
  for (int64_t i = 0; i < count; ++i) {
    uint16_t g = 0, perturbed = 0;
    std::memcpy(&g, grad.data() + 2 * i, 2);
    std::memcpy(&perturbed, out.data() + 2 * i, 2);
    float v[] = {float_at(buffer_before, i)};
    const float w = math::Sgd::update_element<math::Sgd::Kind::heavy_ball>(
        float_at(clean_before, i), math::load_scalar(static_cast<math::bfloat16_t>(g)), v, p);
    ASSERT_EQ(float_at(clean, i), w);
    ASSERT_EQ(float_at(buffer, i), v[0]);
    const float noisy = math::perturb_element(w, 0.25F, documented_noise(Distribution::gaussian, 70 + i));
    ASSERT_EQ(perturbed, static_cast<uint16_t>(math::Store<math::bfloat16_t>::from(noisy)));
  }
}

// Threads that share a tensor touch their own pieces only, wherever the cuts lie: `make tsan` watches this.
TEST(KernelsTest, ThreadsOnPiecesOfOneTensorGiveTheBitsOfTheWhole) {
  constexpr int64_t kCount = 10007, kPieces = 5;
  const NoiseArgs noise{kStream, Distribution::gaussian, 0.1};
  const Update how = update_of(0);
  for (int pair = 0; pair < kDtypePairs; ++pair) {
    const PairSizes size = sizes_of(pair);
    const auto start = [&](size_t bytes, uint32_t seed) { return random_values(kCount, pair, bytes, seed); };
    const Bytes grad = start(size.model, 1);
    struct Tensors {
      Bytes clean, momentum, perturbed;
    };
    const auto run = [&](Tensors& t, int64_t begin, int64_t end) {
      const auto at = [&](auto& bytes, size_t element) { return bytes.data() + static_cast<size_t>(begin) * element; };
      update_and_perturb(kernels(), pair, how, noise, {begin, end - begin}, at(t.clean, size.master),
                         at(grad, size.model), at(t.momentum, size.master), at(t.perturbed, size.model));
    };
    const Tensors fresh{start(size.master, 2), start(size.master, 3), start(size.model, 4)};
    Tensors whole = fresh, pieces = fresh;
    run(whole, 0, kCount);
    {
      std::vector<std::jthread> threads;
      for (int64_t k = 0; k < kPieces; ++k) {
        threads.emplace_back([&, k] { run(pieces, kCount * k / kPieces, kCount * (k + 1) / kPieces); });
      }
    }
    EXPECT_EQ(whole.clean, pieces.clean) << pair;
    EXPECT_EQ(whole.momentum, pieces.momentum) << pair;
    EXPECT_EQ(whole.perturbed, pieces.perturbed) << pair;
    EXPECT_NE(whole.clean, fresh.clean) << pair;
  }
}

}  // namespace
}  // namespace torch_ssam::cpu
