// Random calls of every list kernel's translation against the CPU's inner loops: several tensors a call, contiguous,
// misaligned or strided, lr from the host, a float or a double, first steps, ascent, with and without weight decay, all
// kinds of both rules; and strided tensors beyond 2^32 elements. TORCH_SSAM_PTX_SEED chooses other calls.
#include "ops/cuda/perturb_body.h"
#include "ops/cuda/update_body.h"
#include "random_operands.h"

namespace torch_ssam::cuda {
namespace {

using math::AdamW;
using math::Distribution;
using math::Scale;

struct RandomNoise {
  // Coarse: noise of +1 or -1 that moves a value of model_t by half of its last bit.
  RandomNoise(Random& random, int digits, const Coarse& coarse) : RandomNoise(random) {
    if (!coarse.on) return;
    settings.distribution = Distribution::rademacher;
    settings.noise_std = std::ldexp(coarse.unit, -digits - static_cast<int>(random.below(3)));
  }
  explicit RandomNoise(Random& random)
      : generator{static_cast<int64_t>(random.engine()), static_cast<int64_t>(random.engine())},
        settings{generator, random.below(5), random.below(1 << 20), kDistributions[random.below(2)],
                 random.coin() ? 0.05 : -3.0} {}
  RandomNoise(const RandomNoise&) = delete;

  cpu::NoiseArgs of(int64_t place, Scale scale) const {
    cpu::NoiseArgs args{math::make_noise_stream(generator[0], math::later_draw(generator[1], settings.draw_offset),
                                                place, settings.sample),
                        settings.distribution, settings.noise_std};
    args.scale = scale;
    args.alone = settings.alone;
    return args;
  }

