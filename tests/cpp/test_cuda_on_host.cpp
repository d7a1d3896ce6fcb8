// The bodies of the CUDA kernels over lists, run on the host by walking their launch grid, bit for bit against the CPU
// inner loops: every size round a boundary, aligned and not, strided, all pairs of dtypes, lists longer than a launch.
// What this cannot see is the GPU itself: tests/python/test_cuda.py is for that. Scaled noise and norms of
// rows: test_cuda_scale_on_host.cpp. Diagonal product: test_cuda_diagonal_on_host.cpp.
#include "cuda_list_host.h"
#include "math/reduce.h"
#include "ops/cuda/perturb_body.h"
#include "ops/cuda/project_body.h"

namespace torch_ssam::cuda {
namespace {

using math::Distribution;

template <typename Types>
class CudaOnHost : public ::testing::Test {};
TYPED_TEST_SUITE(CudaOnHost, Pairs);

TYPED_TEST(CudaOnHost, PerturbFromCleanMatchesTheCpuAtEverySizeAndAlignment) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  for (const Distribution distribution : kDistributions) {
    for (const int64_t n : kSizes) {
      for (const int shift : {0, 1, 3}) {
        Memory<master_t> clean(n, 1, shift);
        Memory<model_t> got(n, 2, shift == 3 ? 0 : shift), expected(n, 2);
        cpu::kernels().perturb[TypeParam::pair](noise_args(distribution), {0, n}, clean.data(), nullptr,
                                                expected.data());
        walk_list<PerturbBody<master_t, model_t, false>::template With, kLanesOwned<model_t>>(
            std::vector{contiguous<2>(n, {got.data(), clean.data()})}, PerturbSettings{noise_settings(distribution)});
        ASSERT_TRUE(same_bits(got, expected)) << "n " << n << " shift " << shift;
      }
    }
  }
}

TYPED_TEST(CudaOnHost, PerturbSavesTheCleanWeights) {
  using scalar_t = typename TypeParam::model_t;
  if (sizeof(scalar_t) != sizeof(typename TypeParam::master_t)) {
    SUCCEED() << "saving is between equal dtypes, which the other pairs cover";
    return;
  }
  constexpr int pair = TypeParam::pair;
  for (const Distribution distribution : kDistributions) {
    for (const int64_t n : kSizes) {
      for (const int shift : {0, 1}) {
        Memory<scalar_t> params(n, 1, shift), saved(n, 2, shift), params_cpu(n, 1), saved_cpu(n, 2);
        cpu::kernels().perturb[pair](noise_args(distribution), {0, n}, params_cpu.data(), saved_cpu.data(),
                                     params_cpu.data());
        walk_list<PerturbBody<scalar_t, scalar_t, true>::template With, kLanesOwned<scalar_t>>(
            std::vector{contiguous<2>(n, {params.data(), saved.data()})},
            PerturbSettings{noise_settings(distribution)});
        ASSERT_TRUE(same_bits(params, params_cpu)) << "n " << n << " shift " << shift;
        ASSERT_TRUE(same_bits(saved, saved_cpu)) << "n " << n << " shift " << shift;
      }
    }
  }
}

// Runs one kind of update, with or without the next noise, on the CPU and on the walked grid.
template <typename Types, Kind kKind, bool kPerturb>
void check_update(int64_t n, int shift, Distribution distribution, bool first_step) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using math_t = typename Types::math_t;
  const cpu::Update update = update_of(kKind, /*maximize=*/first_step, first_step);
  constexpr bool kBuffer = kKind != Kind::plain;
  Memory<master_t> clean(n, 1, shift), clean_cpu(n, 1), buffer(n, 2, shift), buffer_cpu(n, 2);
  Memory<model_t> grad(n, 3, shift), params(n, 4, shift), params_cpu(n, 4);
  void* const v_cpu = kBuffer ? buffer_cpu.data() : nullptr;
  if constexpr (kPerturb) {
    cpu::update_and_perturb(cpu::kernels(), Types::pair, update, noise_args(distribution), {0, n}, clean_cpu.data(),
                            grad.data(), v_cpu, params_cpu.data());
  } else {
    cpu::update(cpu::kernels(), Types::pair, update, {0, n}, clean_cpu.data(), grad.data(), v_cpu);
  }
  // lr comes from memory, as a float or a double.
  const float lr_float = 0.1F;
  const double lr_double = 0.1;
  UpdateSettings<Sgd, math_t> settings = settings_of<math_t>(update);
  settings.lr = std::is_same_v<math_t, float> ? Number{&lr_float, false, 0.0} : Number{&lr_double, true, 0.0};
  void* v = kBuffer ? buffer.data() : nullptr;
  if constexpr (kPerturb) {
    walk_list<UpdateBody<Sgd, kKind, master_t, model_t, true>::template With, kUpdateLanes<model_t, true>>(
        std::vector{contiguous<4>(n, {clean.data(), grad.data(), v, params.data()})},
        UpdateAndPerturbSettings<Sgd, math_t>{settings, noise_settings(distribution)});
  } else {
    walk_list<UpdateBody<Sgd, kKind, master_t, model_t, false>::template With, kUpdateLanes<model_t, false>>(
        std::vector{contiguous<3>(n, {clean.data(), grad.data(), v})}, settings);
  }
  ASSERT_TRUE(same_bits(clean, clean_cpu)) << "n " << n << " shift " << shift;
  ASSERT_TRUE(same_bits(buffer, buffer_cpu)) << "n " << n << " shift " << shift;
  ASSERT_TRUE(same_bits(params, params_cpu)) << "n " << n << " shift " << shift;
}

