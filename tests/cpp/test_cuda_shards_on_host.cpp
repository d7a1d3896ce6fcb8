// Parts of tensors in the CUDA kernels that make noise, on the host (and as PTX): the noise of a shard's elements is
// that of the whole tensor's, bit for bit as the CPU's inner loops make it. Boxes along every dimension, uneven, of
// single elements, empty, beyond 2^32; aligned, misaligned and strided; all scales and rules; lists longer than a
// launch.
#include "cuda_list_host.h"
#include "ops/cuda/perturb_body.h"
#include "ops/cuda/shards.h"

namespace torch_ssam::cuda {
namespace {

using math::AdamW;
using math::Distribution;
using math::Scale;

struct Box {
  std::vector<int64_t> whole, start, sizes;

  math::Shard shard() const {
    math::Shard shard;
    if (numel() == 0) return shard;
    for (size_t d = 0; d < whole.size(); ++d) EXPECT_TRUE(math::add_dimension(shard, start[d], sizes[d], whole[d]));
    return shard;
  }
  int64_t numel() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>()); }
};

const Box kBoxes[] = {
    {{64, 96}, {16, 0}, {32, 96}},                                   // rows, from a multiple of 64 elements on
    {{31, 16}, {7, 0}, {13, 16}},                                    // from the middle of a block, each access aligned
    {{31, 9, 5}, {7, 0, 0}, {13, 9, 5}},                             // from anywhere
    {{9, 5, 2}, {2, 1, 0}, {1, 3, 2}},                               // one run inside a row
    {{5000}, {1234}, {2047}},                                        // a vector
    {{40, 33}, {0, 17}, {40, 16}},                                   // columns
    {{12, 512}, {0, 128}, {12, 256}},                                // columns that are whole blocks
    {{300, 2}, {0, 1}, {300, 1}},                                    // single elements
    {{5, 12, 70}, {0, 3, 0}, {5, 4, 70}},                            // the middle
    {{30, 4, 50}, {10, 0, 20}, {11, 4, 25}},                         // along two dimensions
    {{6, 7, 8, 9}, {1, 2, 3, 4}, {4, 3, 5, 5}},                      // along four
    {{5, 13}, {0, 0}, {5, 13}},                                      // all of it
    {{5, 3}, {5, 0}, {0, 3}},                                        // nothing
    {{}, {}, {}},                                                    // a number
    {{int64_t{1} << 33, 48}, {(int64_t{1} << 32) + 5, 0}, {9, 48}},  // rows beyond 2^32
    {{3, int64_t{1} << 40, 2}, {1, (int64_t{1} << 39) - 70, 1}, {2, 140, 1}},  // and single elements
};

enum class Layout { aligned, misaligned, reversed };
constexpr Layout kLayouts[] = {Layout::aligned, Layout::misaligned, Layout::reversed};

// A tensor of a box's shape in memory: operands of one layout, in which the CPU's contiguous values are found again.
class InLayout {
 public:
  InLayout(const Box& box, Layout layout) : box_(box), layout_(layout), numel_(box.numel()) {
    int64_t step = 1;
    for (const int64_t size : box.sizes) {  // the first dimension innermost
      strides_.push_back(step);
      step *= size;
    }
  }
  int shift() const { return layout_ == Layout::misaligned ? 1 : 0; }

  template <typename T>
  std::vector<T> values(const Memory<T>& memory) const {
    std::vector<T> result;
    for (int64_t i = 0; i < numel_; ++i) result.push_back(memory.data()[at(i)]);
    return result;
  }
  template <typename T>
  ::testing::AssertionResult holds(const Memory<T>& memory, const std::vector<T>& expected) const {
    if (!memory.guards_hold()) return ::testing::AssertionFailure() << "wrote outside its elements";
    for (int64_t i = 0; i < numel_; ++i) {
      if (!same_value(memory.data()[at(i)], expected[static_cast<size_t>(i)])) {
        return ::testing::AssertionFailure() << "element " << i << " of " << numel_ << " differs";
      }
    }
    return ::testing::AssertionSuccess();
  }
  template <typename TensorType>
  void attach(TensorType& tensor) const {
    tensor.sizes = box_.sizes.data();
    tensor.dim = static_cast<int64_t>(box_.sizes.size());
    for (const int64_t*& strides : tensor.strides) strides = layout_ == Layout::reversed ? strides_.data() : nullptr;
  }