  int64_t generator[2];
  NoiseSettings settings;
};

template <typename Types>
class RandomCudaLaunches : public testing::Test {};
TYPED_TEST_SUITE(RandomCudaLaunches, Pairs);

template <typename Types, Scale kScale, bool kSave>
void random_perturb(Random& random) {
  using model_t = typename Types::model_t;
  using master_t = std::conditional_t<kSave, model_t, typename Types::master_t>;
  using More = std::conditional_t<kScale == Scale::rows, RowScales, Nothing>;
  const Coarse coarse = maybe_coarse<model_t>(random);
  RandomNoise noise(random, kDigits<model_t>, coarse);
  noise.settings.alone = kScale == Scale::element && !kSave && random.coin();
  const size_t count = 1 + static_cast<size_t>(random.below(4));
  std::vector<Shape> shapes(count);
  std::vector<Operand<model_t>> params;
  std::vector<Operand<master_t>> clean;
  std::vector<std::vector<float>> scales(count);
  std::vector<ListTensor<2, More>> list(count);
  std::vector<std::vector<model_t>> expected(count);
  std::vector<std::vector<master_t>> saved(count);
  for (size_t t = 0; t < count; ++t) {
    shapes[t] = random_shape(random);
    const bool plain = random.coin();
    params.emplace_back(random, shapes[t], plain ? Layout::contiguous : random_layout(random));
    clean.emplace_back(random, shapes[t], plain ? Layout::contiguous : random_layout(random));
    params.back().template coarsen<model_t>(coarse);
    clean.back().template coarsen<model_t>(coarse);
  }
  for (size_t t = 0; t < count; ++t) {
    const int64_t n = shapes[t].numel, place = random.below(int64_t{1} << 32);
    attach(list[t], 0, params[t], shapes[t]);
    attach(list[t], 1, clean[t], shapes[t]);
    list[t].number = static_cast<uint32_t>(place);
    cpu::NoiseArgs args = noise.of(place, kScale);
    if constexpr (kScale == Scale::rows) {
      const int64_t length = 1 + random.below(random.coin() ? 70 : n);
      args.rows = random.coin() ? 1 + random.below(70) : 0;  // where they come again
      for (int64_t row = 0; args.rows != 0 ? row < args.rows : row * length < n; ++row) {
        scales[t].push_back(0.1F + 0.01F * float(random.below(200)));
      }
      args.row_scales = scales[t].data();
      args.row_length = length;
      static_cast<RowScales&>(list[t]) = RowScales(args.row_scales, length, args.rows);
    }
    expected[t] = params[t].values();
    saved[t] = clean[t].values();
    const cpu::Span all{0, n};
    if constexpr (kSave) {
      cpu::kernels().perturb[Types::pair](args, all, expected[t].data(), saved[t].data(), expected[t].data());
    } else {
      cpu::kernels().perturb[Types::pair](args, all, saved[t].data(), nullptr, expected[t].data());
    }
  }
  walk_list<PerturbBody<master_t, model_t, kSave, kScale>::template With, kPerturbLanes<model_t, kScale>>(
      list, PerturbSettings{noise.settings});
  for (size_t t = 0; t < count; ++t) {
    ASSERT_TRUE(params[t].holds(expected[t])) << "params " << t;
    ASSERT_TRUE(clean[t].holds(saved[t])) << "clean " << t;
  }
}

TYPED_TEST(RandomCudaLaunches, Perturb) {
  Random random{std::mt19937_64(random_seed())};
  for (int i = 0; i < random_calls(); ++i) {
    ASSERT_NO_FATAL_FAILURE((random_perturb<TypeParam, Scale::isotropic, false>(random)));
    ASSERT_NO_FATAL_FAILURE((random_perturb<TypeParam, Scale::rows, false>(random)));
    ASSERT_NO_FATAL_FAILURE((random_perturb<TypeParam, Scale::element, false>(random)));
    if constexpr (std::is_same_v<typename TypeParam::master_t, typename TypeParam::model_t>) {
      ASSERT_NO_FATAL_FAILURE((random_perturb<TypeParam, Scale::isotropic, true>(random)));
      ASSERT_NO_FATAL_FAILURE((random_perturb<TypeParam, Scale::rows, true>(random)));
      ASSERT_NO_FATAL_FAILURE((random_perturb<TypeParam, Scale::element, true>(random)));
    }
  }
}

// Coarse: factors that are powers of two, so that sums of values of few bits have few more.
Sgd random_rule(Random& random, Sgd::Kind kind, bool coarse) {
  if (coarse) {
    return {random.coin() ? 0.5 : 0.25,
            kind == Sgd::Kind::plain ? 0.0 : 0.5,
            kind == Sgd::Kind::heavy_ball && random.coin() ? 0.5 : 0.0,
            random.coin() ? 0.0 : 0.25,
            kind == Sgd::Kind::nesterov,
            random.below(4) == 0};
  }
  const double momentum = kind == Sgd::Kind::plain ? 0.0 : 0.1 * static_cast<double>(1 + random.below(9));
  return {0.37,
          momentum,
          kind == Sgd::Kind::heavy_ball && random.coin() ? 0.3 : 0.0,
          random.coin() ? 0.0 : 1e-2,
          kind == Sgd::Kind::nesterov,
          random.below(4) == 0};
}
AdamW random_rule(Random& random, AdamW::Kind kind, bool coarse) {
  if (coarse) {
    return {0.5,
            0.5,
            random.coin() ? 0.5 : 0.75,
            1e-8,
            random.coin() ? 0.0 : 0.25,
            kind == AdamW::Kind::amsgrad,
            random.below(4) == 0};
  }
  return {0.01,
          random.coin() ? 0.9 : 0.0,
          random.coin() ? 0.999 : 0.5,
          random.coin() ? 1e-8 : 1e-2,
          random.coin() ? 0.0 : 0.1,
          kind == AdamW::Kind::amsgrad,
          random.below(4) == 0};
}

// What an update is followed by in its pass.
enum class Then : int { nothing, noise, noise_by_element };

template <typename Types, typename Rule, typename Rule::Kind kKind, Then kThen>
void random_update(Random& random) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using math_t = typename Types::math_t;
  constexpr bool kNoisy = kThen != Then::nothing;
  constexpr int kMost = math::kMostBuffers<Rule>, kBuffers = Rule::buffers_of(kKind), kOperands = 2 + kMost + kNoisy;
  const Coarse coarse = maybe_coarse<model_t>(random);
  RandomNoise noise(random, kDigits<model_t>, coarse);
  Rule rule = random_rule(random, kKind, coarse.on);
  const int64_t step = 1 + random.below(3);
  double lr = rule.lr;
  Numbers numbers;
  const Number lr_number = numbers.make(random, lr);
  rule.lr = lr;
  Rule without_lr = rule;
  without_lr.lr = 0.0;
  const size_t count = 1 + static_cast<size_t>(random.below(3));
  std::vector<Shape> shapes(count);
  std::vector<Operand<master_t>> clean, buffers;  // kMost buffers a tensor
  std::vector<Operand<model_t>> grad, params;
  std::vector<ListTensor<kOperands>> list(count);
  for (size_t t = 0; t < count; ++t) {
    shapes[t] = random_shape(random);
    const bool plain = random.coin();
    const auto layout = [&] { return plain ? Layout::contiguous : random_layout(random); };
    clean.emplace_back(random, shapes[t], layout());
    grad.emplace_back(random, shapes[t], layout());
    params.emplace_back(random, shapes[t], layout());
    clean.back().template coarsen<model_t>(coarse);
    grad.back().template coarsen<model_t>(coarse);
    for (int b = 0; b < kMost; ++b) {
      buffers.emplace_back(random, shapes[t], b < kBuffers ? layout() : Layout::contiguous);
      buffers.back().template coarsen<model_t>(coarse);
      if (b > 0) buffers.back().make_nonnegative();  // of squares
    }
  }
  std::vector<std::vector<master_t>> clean_cpu(count), buffers_cpu(count * kMost);
  std::vector<std::vector<model_t>> params_cpu(count);
  const auto& loops = cpu::kernels().rules.of<Rule>();
  for (size_t t = 0; t < count; ++t) {
    attach(list[t], 0, clean[t], shapes[t]);
    attach(list[t], 1, grad[t], shapes[t]);
    if constexpr (kNoisy) attach(list[t], kOperands - 1, params[t], shapes[t]);
    list[t].number = static_cast<uint32_t>(random.engine());
    clean_cpu[t] = clean[t].values();
    params_cpu[t] = params[t].values();
    void* pointers[kMost] = {};
    for (int b = 0; b < kMost; ++b) {
      const size_t at = t * kMost + static_cast<size_t>(b);
      buffers_cpu[at] = buffers[at].values();
      if (b >= kBuffers) continue;
      attach(list[t], 2 + b, buffers[at], shapes[t]);
      pointers[b] = buffers_cpu[at].data();
    }
    const std::vector<model_t> g = grad[t].values();
    const cpu::Span all{0, shapes[t].numel};
    if constexpr (kNoisy) {
      const auto args = noise.of(list[t].number, kThen == Then::noise ? Scale::isotropic : Scale::element);
      loops.update_and_perturb[Types::pair](rule, step, args, all, clean_cpu[t].data(), g.data(), pointers,
                                            params_cpu[t].data());
    } else {
      loops.update[Types::pair](rule, step, all, clean_cpu[t].data(), g.data(), pointers);
    }
  }
  const UpdateSettings<Rule, math_t> settings{Rule::template params<math_t>(without_lr, step), kKind, lr_number};
  if constexpr (kThen == Then::nothing) {
    walk_list<UpdateBody<Rule, kKind, master_t, model_t, false>::template With, kUpdateLanes<model_t, false>>(list,
                                                                                                              settings);
  } else {
    const UpdateAndPerturbSettings<Rule, math_t> both{settings, noise.settings};
    constexpr int kLanes = kUpdateLanes<model_t, true>;
    if constexpr (kThen == Then::noise) {
      walk_list<UpdateBody<Rule, kKind, master_t, model_t, true>::template With, kLanes>(list, both);
    } else {
      walk_list<UpdateByElementBody<Rule, master_t, model_t>::template With, kLanes>(list, both);
    }
  }
  for (size_t t = 0; t < count; ++t) {
    ASSERT_TRUE(clean[t].holds(clean_cpu[t])) << "clean " << t;
    ASSERT_TRUE(params[t].holds(params_cpu[t])) << "params " << t;
    for (size_t b = t * kMost; b < (t + 1) * kMost; ++b)
      ASSERT_TRUE(buffers[b].holds(buffers_cpu[b])) << "buffer " << b;
  }
}

template <typename Types, typename Rule, typename Rule::Kind kKind>
void random_updates(Random& random) {
  ASSERT_NO_FATAL_FAILURE((random_update<Types, Rule, kKind, Then::nothing>(random)));
  ASSERT_NO_FATAL_FAILURE((random_update<Types, Rule, kKind, Then::noise>(random)));
  ASSERT_NO_FATAL_FAILURE((random_update<Types, Rule, kKind, Then::noise_by_element>(random)));
}

TYPED_TEST(RandomCudaLaunches, UpdatesOfSgd) {
  Random random{std::mt19937_64(random_seed() + 1)};
  for (int i = 0; i < random_calls(); ++i) {
    ASSERT_NO_FATAL_FAILURE((random_updates<TypeParam, Sgd, Sgd::Kind::plain>(random)));
    ASSERT_NO_FATAL_FAILURE((random_updates<TypeParam, Sgd, Sgd::Kind::heavy_ball>(random)));
    ASSERT_NO_FATAL_FAILURE((random_updates<TypeParam, Sgd, Sgd::Kind::nesterov>(random)));
  }
}

TYPED_TEST(RandomCudaLaunches, UpdatesOfAdamW) {
  Random random{std::mt19937_64(random_seed() + 2)};
  for (int i = 0; i < random_calls(); ++i) {
    ASSERT_NO_FATAL_FAILURE((random_updates<TypeParam, AdamW, AdamW::Kind::plain>(random)));
    ASSERT_NO_FATAL_FAILURE((random_updates<TypeParam, AdamW, AdamW::Kind::amsgrad>(random)));
  }
}

// The row of `inner` elements that lies so far in a tensor whose huge dimension has stride 0.
template <typename Types, Scale kScale>
void check_far_row(int64_t row, int64_t inner, bool many_dimensions) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using More = std::conditional_t<kScale == Scale::rows, RowScales, Nothing>;
  using Body = typename PerturbBody<master_t, model_t, false, kScale>::template With<1>;
  Memory<master_t> clean(inner, 1);
  Memory<model_t> got(inner, 2), expected(inner, 2);
  const float scale = 0.625F;
  const float* const scales = &scale - row;
  cpu::NoiseArgs args = noise_args(Distribution::gaussian);
  args.scale = kScale;
  args.row_scales = scales;
  args.row_length = inner;
  const int64_t begin = row * inner;
  cpu::kernels().perturb[Types::pair](args, {begin, inner}, clean.data(), nullptr, expected.data());
  const int64_t two[] = {int64_t{1} << 50, inner}, two_strides[] = {0, 1};
  const int64_t nine[] = {1 << 10, 3, (int64_t{1} << 33) + 1, 1, 1, 1, 1, 1, inner};
  const int64_t nine_strides[] = {0, 0, 0, 7, 7, 7, 7, 7, 1};
  ListTensor<2, More> tensor = contiguous<2, More>(begin + inner, {got.data(), clean.data()});
  if constexpr (kScale == Scale::rows) {
    static_cast<RowScales&>(tensor) = RowScales(scales, inner);
  }
  tensor.sizes = many_dimensions ? nine : two;
  tensor.dim = many_dimensions ? 9 : 2;
  for (const int64_t*& strides : tensor.strides) strides = many_dimensions ? nine_strides : two_strides;
  const auto launch = [&](const auto& table, int64_t blocks) {
    walk<Body>({{noise_settings(Distribution::gaussian)}, table}, blocks);
  };
  TableBuilder<typename Body::TableType, decltype(launch)> builder(Body::kAlign, Body::kSpan, launch);
  builder.add(tensor, begin, begin + inner);
  builder.flush();
  ASSERT_TRUE(same_bits(got, expected)) << "row " << row << " of " << inner;
}

TYPED_TEST(RandomCudaLaunches, StridedElementsBeyondTwoToTheThirtyTwo) {
  for (const int64_t row : {int64_t{3}, (int64_t{1} << 26) - 1, int64_t{1} << 32, (int64_t{1} << 40) + 12345}) {
    for (const int64_t inner : {1, 5, 64, 333, 2048}) {
      for (const bool many : {false, true}) {
        ASSERT_NO_FATAL_FAILURE((check_far_row<TypeParam, Scale::isotropic>(row, inner, many)));
        ASSERT_NO_FATAL_FAILURE((check_far_row<TypeParam, Scale::rows>(row, inner, many)));
        ASSERT_NO_FATAL_FAILURE((check_far_row<TypeParam, Scale::element>(row, inner, many)));
      }
    }
  }
}

}  // namespace
}  // namespace torch_ssam::cuda