template <typename Types, bool kPerturb>
void check_updates() {
  for (const int64_t n : kSizes) {
    for (const int shift : {0, 1}) {
      const bool first = n % 2 == 0;
      const Distribution d = kDistributions[n % 3 == 0];
      check_update<Types, Kind::plain, kPerturb>(n, shift, d, first);
      check_update<Types, Kind::heavy_ball, kPerturb>(n, shift, d, first);
      check_update<Types, Kind::heavy_ball, kPerturb>(n, shift, d, !first);
      check_update<Types, Kind::nesterov, kPerturb>(n, shift, d, first);
      check_update<Types, Kind::nesterov, kPerturb>(n, shift, d, !first);
    }
  }
}

TYPED_TEST(CudaOnHost, UpdateMatchesTheCpuForEveryKind) { check_updates<TypeParam, false>(); }
TYPED_TEST(CudaOnHost, UpdateAndPerturbMatchesTheCpuForEveryKind) { check_updates<TypeParam, true>(); }

TYPED_TEST(CudaOnHost, AListOfAnyLengthAndMixOfSizesTakesFewLaunches) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  std::vector<Memory<master_t>> clean;
  std::vector<Memory<model_t>> got, expected;
  std::vector<ListTensor<2>> list;
  for (int t = 0; t < 700; ++t) {
    const int64_t n = t % 7 == 0 ? 8 * t : (t * 37) % 300;
    const int shift = t % 11 == 0 ? 1 : 0;
    clean.emplace_back(n, t, shift);
    got.emplace_back(n, t + 1, shift);
    expected.emplace_back(n, t + 1);
    list.push_back(contiguous<2>(n, {got.back().data(), clean.back().data()}, t));
    cpu::kernels().perturb[TypeParam::pair](noise_args(Distribution::gaussian, t), {0, n}, clean.back().data(), nullptr,
                                            expected.back().data());
  }
  const Launches launches = walk_list<PerturbBody<master_t, model_t, false>::template With, kLanesOwned<model_t>>(
      list, PerturbSettings{noise_settings(Distribution::gaussian)});
  for (size_t t = 0; t < got.size(); ++t) ASSERT_TRUE(same_bits(got[t], expected[t])) << "tensor " << t;
  EXPECT_LE(launches.aligned, 2);
  EXPECT_LE(launches.any, 4);
}

TEST(CudaTables, TwelveOrFiveHundredAlignedTensorsAreOneLaunch) {
  for (const size_t count : {12U, 500U}) {
    Memory<float> memory(2048, 1);
    const std::vector<ListTensor<2>> list(count, contiguous<2>(1024, {memory.data(), memory.data() + 1024}));
    const Launches launches = walk_list<RestoreBody<uint32_t>::With, kLanesOwned<uint32_t>>(list, RestoreSettings{});
    EXPECT_EQ(launches.aligned, 1) << count;
    EXPECT_EQ(launches.any, 0) << count;
  }
}

