// The bodies of the CUDA kernels for noise by rows and by element and for the norms of rows, run on the host by walking
// their launch grid, bit for bit against the CPU inner loops: sizes and row lengths round every boundary, aligned and
// not, strided, all dtypes, lists longer than a launch, rows beyond 2^31.
#include <cmath>

#include "cuda_list_host.h"
#include "ops/cuda/perturb_body.h"
#include "ops/cuda/rows_body.h"

namespace torch_ssam::cuda {
namespace {

using math::Distribution;
using math::Scale;

constexpr int64_t kRowLengths[] = {1, 2, 3, 4, 7, 8, 16, 63, 64, 65, 100, 128, 1000, 4096, 100000};

// A scale of its own for every row of a tensor of n elements, the last row perhaps in part.
std::vector<float> scales_of_rows(int64_t n, int64_t length) {
  std::vector<float> scales(static_cast<size_t>((n + length - 1) / length));
  for (size_t row = 0; row < scales.size(); ++row) scales[row] = 0.3F + 0.0625F * static_cast<float>(row % 29);
  return scales;
}

template <typename Types>
class CudaScaleOnHost : public ::testing::Test {};
TYPED_TEST_SUITE(CudaScaleOnHost, Pairs);

cpu::NoiseArgs by_rows(Distribution distribution, const std::vector<float>& scales, int64_t length,
                       int64_t place = kPlace) {
  cpu::NoiseArgs args = noise_args(distribution, place);
  args.scale = Scale::rows;
  args.row_scales = scales.data();
  args.row_length = length;
  return args;
}

template <typename Types, bool kSave, Scale kScale>
using PerturbOf = PerturbBody<std::conditional_t<kSave, typename Types::model_t, typename Types::master_t>,
                              typename Types::model_t, kSave, kScale>;

TYPED_TEST(CudaScaleOnHost, PerturbByRowsMatchesTheCpuAtEverySizeRowLengthAndAlignment) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  for (const int64_t length : kRowLengths) {
    for (const int64_t n : kSizes) {
      const Distribution distribution = kDistributions[(n + length) % 2];
      const std::vector<float> scales = scales_of_rows(n, length);
      for (const int shift : {0, 1}) {
        Memory<master_t> clean(n, 1, shift);
        Memory<model_t> got(n, 2, shift), expected(n, 2);
        cpu::kernels().perturb[TypeParam::pair](by_rows(distribution, scales, length), {0, n}, clean.data(), nullptr,
                                                expected.data());
        walk_list<PerturbOf<TypeParam, false, Scale::rows>::template With, kPerturbLanes<model_t, Scale::rows>>(
            std::vector{contiguous<2, RowScales>(n, {got.data(), clean.data()}, kPlace, {scales.data(), length})},
            PerturbSettings{noise_settings(distribution)});
        ASSERT_TRUE(same_bits(got, expected)) << "n " << n << " row length " << length << " shift " << shift;
      }
    }
  }
}

TYPED_TEST(CudaScaleOnHost, RowsAlongAnotherDimensionComeAgainAsOnTheCpu) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  for (const int64_t length : {int64_t{1}, int64_t{3}, int64_t{9}, int64_t{64}, int64_t{100}}) {
    for (const int64_t rows : {int64_t{1}, int64_t{2}, int64_t{5}, int64_t{64}, int64_t{300}}) {
      const int64_t n = 3 * rows * length;
      std::vector<float> scales = scales_of_rows(rows, 1);
      cpu::NoiseArgs args = by_rows(kDistributions[rows % 2], scales, length);
      args.rows = rows;
      for (const int shift : {0, 1}) {
        Memory<master_t> clean(n, 1, shift);
        Memory<model_t> got(n, 2, shift), expected(n, 2);
        cpu::kernels().perturb[TypeParam::pair](args, {0, n}, clean.data(), nullptr, expected.data());
        walk_list<PerturbOf<TypeParam, false, Scale::rows>::template With, kPerturbLanes<model_t, Scale::rows>>(
            std::vector{contiguous<2, RowScales>(n, {got.data(), clean.data()}, kPlace, {scales.data(), length, rows})},
            PerturbSettings{noise_settings(args.distribution)});
        ASSERT_TRUE(same_bits(got, expected)) << rows << " rows of " << length << " shift " << shift;
      }
    }
  }
}

