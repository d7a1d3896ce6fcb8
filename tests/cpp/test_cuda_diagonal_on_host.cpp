// The bodies of the CUDA kernels of the diagonal product, walked on the host, bit for bit against what the CPU
// operators compute with their inner loops: with and without noise, with and without readout, features round every
// boundary (and so layers that start inside a block of noise), batches round the segments, aligned and not, all pairs
// of dtypes.
#include "cuda_host.h"
#include "ops/cuda/diagonal_body.h"

namespace torch_ssam::cuda {
namespace {

using math::Distribution;

constexpr int64_t kGenerator[2] = {-5, 1LL << 33};
constexpr double kStd = 0.04;

struct Case {
  int64_t depth, features, rows;
  bool noisy;
  Distribution distribution;
  int shift;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  int turn = 0;
  for (const int64_t features : {1, 2, 8, 15, 16, 17, 31, 64, 65, 100, 128, 1023, 1024, 1025, 1032, 2056, 3000}) {
    for (const int64_t rows : {1, 3, 63, 64, 65, 129, 200}) {
      ++turn;
      if (features * rows > 260000) continue;
      all.push_back({1 + turn % 4, features, rows, turn % 3 != 0,
                     turn % 2 == 0 ? Distribution::gaussian : Distribution::rademacher, turn % 5 == 0 ? 1 : 0});
    }
  }
  // More layers, segments of rows and chunks of features than one turn of an unrolled loop takes.
  for (const bool noisy : {false, true}) {
    all.push_back({9, 17, 1100, noisy, Distribution::gaussian, 0});
    all.push_back({7, 64, 650, noisy, Distribution::rademacher, 0});
    all.push_back({6, 9217, 2, noisy, Distribution::gaussian, 1});
  }
  return all;
}

// The layers of the case, its product and its noise, on both sides.
template <typename Types>
struct Setup {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using math_t = typename Types::math_t;

  explicit Setup(const Case& c)
      : weight(c.depth * c.features, 1),
        input(c.rows * c.features, 2, c.shift),
        product(c.features, 3),
        product_cpu(c.features, 4),
        layers_cpu(static_cast<size_t>(c.depth * c.features)),
        layers{weight.data(), c.depth, c.features, c.noisy, {kGenerator, 0, 0, c.distribution, kStd}},
        args{c.depth,
             c.features,
             {math::make_noise_stream(kGenerator[0], kGenerator[1], 0, 0), c.distribution, kStd},
             c.noisy} {
    k.diagonal_load[Types::master](args, {0, c.features}, weight.data(), layers_cpu.data(), product_cpu.data());
    walk_threads<ProductBody<master_t>>({layers, product.data()}, (c.features + 63) / 64 * math::kLanes);
  }
  const cpu::Kernels& k = cpu::kernels();
  Memory<master_t> weight;
  Memory<model_t> input;
  Memory<math_t> product, product_cpu;
  std::vector<math_t> layers_cpu;
  LayerSettings layers;
  cpu::DiagonalArgs args;
};

std::string name_of(const Case& c) {
  return "depth " + std::to_string(c.depth) + " features " + std::to_string(c.features) + " rows " +
         std::to_string(c.rows) + (c.noisy ? " noisy" : "") + " shift " + std::to_string(c.shift);
}

// The widest path that the case may take, as diagonal.cu chooses it.
template <typename model_t>
bool wide(const Case& c) {
  return c.features % kLanesOwned<model_t> == 0 && c.shift == 0;
}

template <typename Types>
class CudaDiagonalOnHost : public ::testing::Test {};
TYPED_TEST_SUITE(CudaDiagonalOnHost, Pairs);

template <typename Types, int kCount>
void check_multiply(const Case& c) {
  using model_t = typename Types::model_t;
  Setup<Types> s(c);
  ASSERT_TRUE(same_bits(s.product, s.product_cpu)) << name_of(c);
  Memory<model_t> got(c.rows * c.features, 5, c.shift), expected(c.rows * c.features, 6);
  for (int64_t row = 0; row < c.rows; ++row) {
    s.k.diagonal_multiply[Types::pair](s.product_cpu.data(), s.input.data() + row * c.features,
                                       expected.data() + row * c.features, c.features);
  }
  const MultiplyGrid grid = multiply_grid(c.rows, c.features, kCount);
  walk<MultiplyBody<typename Types::master_t, model_t, kCount>>(
      {s.product.data(), s.input.data(), got.data(), c.rows, grid}, grid.blocks);
  ASSERT_TRUE(same_bits(got, expected)) << name_of(c);
}

TYPED_TEST(CudaDiagonalOnHost, ForwardMatchesTheCpu) {
  using model_t = typename TypeParam::model_t;
  for (const Case& c : cases()) {
    check_multiply<TypeParam, 1>(c);
    if (wide<model_t>(c)) check_multiply<TypeParam, kLanesOwned<model_t>>(c);
  }
}

template <typename Types, int kCount>
void check_readout(const Case& c) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using math_t = typename Types::math_t;
  Setup<Types> s(c);
  const int64_t chunks = (c.features + math::kReadoutChunk - 1) / math::kReadoutChunk;
  Memory<model_t> got(c.rows, 5), expected(c.rows, 6);
  for (int64_t row = 0; row < c.rows; ++row) {
    math_t sum = 0;
    for (int64_t h = 0; h < c.features; h += math::kReadoutChunk) {
      sum += static_cast<math_t>(s.k.diagonal_readout[Types::pair](s.product_cpu.data() + h,
                                                                   s.input.data() + row * c.features + h,
                                                                   std::min(math::kReadoutChunk, c.features - h)));
    }
    expected.data()[row] = math::Store<model_t>::from(sum);
  }
  using Body = ReadoutBody<master_t, model_t, kCount>;
  Memory<math_t> partial(c.rows * chunks, 7);
  walk<Body>({s.product.data(), s.input.data(), partial.data(), c.rows, c.features, chunks},
             (c.rows * chunks + Body::kTasks - 1) / Body::kTasks);
  walk_threads<CombineBody<master_t, model_t>>({partial.data(), got.data(), c.rows, chunks}, c.rows);
  ASSERT_TRUE(same_bits(got, expected)) << name_of(c);
}

TYPED_TEST(CudaDiagonalOnHost, ReadoutMatchesTheCpu) {
  using model_t = typename TypeParam::model_t;
  for (const Case& c : cases()) {
    check_readout<TypeParam, 1>(c);
    if (wide<model_t>(c)) check_readout<TypeParam, kLanesOwned<model_t>>(c);
  }
}

template <typename Types, int kCount>
void check_backward(const Case& c, bool readout, bool needs_input, bool needs_weight) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using math_t = typename Types::math_t;
  constexpr int pair = Types::pair;
  Setup<Types> s(c);
  const int64_t features = c.features, rows = c.rows, stride = readout ? 1 : features;
  Memory<model_t> grad(rows * stride, 5, c.shift);