 private:
  int64_t at(int64_t element) const {
    if (layout_ != Layout::reversed) return element;
    int64_t offset = 0;
    for (size_t d = box_.sizes.size(); d-- > 0;) {
      offset += element % box_.sizes[d] * strides_[d];
      element /= box_.sizes[d];
    }
    return offset;
  }
  const Box& box_;
  Layout layout_;
  int64_t numel_;
  std::vector<int64_t> strides_;
};

cpu::NoiseArgs noise_of(const math::Shard& shard, Distribution distribution, int64_t place = kPlace) {
  cpu::NoiseArgs args = noise_args(distribution, place);
  args.origin = shard.one_run() ? shard.origin : 0;
  args.shard = shard.one_run() ? nullptr : &shard;
  return args;
}

// Rows of the shard: their length, and how many there are where they come again.
struct Rows {
  int64_t length, repeated;
};
std::vector<Rows> rows_of(const Box& box) {
  const int64_t n = box.numel();
  std::vector<Rows> rows{{std::max<int64_t>(n, 1), 0}, {1, 0}, {7, 0}, {3, 5}};
  if (box.sizes.size() > 1 && n > 0) {
    const int64_t inner = n / box.sizes[0];
    rows.push_back({inner, 0});                            // along dimension 0
    rows.push_back({inner / box.sizes[1], box.sizes[1]});  // and 1
  }
  return rows;
}

template <typename Types>
class CudaShardsOnHost : public ::testing::Test {};
TYPED_TEST_SUITE(CudaShardsOnHost, Pairs);

template <typename Types, Scale kScale, bool kSave>
void check_perturb(const Box& box, Layout how, Distribution distribution, Rows rows) {
  using model_t = typename Types::model_t;
  using master_t = std::conditional_t<kSave, model_t, typename Types::master_t>;
  using More = std::conditional_t<kScale == Scale::rows, RowScales, Nothing>;
  const InLayout layout(box, how);
  const math::Shard shard = box.shard();
  const int64_t n = box.numel();
  Memory<model_t> params(n, 2, layout.shift());
  Memory<master_t> clean(n, 1, layout.shift());
  std::vector<float> scales;
  for (int64_t row = 0; row < (rows.repeated != 0 ? rows.repeated : n / rows.length + 1); ++row) {
    scales.push_back(0.3F + 0.0625F * static_cast<float>(row % 29));
  }
  cpu::NoiseArgs args = noise_of(shard, distribution);
  args.scale = kScale;
  args.row_scales = scales.data();
  args.row_length = rows.length;
  args.rows = rows.repeated;
  std::vector<model_t> expected = layout.values(params);
  std::vector<master_t> saved = layout.values(clean);
  if constexpr (kSave) {
    cpu::kernels().perturb[Types::pair](args, {0, n}, expected.data(), saved.data(), expected.data());
  } else {
    cpu::kernels().perturb[Types::pair](args, {0, n}, saved.data(), nullptr, expected.data());
  }
  ListTensor<2, More> tensor = contiguous<2, More>(n, {params.data(), clean.data()});
  if constexpr (kScale == Scale::rows) {
    static_cast<RowScales&>(tensor) = RowScales(scales.data(), rows.length, rows.repeated);
  }
  layout.attach(tensor);
  place_in_whole(tensor, shard, {sizeof(model_t), sizeof(master_t)});
  walk_list<PerturbBody<master_t, model_t, kSave, kScale>::template With, kPerturbLanes<model_t, kScale>>(
      std::vector{tensor}, PerturbSettings{noise_settings(distribution)});
  ASSERT_TRUE(layout.holds(params, expected)) << ::testing::PrintToString(box.whole) << " rows of " << rows.length;
  ASSERT_TRUE(layout.holds(clean, saved)) << ::testing::PrintToString(box.whole);
}

template <typename Types, Scale kScale>
void check_perturbs(const Box& box, Layout layout, Rows rows) {
  for (const Distribution distribution : kDistributions) {
    ASSERT_NO_FATAL_FAILURE((check_perturb<Types, kScale, false>(box, layout, distribution, rows)));
    if constexpr (std::is_same_v<typename Types::master_t, typename Types::model_t>) {
      ASSERT_NO_FATAL_FAILURE((check_perturb<Types, kScale, true>(box, layout, distribution, rows)));
    }
  }
}