TYPED_TEST(CudaScaleOnHost, PerturbByElementMatchesTheCpuAndSoDoesItsNoiseAlone) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  for (const Distribution distribution : kDistributions) {
    for (const int64_t n : kSizes) {
      for (const int shift : {0, 1}) {
        for (const bool alone : {false, true}) {
          Memory<master_t> clean(n, 1, shift);
          Memory<model_t> got(n, 2, shift), expected(n, 2);
          cpu::NoiseArgs args = noise_args(distribution);
          args.scale = Scale::element;
          args.alone = alone;
          cpu::kernels().perturb[TypeParam::pair](args, {0, n}, clean.data(), nullptr, expected.data());
          PerturbSettings settings{noise_settings(distribution)};
          settings.noise.alone = alone;
          walk_list<PerturbOf<TypeParam, false, Scale::element>::template With, kPerturbLanes<model_t, Scale::element>>(
              std::vector{contiguous<2>(n, {got.data(), clean.data()})}, settings);
          ASSERT_TRUE(same_bits(got, expected)) << "n " << n << " shift " << shift << " alone " << alone;
        }
      }
    }
  }
}

TYPED_TEST(CudaScaleOnHost, ScaledPerturbSavesTheCleanWeights) {
  using scalar_t = typename TypeParam::model_t;
  if (sizeof(scalar_t) != sizeof(typename TypeParam::master_t)) {
    SUCCEED() << "saving is between equal dtypes, which the other pairs cover";
    return;
  }
  const auto check = [&]<Scale kScale>(int64_t n, int shift, cpu::NoiseArgs args, const auto& more) {
    using More = std::decay_t<decltype(more)>;
    Memory<scalar_t> params(n, 1, shift), saved(n, 2, shift), params_cpu(n, 1), saved_cpu(n, 2);
    cpu::kernels().perturb[TypeParam::pair](args, {0, n}, params_cpu.data(), saved_cpu.data(), params_cpu.data());
    walk_list<PerturbOf<TypeParam, true, kScale>::template With, kPerturbLanes<scalar_t, kScale>>(
        std::vector{contiguous<2, More>(n, {params.data(), saved.data()}, kPlace, more)},
        PerturbSettings{noise_settings(args.distribution)});
    ASSERT_TRUE(same_bits(params, params_cpu)) << "n " << n << " shift " << shift;
    ASSERT_TRUE(same_bits(saved, saved_cpu)) << "n " << n << " shift " << shift;
  };
  for (const int64_t n : kSizes) {
    const std::vector<float> scales = scales_of_rows(n, 9);
    for (const int shift : {0, 1}) {
      check.template operator()<Scale::rows>(n, shift, by_rows(Distribution::gaussian, scales, 9),
                                             RowScales{scales.data(), 9});
      cpu::NoiseArgs args = noise_args(Distribution::rademacher);
      args.scale = Scale::element;
      check.template operator()<Scale::element>(n, shift, args, Nothing{});
    }
  }
}