TYPED_TEST(CudaOnHost, StridedTensorsFollowTheirLogicalOrder) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  using math_t = typename TypeParam::math_t;
  // (3, 5, 7, 4) with the second dimension innermost for weights and reversed order for gradients; the rest contiguous.
  const int64_t sizes[] = {3, 5, 7, 4};
  const int64_t channels_last[] = {140, 1, 20, 5}, reversed[] = {1, 3, 15, 105};
  const int64_t n = 420;
  Memory<master_t> clean(n, 1), buffer(n, 2), clean_flat(n, 1), buffer_flat(n, 2);
  Memory<model_t> grad(n, 3), params(n, 4), grad_flat(n, 3), params_flat(n, 4);
  std::vector<int64_t> at_clean, at_grad;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t index[] = {i / 140, i / 28 % 5, i / 4 % 7, i % 4};
    at_clean.push_back(std::inner_product(index, index + 4, channels_last, int64_t{0}));
    at_grad.push_back(std::inner_product(index, index + 4, reversed, int64_t{0}));
    clean_flat.data()[i] = clean.data()[at_clean.back()];
    grad_flat.data()[i] = grad.data()[at_grad.back()];
  }
  const cpu::Update update = update_of(Kind::heavy_ball, false, false);
  cpu::update_and_perturb(cpu::kernels(), TypeParam::pair, update, noise_args(Distribution::gaussian), {0, n},
                          clean_flat.data(), grad_flat.data(), buffer_flat.data(), params_flat.data());
  ListTensor<4> tensor = contiguous<4>(n, {clean.data(), grad.data(), buffer.data(), params.data()});
  tensor.sizes = sizes;
  tensor.dim = 4;
  tensor.strides[0] = channels_last;
  tensor.strides[1] = reversed;
  tensor.strides[3] = channels_last;
  const Launches launches =
      walk_list<UpdateBody<Sgd, Kind::heavy_ball, master_t, model_t, true>::template With, kUpdateLanes<model_t, true>>(
          std::vector{tensor},
          UpdateAndPerturbSettings<Sgd, math_t>{settings_of<math_t>(update), noise_settings(Distribution::gaussian)});
  EXPECT_EQ(launches.aligned, 0);
  Memory<master_t> clean_back(n);
  Memory<model_t> params_back(n);
  for (int64_t i = 0; i < n; ++i) {
    clean_back.data()[i] = clean.data()[at_clean[static_cast<size_t>(i)]];
    params_back.data()[i] = params.data()[at_clean[static_cast<size_t>(i)]];
  }
  EXPECT_TRUE(same_bits(clean_back, clean_flat));
  EXPECT_TRUE(same_bits(params_back, params_flat));
  EXPECT_TRUE(same_bits(buffer, buffer_flat));
}

// A launch over the elements [begin, begin + n) of a tensor of which no more is in memory.
template <typename Types, int kCount>
void check_far_elements(Distribution distribution, int64_t begin, int64_t n) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using Body = typename PerturbBody<master_t, model_t, false>::template With<kCount>;
  Memory<master_t> clean(n, 1);
  Memory<model_t> got(n, 2), expected(n, 2);
  cpu::kernels().perturb[Types::pair](noise_args(distribution), {begin, n}, clean.data(), nullptr, expected.data());
  const auto shifted = [&](void* p, int64_t size) {
    return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) - static_cast<uintptr_t>(begin * size));
  };
  const auto tensor =
      contiguous<2>(begin + n, {shifted(got.data(), sizeof(model_t)), shifted(clean.data(), sizeof(master_t))});
  const auto launch = [&](const auto& table, int64_t blocks) {
    walk<Body>({{noise_settings(distribution)}, table}, blocks);
  };
  TableBuilder<typename Body::TableType, decltype(launch)> builder(Body::kAlign, Body::kSpan, launch);
  builder.add(tensor, begin, begin + n);
  builder.flush();
  ASSERT_TRUE(same_bits(got, expected)) << "begin " << begin << " lanes " << kCount;
}