  // The CPU operator with one thread: segments of rows, their sums in order, then the layers.
  Memory<model_t> grad_input_cpu(needs_input ? rows * features : 0, 6);
  Memory<master_t> grad_weight_cpu(needs_weight ? c.depth * features : 0, 7);
  std::vector<math_t> total(static_cast<size_t>(features)), sum(total), scratch(total.size() * (1 + c.depth));
  for (int64_t row = 0; row < rows; row += math::kBatchSegment) {
    auto& target = row == 0 ? total : sum;
    s.k.diagonal_backward_rows[pair](grad.data() + row * stride, stride, readout, s.input.data() + row * features,
                                     needs_input ? grad_input_cpu.data() + row * features : nullptr, features,
                                     std::min(math::kBatchSegment, rows - row), features, s.product_cpu.data(),
                                     needs_weight ? target.data() : nullptr);
    if (row > 0 && needs_weight) s.k.diagonal_add[Types::master](total.data(), sum.data(), features);
  }
  if (needs_weight) {
    s.k.diagonal_weight_gradient[Types::master](c.depth, features, total.data(), s.layers_cpu.data(), features,
                                                scratch.data(), grad_weight_cpu.data(), features);
  }

  const int64_t segments = (rows + math::kBatchSegment - 1) / math::kBatchSegment;
  Memory<math_t> sums(segments * features, 8), suffix(c.depth * features, 9);
  Memory<model_t> grad_input(grad_input_cpu.count(), 10, c.shift);
  Memory<master_t> grad_weight(grad_weight_cpu.count(), 11);
  walk_threads<RowsBody<master_t, model_t, kCount>>(
      {grad.data(), needs_weight ? s.input.data() : nullptr, needs_input ? s.product.data() : nullptr,
       grad_input.data(), sums.data(), rows, features, readout},
      segments * (features / kCount));
  if (needs_weight) {
    walk_threads<FinishBody<master_t>>({s.layers, sums.data(), segments, suffix.data(), grad_weight.data()},
                                       (features + 63) / 64 * math::kLanes);
  }
  ASSERT_TRUE(same_bits(grad_input, grad_input_cpu)) << name_of(c) << " readout " << readout;
  ASSERT_TRUE(same_bits(grad_weight, grad_weight_cpu)) << name_of(c) << " readout " << readout;
  ASSERT_TRUE(sums.guards_hold() && suffix.guards_hold());
}

TYPED_TEST(CudaDiagonalOnHost, BackwardSumsInTheCpusOrder) {
  using model_t = typename TypeParam::model_t;
  int turn = 0;
  for (const Case& c : cases()) {
    const bool readout = turn % 2 == 0, needs_input = turn % 3 != 0, needs_weight = turn % 3 != 1;
    ++turn;
    check_backward<TypeParam, 1>(c, readout, needs_input, needs_weight);
    if (wide<model_t>(c)) check_backward<TypeParam, kLanesOwned<model_t>>(c, readout, needs_input, needs_weight);
  }
}

}  // namespace
}  // namespace torch_ssam::cuda