template <typename Types>
void check_update_by_element(int64_t n, int shift, Kind kind, bool first_step) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using math_t = typename Types::math_t;
  const bool has_buffer = kind != Kind::plain;
  const Distribution distribution = kDistributions[n % 2];
  const cpu::Update update = update_of(kind, /*maximize=*/first_step, first_step);
  cpu::NoiseArgs noise = noise_args(distribution);
  noise.scale = Scale::element;
  Memory<master_t> clean(n, 1, shift), clean_cpu(n, 1), buffer(n, 2, shift), buffer_cpu(n, 2);
  Memory<model_t> grad(n, 3, shift), params(n, 4, shift), params_cpu(n, 4);
  cpu::update_and_perturb(cpu::kernels(), Types::pair, update, noise, {0, n}, clean_cpu.data(), grad.data(),
                          has_buffer ? buffer_cpu.data() : nullptr, params_cpu.data());
  walk_list<UpdateByElementBody<Sgd, master_t, model_t>::template With, kUpdateLanes<model_t, true>>(
      std::vector{contiguous<4>(n, {clean.data(), grad.data(), has_buffer ? buffer.data() : nullptr, params.data()})},
      UpdateAndPerturbSettings<Sgd, math_t>{settings_of<math_t>(update), noise_settings(distribution)});
  ASSERT_TRUE(same_bits(clean, clean_cpu)) << "n " << n << " shift " << shift;
  ASSERT_TRUE(same_bits(buffer, buffer_cpu)) << "n " << n << " shift " << shift;
  ASSERT_TRUE(same_bits(params, params_cpu)) << "n " << n << " shift " << shift;
}

TYPED_TEST(CudaScaleOnHost, UpdateAndPerturbByElementMatchesTheCpuForEveryKind) {
  for (const int64_t n : kSizes) {
    for (const int shift : {0, 1}) {
      for (const Kind kind : {Kind::plain, Kind::heavy_ball, Kind::nesterov}) {
        for (const bool first : {false, true}) {
          ASSERT_NO_FATAL_FAILURE(check_update_by_element<TypeParam>(n, shift, kind, first));
        }
      }
    }
  }
}

TYPED_TEST(CudaScaleOnHost, StridedTensorsHaveTheScalesOfTheirLogicalRows) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  // (6, 5, 7), clean weights with the second dimension innermost, parameters reversed.
  const int64_t sizes[] = {6, 5, 7}, channels_last[] = {35, 1, 5}, reversed[] = {1, 6, 30};
  const int64_t n = 210, length = 35;
  const std::vector<float> scales = scales_of_rows(n, length);
  Memory<master_t> clean(n, 1), clean_flat(n, 1);
  Memory<model_t> params(n, 2), expected(n, 2), flat(n, 3);
  const auto at = [&](int64_t i, const int64_t* strides) {
    return i / 35 * strides[0] + i / 7 % 5 * strides[1] + i % 7 * strides[2];
  };
  for (int64_t i = 0; i < n; ++i) clean_flat.data()[i] = clean.data()[at(i, channels_last)];
  cpu::kernels().perturb[TypeParam::pair](by_rows(Distribution::gaussian, scales, length), {0, n}, clean_flat.data(),
                                          nullptr, flat.data());
  for (int64_t i = 0; i < n; ++i) expected.data()[at(i, reversed)] = flat.data()[i];
  auto tensor = contiguous<2, RowScales>(n, {params.data(), clean.data()}, kPlace, {scales.data(), length});
  tensor.sizes = sizes;
  tensor.dim = 3;
  tensor.strides[0] = reversed;
  tensor.strides[1] = channels_last;
  const Launches launches =
      walk_list<PerturbOf<TypeParam, false, Scale::rows>::template With, kPerturbLanes<model_t, Scale::rows>>(
          std::vector{tensor}, PerturbSettings{noise_settings(Distribution::gaussian)});
  EXPECT_EQ(launches.aligned, 0);
  EXPECT_TRUE(same_bits(params, expected));
}