TYPED_TEST(CudaShardsOnHost, TheNoiseOfAShardIsThatOfTheWholeTensorOnTheCpu) {
  for (const Box& box : kBoxes) {
    for (const Layout layout : kLayouts) {
      ASSERT_NO_FATAL_FAILURE((check_perturbs<TypeParam, Scale::isotropic>(box, layout, {1, 0})));
      ASSERT_NO_FATAL_FAILURE((check_perturbs<TypeParam, Scale::element>(box, layout, {1, 0})));
    }
  }
}

TYPED_TEST(CudaShardsOnHost, RowsAreThoseOfTheShard) {
  for (const Box& box : kBoxes) {
    for (const Layout layout : kLayouts) {
      for (const Rows rows : rows_of(box)) {
        ASSERT_NO_FATAL_FAILURE((check_perturbs<TypeParam, Scale::rows>(box, layout, rows)));
      }
    }
  }
}

constexpr Sgd rule_of(Sgd::Kind kind) {
  return {0.1, kind == Sgd::Kind::plain ? 0.0 : 0.9, 0.0, 1e-3, kind == Sgd::Kind::nesterov, false};
}
constexpr AdamW rule_of(AdamW::Kind kind) { return {0.01, 0.9, 0.999, 1e-8, 0.1, kind == AdamW::Kind::amsgrad, false}; }

template <typename Types, typename Rule, typename Rule::Kind kKind, bool kByElement>
void check_update(const Box& box, Layout how, Distribution distribution) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using math_t = typename Types::math_t;
  constexpr int kMost = math::kMostBuffers<Rule>, kBuffers = Rule::buffers_of(kKind), kOperands = 3 + kMost;
  const InLayout layout(box, how);
  const math::Shard shard = box.shard();
  const int64_t n = box.numel(), step = 3;
  const Rule rule = rule_of(kKind);
  Memory<master_t> clean(n, 1, layout.shift());
  Memory<model_t> grad(n, 3, layout.shift()), params(n, 4, layout.shift());
  std::vector<Memory<master_t>> buffers;
  for (int b = 0; b < kMost; ++b) {
    buffers.emplace_back(n, 5 + b, layout.shift());
    for (int64_t i = 0; b > 0 && i < n; ++i) {  // of squares
      const auto value = math::load_scalar(buffers.back().data()[i]);
      buffers.back().data()[i] = math::Store<master_t>::from(value < 0 ? -value : value);
    }
  }
  std::vector<master_t> clean_cpu = layout.values(clean);
  std::vector<model_t> params_cpu = layout.values(params);
  const std::vector<model_t> grad_cpu = layout.values(grad);
  std::vector<std::vector<master_t>> buffers_cpu;
  void* pointers[kMost];
  for (int b = 0; b < kMost; ++b) buffers_cpu.push_back(layout.values(buffers[b]));
  for (int b = 0; b < kMost; ++b) pointers[b] = buffers_cpu[b].data();
  cpu::NoiseArgs args = noise_of(shard, distribution);
  args.scale = kByElement ? Scale::element : Scale::isotropic;
  cpu::kernels().rules.template of<Rule>().update_and_perturb[Types::pair](
      rule, step, args, {0, n}, clean_cpu.data(), grad_cpu.data(), pointers, params_cpu.data());

  ListTensor<kOperands> tensor;
  std::array<int64_t, kOperands> bytes{sizeof(master_t), sizeof(model_t)};
  tensor.data[0] = clean.data();
  tensor.data[1] = grad.data();
  for (int b = 0; b < kBuffers; ++b) tensor.data[2 + b] = buffers[b].data();
  for (int b = 0; b < kBuffers; ++b) bytes[2 + b] = sizeof(master_t);
  tensor.data[kOperands - 1] = params.data();
  bytes[kOperands - 1] = sizeof(model_t);
  tensor.numel = n;
  tensor.number = kPlace;
  layout.attach(tensor);
  place_in_whole(tensor, shard, bytes);
  const UpdateAndPerturbSettings<Rule, math_t> settings{
      {Rule::template params<math_t>(rule, step), kKind, {nullptr, false, rule.lr}}, noise_settings(distribution)};
  constexpr int kLanes = kUpdateLanes<model_t, true>;
  if constexpr (kByElement) {
    walk_list<UpdateByElementBody<Rule, master_t, model_t>::template With, kLanes>(std::vector{tensor}, settings);
  } else {
    walk_list<UpdateBody<Rule, kKind, master_t, model_t, true>::template With, kLanes>(std::vector{tensor}, settings);
  }
  ASSERT_TRUE(layout.holds(clean, clean_cpu)) << ::testing::PrintToString(box.whole);
  ASSERT_TRUE(layout.holds(params, params_cpu)) << ::testing::PrintToString(box.whole);
  for (int b = 0; b < kMost; ++b) ASSERT_TRUE(layout.holds(buffers[b], buffers_cpu[b])) << "buffer " << b;
}

