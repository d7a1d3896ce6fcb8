// Random calls of the kernels that copy, round, follow, scale and reduce, over strided, misaligned and contiguous
// tensors, against the CPU's inner loops: test_random_launches.cpp has those that make noise and update.
#include "math/reduce.h"
#include "ops/cuda/perturb_body.h"
#include "ops/cuda/project_body.h"
#include "ops/cuda/rows_body.h"
#include "random_operands.h"

namespace torch_ssam::cuda {
namespace {

template <typename Types>
class RandomCudaReductions : public testing::Test {};
TYPED_TEST_SUITE(RandomCudaReductions, Pairs);

// Tensors of one operand or two, with the layouts of a random call.
template <typename T>
struct RandomTensors {
  RandomTensors(Random& random, size_t count) {
    for (size_t t = 0; t < count; ++t) add(random, random_shape(random));
  }
  RandomTensors(Random& random, const std::vector<Shape>& like) {
    for (const Shape& shape : like) add(random, shape);
  }
  void add(Random& random, const Shape& shape) {
    shapes.push_back(shape);
    operands.emplace_back(random, shape, random_layout(random));
  }
  std::vector<Shape> shapes;
  std::vector<Operand<T>> operands;
};

TYPED_TEST(RandomCudaReductions, RestoreRoundAndFollow) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  using bits_t =
      std::conditional_t<sizeof(model_t) == 8, uint64_t, std::conditional_t<sizeof(model_t) == 4, uint32_t, uint16_t>>;
  Random random{std::mt19937_64(random_seed() + 3)};
  for (int i = 0; i < 2 * random_calls(); ++i) {
    RandomTensors<model_t> params(random, 1 + static_cast<size_t>(random.below(3)));
    RandomTensors<model_t> copies(random, params.shapes);
    RandomTensors<master_t> clean(random, params.shapes);
    const size_t count = params.shapes.size();
    const Coarse coarse = maybe_coarse<model_t>(random);
    for (Operand<master_t>& operand : clean.operands) operand.template coarsen<model_t>(coarse);
    for (Operand<model_t>& operand : params.operands) operand.template coarsen<model_t>(coarse);
    std::vector<ListTensor<2>> copied(count), followed(count);
    std::vector<std::vector<master_t>> expected(count);
    for (size_t t = 0; t < count; ++t) {
      attach(copied[t], 0, params.operands[t], params.shapes[t]);
      attach(copied[t], 1, copies.operands[t], params.shapes[t]);
      attach(followed[t], 0, clean.operands[t], params.shapes[t]);
      attach(followed[t], 1, params.operands[t], params.shapes[t]);
    }
    walk_list<RestoreBody<bits_t>::template With, kLanesOwned<bits_t>>(copied, RestoreSettings{});
    for (size_t t = 0; t < count; ++t) {
      ASSERT_TRUE(params.operands[t].holds(copies.operands[t].values())) << "restored " << t;
      expected[t] = clean.operands[t].values();
      const std::vector<model_t> written = params.operands[t].values();
      cpu::kernels().follow[TypeParam::pair](expected[t].data(), written.data(), params.shapes[t].numel);
    }
    walk_list<FollowBody<master_t, model_t>::template With, kLanesOwned<model_t>>(followed, FollowSettings{});
    for (size_t t = 0; t < count; ++t) ASSERT_TRUE(clean.operands[t].holds(expected[t])) << "followed " << t;
    if constexpr (!std::is_same_v<master_t, model_t>) {
      std::vector<ListTensor<2>> rounded(count);
      for (size_t t = 0; t < count; ++t) {
        attach(rounded[t], 0, copies.operands[t], params.shapes[t]);
        attach(rounded[t], 1, clean.operands[t], params.shapes[t]);
      }
      walk_list<RoundBody<master_t, model_t>::template With, kLanesOwned<model_t>>(rounded, RoundSettings{});
      for (size_t t = 0; t < count; ++t) {
        std::vector<model_t> wanted(static_cast<size_t>(params.shapes[t].numel));
        cpu::kernels().round[TypeParam::pair](expected[t].data(), wanted.data(), params.shapes[t].numel);
        ASSERT_TRUE(copies.operands[t].holds(wanted)) << "rounded " << t;
      }
    }
  }
}

TYPED_TEST(RandomCudaReductions, Projections) {
  using scalar_t = typename TypeParam::model_t;
  constexpr int dtype = TypeParam::model;
  Random random{std::mt19937_64(random_seed() + 4)};
  for (int i = 0; i < 2 * random_calls(); ++i) {
    RandomTensors<scalar_t> weights(random, 1 + static_cast<size_t>(random.below(3)));
    const size_t count = weights.shapes.size();
    std::vector<ListTensor<1>> list(count);
    std::vector<std::vector<scalar_t>> expected(count);
    int64_t pieces = 0;
    double total = 0.0;
    for (size_t t = 0; t < count; ++t) {
      attach(list[t], 0, weights.operands[t], weights.shapes[t]);
      list[t].number = static_cast<uint32_t>(pieces);
      pieces += math::norm_pieces(weights.shapes[t].numel);
      expected[t] = weights.operands[t].values();
      for (int64_t at = 0; at < weights.shapes[t].numel; at += math::kNormPiece) {
        total += cpu::kernels().sum_of_squares[dtype](expected[t].data() + at,
                                                      std::min(math::kNormPiece, weights.shapes[t].numel - at));
      }
    }
    const double radius = random.coin() ? 0.5 : 1e6;
    std::vector<double> lanes(static_cast<size_t>(pieces * math::kLanes), -1.0);
    ptx::undefined(lanes.data(), lanes.size() * sizeof(double));
    math::Projection projection{};
    walk_list<SquaresFor<scalar_t>::template With, kVector<scalar_t>>(list, SquaresSettings{lanes.data()});
    walk<ProjectionBody>({lanes.data(), pieces, radius, &projection}, 1);
    const math::Projection wanted = math::make_projection(total, radius);
    ASSERT_EQ(projection.outside, wanted.outside);
    ASSERT_TRUE(same_value(projection.factor, wanted.factor));
    walk_list<ScaleBody<scalar_t>::template With, kLanesOwned<scalar_t>>(list, ScaleSettings{&projection});
    for (size_t t = 0; t < count; ++t) {
      if (wanted.outside) cpu::kernels().scale[dtype](wanted.factor, expected[t].data(), weights.shapes[t].numel);
      ASSERT_TRUE(weights.operands[t].holds(expected[t])) << "tensor " << t << " radius " << radius;
    }
  }
}

// The first dimension of a tensor as its rows, or the whole as one.
struct RowsOf {
  RowsOf(Random& random, const Shape& shape)
      : rows(shape.sizes.size() > 1 && random.below(4) != 0 ? shape.sizes[0] : 1), length(shape.numel / rows) {}
  int64_t rows, length;
};

template <RowResult kResult, typename Types>
void random_rows(Random& random) {
  using scalar_t = typename Types::model_t;
  using Reduction = ReductionOf<kResult>;
  const auto& reduce = kResult == RowResult::range ? cpu::kernels().largest_magnitude : cpu::kernels().sum_of_squares;
  RandomTensors<scalar_t> weights(random, 1 + static_cast<size_t>(random.below(3)));
  const size_t count = weights.shapes.size();
  const bool with_fisher = kResult == RowResult::scale && random.coin();
  const double number = 0.3;
  std::vector<ListTensor<1, RowLength>> list(count);
  std::vector<ListTensor<2, RowLength>> results(count);
  std::vector<std::vector<float>> got(count), expected(count), fisher(count);
  int64_t pieces = 0;
  for (size_t t = 0; t < count; ++t) {
    const RowsOf rows(random, weights.shapes[t]);
    attach(list[t], 0, weights.operands[t], weights.shapes[t]);
    list[t].row_length = rows.length;
    list[t].number = static_cast<uint32_t>(pieces);
    list[t].numel = rows.rows * math::norm_pieces(rows.length);
    got[t].assign(static_cast<size_t>(rows.rows), 1.5F);
    for (int64_t row = 0; row < rows.rows; ++row) fisher[t].push_back(0.25F * static_cast<float>(random.below(9)));
    results[t].data[0] = got[t].data();
    results[t].data[1] = with_fisher ? fisher[t].data() : nullptr;
    results[t].numel = rows.rows;
    results[t].number = list[t].number;
    results[t].row_length = rows.length;
    pieces += list[t].numel;
    const std::vector<scalar_t> values = weights.operands[t].values();
    for (int64_t row = 0; row < rows.rows; ++row) {
      double total = 0.0;
      for (int64_t at = 0; at < rows.length; at += math::kNormPiece) {
        total = Reduction::join_pieces(total, reduce[Types::model](values.data() + row * rows.length + at,
                                                                   std::min(math::kNormPiece, rows.length - at)));
      }
      const double own = with_fisher ? static_cast<double>(fisher[t][static_cast<size_t>(row)]) : 0.0;
      expected[t].push_back(kResult == RowResult::range    ? math::row_range(total)
                            : kResult == RowResult::fisher ? math::row_fisher(1.5F, total, number)
                                                           : math::row_scale(total, own, number));
    }
  }
  std::vector<double> values(static_cast<size_t>(pieces), -1.0);
  ptx::undefined(values.data(), values.size() * sizeof(double));
  walk_list<RowPiecesFor<Reduction, scalar_t>::template With, kVector<scalar_t>>(list,
                                                                                 RowPiecesSettings{values.data()});
  walk_table<RowResultBody<kResult>>(results, RowResultSettings{values.data(), number});
  for (size_t t = 0; t < count; ++t) {
    ASSERT_TRUE(std::equal(got[t].begin(), got[t].end(), expected[t].begin(), expected[t].end(), same_value<float>))
        << "tensor " << t << " of " << got[t].size() << " rows";
  }
}

TYPED_TEST(RandomCudaReductions, RowsOfAnyLayout) {
  Random random{std::mt19937_64(random_seed() + 5)};
  for (int i = 0; i < 2 * random_calls(); ++i) {
    ASSERT_NO_FATAL_FAILURE((random_rows<RowResult::scale, TypeParam>(random)));
    ASSERT_NO_FATAL_FAILURE((random_rows<RowResult::range, TypeParam>(random)));
    ASSERT_NO_FATAL_FAILURE((random_rows<RowResult::fisher, TypeParam>(random)));
  }
}

// What clip_rows of rows.cu does, over tensors of any layout.
TYPED_TEST(RandomCudaReductions, ClippedRowsOfAnyLayout) {
  using scalar_t = typename TypeParam::model_t;
  Random random{std::mt19937_64(random_seed() + 6)};
  for (int i = 0; i < 2 * random_calls(); ++i) {
    RandomTensors<scalar_t> weights(random, 1 + static_cast<size_t>(random.below(3)));
    const size_t count = weights.shapes.size();
    const double weight_clip = random.coin() ? 1.1 : 0.4;
    std::vector<ListTensor<1, RowLength>> list(count);
    std::vector<ListTensor<2, RowLength>> results(count);
    std::vector<std::vector<scalar_t>> expected(count);
    std::vector<RowsOf> rows;
    int64_t pieces = 0, all_rows = 0;
    for (size_t t = 0; t < count; ++t) {
      rows.emplace_back(random, weights.shapes[t]);
      const auto [number, length] = rows.back();
      attach(list[t], 0, weights.operands[t], weights.shapes[t]);
      list[t].row_length = results[t].row_length = length;
      list[t].number = results[t].number = static_cast<uint32_t>(pieces);
      list[t].numel = number * math::norm_pieces(length);
      results[t].numel = number;
      pieces += list[t].numel;
      all_rows += number;
      expected[t] = weights.operands[t].values();
      for (int64_t row = 0; row < number; ++row) {
        scalar_t* const values = expected[t].data() + row * length;
        double total = 0.0;
        for (int64_t at = 0; at < length; at += math::kNormPiece) {
          total = math::SumOfSquares::join_pieces(total, cpu::kernels().sum_of_squares[TypeParam::model](
                                                             values + at, std::min(math::kNormPiece, length - at)));
        }
        cpu::kernels().clip[TypeParam::model](math::row_limit(total, length, weight_clip), values, length);
      }
    }
    std::vector<double> values(static_cast<size_t>(pieces), -1.0), limits(static_cast<size_t>(all_rows), -1.0);
    ptx::undefined(values.data(), values.size() * sizeof(double));
    ptx::undefined(limits.data(), limits.size() * sizeof(double));
    walk_list<RowPiecesFor<math::SumOfSquares, scalar_t>::template With, kVector<scalar_t>>(
        list, RowPiecesSettings{values.data()});
    int64_t first = 0;
    for (size_t t = 0; t < count; ++t) {
      results[t].data[0] = limits.data() + first;
      list[t].number = static_cast<uint32_t>(first);
      first += rows[t].rows;
    }
    walk_table<RowResultBody<RowResult::limit>>(results, RowResultSettings{values.data(), weight_clip});
    walk_list<ClipPiecesFor<scalar_t>::template With, kVector<scalar_t>>(list, ClipSettings{limits.data()});
    for (size_t t = 0; t < count; ++t) {
      ASSERT_TRUE(weights.operands[t].holds(expected[t])) << "tensor " << t << " of " << rows[t].rows << " rows";
    }
  }
}

}  // namespace
}  // namespace torch_ssam::cuda