TYPED_TEST(CudaScaleOnHost, AListOfAnyLengthKeepsEachTensorsOwnRows) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  std::vector<Memory<master_t>> clean;
  std::vector<Memory<model_t>> got, expected;
  std::vector<std::vector<float>> scales;
  std::vector<ListTensor<2, RowScales>> list;
  for (int t = 0; t < 700; ++t) {
    const int64_t n = t % 7 == 0 ? 8 * t : (t * 37) % 300;
    const int64_t length = 1 + t % 90;
    clean.emplace_back(n, t, t % 11 == 0);
    got.emplace_back(n, t + 1, t % 11 == 0);
    expected.emplace_back(n, t + 1);
    scales.push_back(scales_of_rows(n, length));
    list.push_back(
        contiguous<2, RowScales>(n, {got.back().data(), clean.back().data()}, t, {scales.back().data(), length}));
    cpu::kernels().perturb[TypeParam::pair](by_rows(Distribution::gaussian, scales.back(), length, t), {0, n},
                                            clean.back().data(), nullptr, expected.back().data());
  }
  const Launches launches =
      walk_list<PerturbOf<TypeParam, false, Scale::rows>::template With, kPerturbLanes<model_t, Scale::rows>>(
          list, PerturbSettings{noise_settings(Distribution::gaussian)});
  for (size_t t = 0; t < got.size(); ++t) ASSERT_TRUE(same_bits(got[t], expected[t])) << "tensor " << t;
  EXPECT_LE(launches.aligned, 2);
  EXPECT_LE(launches.any, 4);
}

TEST(CudaScaleTables, FiveHundredAlignedTensorsAreOneLaunchByRowsToo) {
  Memory<float> memory(2048, 1);
  const std::vector<float> scales(8, 1.0F);
  const std::vector<ListTensor<2, RowScales>> list(
      500, contiguous<2, RowScales>(1024, {memory.data(), memory.data() + 1024}, kPlace, {scales.data(), 128}));
  const Launches launches =
      walk_list<PerturbBody<float, float, false, Scale::rows>::With, kPerturbLanes<float, Scale::rows>>(
          list, PerturbSettings{noise_settings(Distribution::gaussian)});
  EXPECT_EQ(launches.aligned, 1);
  EXPECT_EQ(launches.any, 0);
}

struct Wide {
  int64_t numbers[16];
};

TEST(CudaScaleTables, AsManyEntriesAsKernelArgumentsHold) {
  constexpr int kEntries = kArgumentBytes - kSettingsBytes;
  EXPECT_EQ((AlignedTable<4>::kCapacity), 512);
  EXPECT_EQ((AnyTable<4>::kCapacity), 224);
  EXPECT_EQ((AlignedTable<2, RowScales>::kCapacity), 512);
  // A wider entry: fewer of them, and no room for one more.
  using Aligned = AlignedTable<4, Wide>;
  using Any = AnyTable<4, Wide>;
  constexpr int kEach = static_cast<int>(sizeof(Aligned::EntryType) + sizeof(int32_t));
  EXPECT_EQ(sizeof(Aligned::EntryType), sizeof(AlignedTable<4>::EntryType) + sizeof(Wide));
  for (const auto size : {sizeof(Aligned), sizeof(Any)}) {
    EXPECT_LE(static_cast<int>(size), kEntries + 16);
    EXPECT_GT(static_cast<int>(size), kEntries - kEach);
  }
}

// Rows that begin beyond 2^31 elements: of the tensor and of its scales no more is in memory than the launch needs.
template <typename Types, int kCount>
void check_far_rows(int64_t begin, int64_t n, int64_t length) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using Body = typename PerturbOf<Types, false, Scale::rows>::template With<kCount>;
  Memory<master_t> clean(n, 1);
  Memory<model_t> got(n, 2), expected(n, 2);
  const int64_t first_row = begin / length;
  std::vector<float> scales = scales_of_rows(begin + n - first_row * length, length);
  const auto shifted = [&](void* p, int64_t elements, size_t size) {
    return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) - static_cast<uintptr_t>(elements) * size);
  };
  cpu::NoiseArgs args = noise_args(Distribution::gaussian);
  args.scale = Scale::rows;
  args.row_length = length;
  args.row_scales = static_cast<const float*>(shifted(scales.data(), first_row, sizeof(float)));
  cpu::kernels().perturb[Types::pair](args, {begin, n}, clean.data(), nullptr, expected.data());
  const auto tensor = contiguous<2, RowScales>(
      begin + n, {shifted(got.data(), begin, sizeof(model_t)), shifted(clean.data(), begin, sizeof(master_t))}, kPlace,
      {args.row_scales, length});
  const auto launch = [&](const auto& table, int64_t blocks) {
    walk<Body>({{noise_settings(Distribution::gaussian)}, table}, blocks);
  };
  TableBuilder<typename Body::TableType, decltype(launch)> builder(Body::kAlign, Body::kSpan, launch);
  builder.add(tensor, begin, begin + n);
  builder.flush();
  ASSERT_TRUE(same_bits(got, expected)) << "begin " << begin << " row length " << length << " lanes " << kCount;
}