TYPED_TEST(CudaOnHost, ElementsBeyondTwoToTheThirtyOneHaveTheirOwnNoise) {
  for (const Distribution distribution : kDistributions) {
    // Where counters carry into their high word: 2^34 for Gaussian noise, 2^39 for Rademacher noise.
    for (const int64_t start : {int64_t{1} << 31, int64_t{1} << 32, int64_t{1} << 34, int64_t{1} << 39}) {
      check_far_elements<TypeParam, kLanesOwned<typename TypeParam::model_t>>(distribution, start - 512, 1024);
      check_far_elements<TypeParam, 1>(distribution, start - 509, 1021);
    }
  }
}

TYPED_TEST(CudaOnHost, StridedTensorsBeyondThePoolOfShapesTakeAnotherLaunch) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  // (2, 1, 3, 1, 5) with the last dimension outermost: 16 numbers of the pool's 2048 each.
  const int64_t sizes[] = {2, 1, 3, 1, 5}, strides[] = {3, 3, 1, 1, 6};
  const int64_t n = 30;
  std::vector<Memory<master_t>> clean;
  std::vector<Memory<model_t>> got;
  std::vector<ListTensor<2>> list;
  for (int t = 0; t < 150; ++t) {
    clean.emplace_back(n, t);
    got.emplace_back(n, t + 1);
    list.push_back(contiguous<2>(n, {got.back().data(), clean.back().data()}, t));
    list.back().sizes = sizes;
    list.back().dim = 5;
    list.back().strides[0] = strides;
  }
  const Launches launches = walk_list<PerturbBody<master_t, model_t, false>::template With, kLanesOwned<model_t>>(
      list, PerturbSettings{noise_settings(Distribution::gaussian)});
  EXPECT_EQ(launches.aligned, 0);
  EXPECT_EQ(launches.any, 2);
  for (int t = 0; t < 150; ++t) {
    Memory<model_t> flat(n), expected(n);
    cpu::kernels().perturb[TypeParam::pair](noise_args(Distribution::gaussian, t), {0, n}, clean[t].data(), nullptr,
                                            flat.data());
    for (int64_t i = 0; i < n; ++i) expected.data()[i / 15 * 3 + i / 5 % 3 + i % 5 * 6] = flat.data()[i];
    ASSERT_TRUE(same_bits(got[t], expected)) << "tensor " << t;
  }
}

TYPED_TEST(CudaOnHost, ProjectionScalesByTheCpusFactorOrNotAtAll) {
  using scalar_t = typename TypeParam::model_t;
  constexpr int dtype = TypeParam::model;
  const std::vector<int64_t> sizes = {1, 15, 4096, 4097, 12288, 70001, 0, 17, 8192 * 40};
  for (const int shift : {0, 1}) {
    std::vector<Memory<scalar_t>> got, expected;
    std::vector<ListTensor<1>> list;
    std::vector<double> sums;
    for (const int64_t n : sizes) {
      got.emplace_back(n, static_cast<uint32_t>(n), shift);
      expected.emplace_back(n, static_cast<uint32_t>(n));
      list.push_back(contiguous<1>(n, {got.back().data()}, static_cast<int64_t>(sums.size())));
      for (int64_t at = 0; at < n; at += math::kNormPiece) {
        sums.push_back(
            cpu::kernels().sum_of_squares[dtype](expected.back().data() + at, std::min(math::kNormPiece, n - at)));
      }
    }
    double total = 0.0;
    for (const double sum : sums) total += sum;
    // The first radius is beyond all weights and moves nothing; the second scales.
    for (const double radius : {1e6, 1.0}) {
      std::vector<double> lanes(sums.size() * static_cast<size_t>(math::kLanes), -1.0);
      math::Projection projection{};
      const auto pieces = static_cast<int64_t>(sums.size());
      walk_list<SquaresFor<scalar_t>::template With, kVector<scalar_t>>(list, SquaresSettings{lanes.data()});
      walk<ProjectionBody>({lanes.data(), pieces, radius, &projection}, 1);
      // The same in two sums, and a projection by what they come to.
      double sum = 0.0;
      math::Projection apart{};
      for (const auto& [from, count] : {std::pair<int64_t, int64_t>{0, 3}, {3, pieces - 3}}) {
        walk<ProjectionBody>({lanes.data() + from * math::kLanes, count, 0.0, nullptr, &sum, &sum}, 1);
      }
      walk<ProjectionBody>({nullptr, 0, radius, &apart, &sum}, 1);
      EXPECT_TRUE(same_value(sum, total));
      EXPECT_EQ(apart.outside, projection.outside);
      EXPECT_TRUE(same_value(apart.factor, projection.factor));
      const math::Projection wanted = math::make_projection(total, radius);
      EXPECT_EQ(projection.outside, wanted.outside);
      EXPECT_TRUE(same_value(projection.factor, wanted.factor));
      walk_list<ScaleBody<scalar_t>::template With, kLanesOwned<scalar_t>>(list, ScaleSettings{&projection});
      for (size_t t = 0; t < sizes.size(); ++t) {
        if (wanted.outside) cpu::kernels().scale[dtype](wanted.factor, expected[t].data(), sizes[t]);
        ASSERT_TRUE(same_bits(got[t], expected[t])) << "tensor " << t << " radius " << radius;
      }
    }
  }
}