template <typename Types, typename Rule, typename Rule::Kind kKind>
void check_updates() {
  for (const Box& box : kBoxes) {
    for (const Layout layout : kLayouts) {
      for (const Distribution distribution : kDistributions) {
        ASSERT_NO_FATAL_FAILURE((check_update<Types, Rule, kKind, false>(box, layout, distribution)));
      }
      ASSERT_NO_FATAL_FAILURE((check_update<Types, Rule, kKind, true>(box, layout, Distribution::gaussian)));
    }
  }
}

TYPED_TEST(CudaShardsOnHost, AStepOfAShardIsThatOfTheWholeTensorByBothRules) {
  ASSERT_NO_FATAL_FAILURE((check_updates<TypeParam, Sgd, Sgd::Kind::nesterov>()));
  ASSERT_NO_FATAL_FAILURE((check_updates<TypeParam, AdamW, AdamW::Kind::amsgrad>()));
}

// Several hundred shards of every kind and whole tensors beside them.
TYPED_TEST(CudaShardsOnHost, AListOfAnyLengthMixesShardsAndWholeTensors) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  std::vector<math::Shard> shards;
  std::vector<Memory<master_t>> clean;
  std::vector<Memory<model_t>> got, expected;
  std::vector<ListTensor<2>> list;
  for (int t = 0; t < 600; ++t) shards.push_back(t % 3 == 0 ? math::Shard{} : kBoxes[t % std::size(kBoxes)].shard());
  for (int t = 0; t < 600; ++t) {
    const int64_t n = t % 3 == 0 ? (t * 37) % 300 : kBoxes[t % std::size(kBoxes)].numel();
    clean.emplace_back(n, t, t % 11 == 0);
    got.emplace_back(n, t + 1, t % 11 == 0);
    expected.emplace_back(n, t + 1);
    cpu::kernels().perturb[TypeParam::pair](noise_of(shards[t], Distribution::gaussian, t), {0, n}, clean.back().data(),
                                            nullptr, expected.back().data());
    list.push_back(contiguous<2>(n, {got.back().data(), clean.back().data()}, t));
    place_in_whole(list.back(), shards[t], {sizeof(model_t), sizeof(master_t)});
  }
  const Launches launches = walk_list<PerturbBody<master_t, model_t, false>::template With, kLanesOwned<model_t>>(
      list, PerturbSettings{noise_settings(Distribution::gaussian)});
  for (size_t t = 0; t < got.size(); ++t) ASSERT_TRUE(same_bits(got[t], expected[t])) << "tensor " << t;
  EXPECT_EQ(launches.aligned, 1);
  EXPECT_LE(launches.any, 6);
}

// Where FSDP cuts, along dimension 0, each access is 16 bytes wide but at the ends.
TEST(CudaShards, RowsOfAWholeTensorAreOneAlignedLaunch) {
  const Box box{{64, 96}, {16, 0}, {32, 96}};
  const math::Shard shard = box.shard();
  Memory<float> memory(2 * box.numel(), 1);
  const std::vector<float> scales(32, 1.0F);
  auto tensor =
      contiguous<2, RowScales>(box.numel(), {memory.data(), memory.data() + box.numel()}, kPlace, {scales.data(), 96});
  place_in_whole(tensor, shard, {sizeof(float), sizeof(float)});
  const Launches launches =
      walk_list<PerturbBody<float, float, false, Scale::rows>::With, kPerturbLanes<float, Scale::rows>>(
          std::vector{tensor}, PerturbSettings{noise_settings(Distribution::gaussian)});
  EXPECT_EQ(launches.aligned, 1);
  EXPECT_EQ(launches.any, 0);
}

}  // namespace
}  // namespace torch_ssam::cuda