TYPED_TEST(CudaScaleOnHost, RowsBeyondTwoToTheThirtyOneHaveTheirOwnScale) {
  for (const int64_t length : {int64_t{1}, int64_t{7}, int64_t{1000}, (int64_t{1} << 31) + 5, int64_t{1} << 33}) {
    for (const int64_t start : {int64_t{1} << 31, int64_t{1} << 33}) {
      check_far_rows<TypeParam, kPerturbLanes<typename TypeParam::model_t, Scale::rows>>(start - 512, 1024, length);
      check_far_rows<TypeParam, 1>(start - 509, 1021, length);
    }
  }
}

// --- norms and Fisher sums

template <typename Reduction, int kDtype, typename scalar_t>
double cpu_row(const scalar_t* row, int64_t length) {
  const auto& kernels = std::is_same_v<Reduction, math::LargestMagnitude> ? cpu::kernels().largest_magnitude
                                                                          : cpu::kernels().sum_of_squares;
  double total = 0.0;
  for (int64_t at = 0; at < length; at += math::kNormPiece) {
    total = Reduction::join_pieces(total, kernels[kDtype](row + at, std::min(math::kNormPiece, length - at)));
  }
  return total;
}

template <typename scalar_t>
struct RowTensor {
  int64_t rows, length;
  Memory<scalar_t> memory;
  std::vector<float> result, expected;
};

// What launch_rows of rows.cu does: first pieces, their numbers, results.
template <RowResult kResult, typename scalar_t>
Launches walk_rows(std::vector<RowTensor<scalar_t>>& tensors, std::vector<ListTensor<1, RowLength>> list, double number,
                   const float* fisher_sums) {
  std::vector<ListTensor<2, RowLength>> results;
  int64_t pieces = 0;
  for (size_t t = 0; t < tensors.size(); ++t) {
    RowTensor<scalar_t>& tensor = tensors[t];
    list[t].number = static_cast<uint32_t>(pieces);
    list[t].numel = tensor.rows * math::norm_pieces(tensor.length);
    results.push_back(contiguous<2, RowLength>(tensor.rows, {tensor.result.data(), const_cast<float*>(fisher_sums)},
                                               pieces, {tensor.length}));
    pieces += list[t].numel;
  }
  std::vector<double> values(static_cast<size_t>(pieces), std::nan(""));
  const Launches launches = walk_list<RowPiecesFor<ReductionOf<kResult>, scalar_t>::template With, kVector<scalar_t>>(
      list, RowPiecesSettings{values.data()});
  walk_table<RowResultBody<kResult>>(results, RowResultSettings{values.data(), number});
  return launches;
}