TYPED_TEST(CudaOnHost, RestoreCopiesEveryBit) {
  using scalar_t = typename TypeParam::model_t;
  using bits_t = std::conditional_t<sizeof(scalar_t) == 8, uint64_t,
                                    std::conditional_t<sizeof(scalar_t) == 4, uint32_t, uint16_t>>;
  for (const int64_t n : kSizes) {
    for (const int shift : {0, 1}) {
      Memory<scalar_t> clean(n, 1, shift), params(n, 2);
      walk_list<RestoreBody<bits_t>::template With, kLanesOwned<bits_t>>(
          std::vector{contiguous<2>(n, {params.data(), clean.data()})}, RestoreSettings{});
      ASSERT_TRUE(same_bits(params, clean)) << "n " << n;
    }
  }
}

TYPED_TEST(CudaOnHost, RoundMatchesTheCpu) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
#if defined(TORCH_SSAM_PTX)
  if (std::is_same_v<master_t, model_t>) GTEST_SKIP() << "no such kernel: between equal dtypes restore_ copies";
#endif
  for (const int64_t n : kSizes) {
    for (const int shift : {0, 1}) {
      Memory<master_t> clean(n, 1, shift);
      Memory<model_t> got(n, 2, shift), expected(n, 3);
      walk_list<RoundBody<master_t, model_t>::template With, kLanesOwned<model_t>>(
          std::vector{contiguous<2>(n, {got.data(), clean.data()})}, RoundSettings{});
      cpu::kernels().round[TypeParam::pair](clean.data(), expected.data(), n);
      ASSERT_TRUE(same_bits(got, expected)) << "n " << n << " shift " << shift;
    }
  }
}

TYPED_TEST(CudaOnHost, FollowMatchesTheCpu) {
  using master_t = typename TypeParam::master_t;
  using model_t = typename TypeParam::model_t;
  for (const int64_t n : kSizes) {
    for (const int shift : {0, 1}) {
      Memory<master_t> got(n, 1, shift), expected(n, 1);
      Memory<model_t> params(n, 2, shift);
      const Memory<model_t> written(n, 3);
      cpu::kernels().round[TypeParam::pair](got.data(), params.data(), n);
      for (int64_t i = 0; i < n; i += 7) params.data()[i] = written.data()[i];
      walk_list<FollowBody<master_t, model_t>::template With, kLanesOwned<model_t>>(
          std::vector{contiguous<2>(n, {got.data(), params.data()})}, FollowSettings{});
      cpu::kernels().follow[TypeParam::pair](expected.data(), params.data(), n);
      ASSERT_TRUE(same_bits(got, expected)) << "n " << n << " shift " << shift;
    }
  }
}

TEST(CudaAdvance, MovesTheDrawOnce) {
  int64_t generator[2] = {11, 41};
  walk<AdvanceBody>({generator, 3}, 2);
  EXPECT_EQ(generator[0], 11);
  EXPECT_EQ(generator[1], 44);
}

}  // namespace
}  // namespace torch_ssam::cuda