TYPED_TEST(CudaScaleOnHost, NormsRangesAndFisherSumsOfRowsHaveTheCpusBits) {
  using scalar_t = typename TypeParam::model_t;
  const std::vector<std::pair<int64_t, int64_t>> shapes = {
      {1, 1},   {1, 7},    {5, 1},    {300, 1},   {3, 7},    {70, 9},    {64, 27},   {33, 64},
      {17, 65}, {2, 4095}, {3, 4096}, {3, 4097},  {1, 8192}, {2, 8193},  {1, 70001}, {129, 16},
      {0, 1},   {4, 0},    {257, 8},  {5, 12288}, {9, 4100}, {1, 262144}};
  const std::vector<float> fisher_sums = [] {
    std::vector<float> f;
    for (int i = 0; i < 300; ++i) f.push_back(0.5F * static_cast<float>(i % 13));
    return f;
  }();
  for (const int shift : {0, 1}) {
    for (const int mode : {0, 1, 2, 3}) {  // norms, norms divided by F, F, ranges
      std::vector<RowTensor<scalar_t>> tensors;
      std::vector<ListTensor<1, RowLength>> list;
      for (const auto& [rows, length] : shapes) {
        const int64_t n = rows * length;
        RowTensor<scalar_t> tensor{rows,
                                   length,
                                   Memory<scalar_t>(n, static_cast<uint32_t>(n), shift),
                                   std::vector<float>(static_cast<size_t>(rows), 3.0F),
                                   {}};
        for (int64_t row = 0; row < rows; ++row) {
          const scalar_t* values = tensor.memory.data() + row * length;
          const double sum = cpu_row<math::SumOfSquares, TypeParam::model>(values, length);
          const double f = mode == 1 ? static_cast<double>(fisher_sums[static_cast<size_t>(row)]) : 0.0;
          tensor.expected.push_back(
              mode == 3   ? math::row_range(cpu_row<math::LargestMagnitude, TypeParam::model>(values, length))
              : mode == 2 ? math::row_fisher(3.0F, sum, 0.9)
                          : math::row_scale(sum, f, 0.3));
        }
        list.push_back(contiguous<1, RowLength>(n, {tensor.memory.data()}, 0, {length}));
        tensors.push_back(std::move(tensor));
      }
      const Launches launches =
          mode == 3   ? walk_rows<RowResult::range>(tensors, list, 0.0, nullptr)
          : mode == 2 ? walk_rows<RowResult::fisher>(tensors, list, 0.9, nullptr)
                      : walk_rows<RowResult::scale>(tensors, list, 0.3, mode == 1 ? fisher_sums.data() : nullptr);
      EXPECT_EQ(launches.aligned, shift == 0 ? 1 : 0);
      for (const RowTensor<scalar_t>& tensor : tensors) {
        ASSERT_TRUE(std::equal(tensor.result.begin(), tensor.result.end(), tensor.expected.begin(),
                               tensor.expected.end(), same_value<float>))
            << tensor.rows << " rows of " << tensor.length << " shift " << shift << " mode " << mode;
      }
    }
  }
}

TYPED_TEST(CudaScaleOnHost, NormsOfStridedRowsFollowTheLogicalOrder) {
  using scalar_t = typename TypeParam::model_t;
  // (3, 70, 90), transposed within a row: 6300 elements a row, two pieces.
  const int64_t sizes[] = {3, 70, 90}, strides[] = {6300, 1, 70};
  std::vector<RowTensor<scalar_t>> tensors;
  tensors.push_back({3, 6300, Memory<scalar_t>(18900, 4), std::vector<float>(3), {}});
  RowTensor<scalar_t>& tensor = tensors[0];
  for (int64_t row = 0; row < 3; ++row) {
    Memory<scalar_t> flat(6300);
    for (int64_t i = 0; i < 6300; ++i) flat.data()[i] = tensor.memory.data()[row * 6300 + i / 90 + i % 90 * 70];
    tensor.expected.push_back(
        math::row_scale(cpu_row<math::SumOfSquares, TypeParam::model>(flat.data(), 6300), 0.0, 0.0));
  }
  auto entry = contiguous<1, RowLength>(18900, {tensor.memory.data()}, 0, {6300});
  entry.sizes = sizes;
  entry.dim = 3;
  entry.strides[0] = strides;
  const Launches launches = walk_rows<RowResult::scale>(tensors, {entry}, 0.0, nullptr);
  EXPECT_EQ(launches.aligned, 0);
  EXPECT_TRUE(std::equal(tensor.result.begin(), tensor.result.end(), tensor.expected.begin(), tensor.expected.end(),
                         same_value<float>));
}

// What clip_rows of rows.cu does.
template <typename scalar_t>
Launches walk_clip(std::vector<ListTensor<1, RowLength>> list, const std::vector<int64_t>& rows, double weight_clip) {
  std::vector<ListTensor<2, RowLength>> results;
  std::vector<ListTensor<1, RowLength>> clipped = list;
  int64_t pieces = 0, first = 0, count = 0;
  for (const int64_t n : rows) count += n;
  std::vector<double> limits(static_cast<size_t>(count), std::nan(""));
  for (size_t t = 0; t < list.size(); ++t) {
    list[t].number = static_cast<uint32_t>(pieces);
    clipped[t].number = static_cast<uint32_t>(first);
    list[t].numel = clipped[t].numel = rows[t] * math::norm_pieces(list[t].row_length);
    results.push_back(contiguous<2, RowLength>(rows[t], {limits.data() + first, static_cast<double*>(nullptr)}, pieces,
                                               {list[t].row_length}));
    pieces += list[t].numel;
    first += rows[t];
  }
  std::vector<double> values(static_cast<size_t>(pieces), std::nan(""));
  walk_list<RowPiecesFor<math::SumOfSquares, scalar_t>::template With, kVector<scalar_t>>(
      list, RowPiecesSettings{values.data()});
  walk_table<RowResultBody<RowResult::limit>>(results, RowResultSettings{values.data(), weight_clip});
  return walk_list<ClipPiecesFor<scalar_t>::template With, kVector<scalar_t>>(clipped, ClipSettings{limits.data()});
}

TYPED_TEST(CudaScaleOnHost, ClippedRowsHaveTheCpusBits) {
  using scalar_t = typename TypeParam::model_t;
  const std::vector<std::pair<int64_t, int64_t>> shapes = {
      {1, 1},    {1, 7},    {5, 1},    {300, 1},  {3, 7},    {70, 9},   {64, 27}, {33, 64}, {17, 65},
      {2, 4095}, {3, 4096}, {3, 4097}, {1, 8192}, {2, 8193}, {129, 16}, {0, 1},   {257, 8}, {5, 12288}};
  for (const int shift : {0, 1}) {
    std::vector<Memory<scalar_t>> got, expected;
    std::vector<ListTensor<1, RowLength>> list;
    std::vector<int64_t> rows;
    bool any = false;
    for (const auto& [count, length] : shapes) {
      const int64_t n = count * length;
      got.emplace_back(n, static_cast<uint32_t>(n), shift);
      expected.emplace_back(n, static_cast<uint32_t>(n));
      rows.push_back(count);
      list.push_back(contiguous<1, RowLength>(n, {got.back().data()}, 0, {length}));
      for (int64_t row = 0; row < count; ++row) {
        scalar_t* values = expected.back().data() + row * length;
        const double sum = cpu_row<math::SumOfSquares, TypeParam::model>(values, length);
        cpu::kernels().clip[TypeParam::model](math::row_limit(sum, length, 1.1), values, length);
      }
      any |= !same_bits(got.back(), expected.back());
    }
    ASSERT_TRUE(any) << "nothing to clip";
    const Launches launches = walk_clip<scalar_t>(list, rows, 1.1);
    EXPECT_EQ(launches.aligned, shift == 0 ? 1 : 0);
    for (size_t t = 0; t < got.size(); ++t) {
      ASSERT_TRUE(same_bits(got[t], expected[t]))
          << shapes[t].first << " rows of " << shapes[t].second << " shift " << shift;
    }
  }
}

}  // namespace
}  // namespace torch_ssam::cuda
