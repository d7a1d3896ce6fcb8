// AdamW (csrc/math/rules/adamw.h): beta^t and the update of an element against long double within a stated error and on
// small dyadic numbers exactly; its loops on every instruction set and the bodies of its CUDA kernels, walked on the
// host, bit for bit against the plain loops; update and noise in one pass against two.
// A variant that this processor lacks is skipped, and says so.
#include <cmath>
#include <random>

#include "cuda_list_host.h"
#include "math/stored.h"
#include "precision.h"

namespace torch_ssam {
namespace {

using math::AdamW;
using math::Distribution;
using Kind = AdamW::Kind;

// --- beta^t.

TEST(PowerTest, IsWithinAnUlpOfLongDoubleAndZeroWhereItIsNothing) {
  if (!long_double_is_finer<double>()) GTEST_SKIP() << "NOT TESTED here: long double is no finer than double";
  const int64_t steps[] = {1, 2, 3, 7, 10, 63, 100, 999, 1000, 4097, 10000, 123457, 1000000, int64_t{1} << 40};
  for (const double beta : {0.1, 0.5, 0.9, 0.95, 0.98, 0.999, 0.9999, 1.0 - 0x1p-40, 1.0 - 0x1p-53}) {
    for (const int64_t step : steps) {
      const long double exact = std::pow(static_cast<long double>(beta), static_cast<long double>(step));
      const double got = math::power(beta, step);
      if (exact < 0x1p-490L) {
        ASSERT_LT(got, 0x1p-490) << beta << " " << step;
      } else {
        ASSERT_LE(std::fabs(got - exact), 0x1.01p-53L * exact) << beta << " " << step;
      }
    }
  }
}

TEST(PowerTest, IsExactAtItsEndsAndOnPowersOfTwo) {
  EXPECT_EQ(math::power(0.0, 0), 1.0);
  EXPECT_EQ(math::power(0.0, 1), 0.0);
  EXPECT_EQ(math::power(0.0, 1000), 0.0);
  EXPECT_EQ(math::power(0.999, 0), 1.0);
  EXPECT_EQ(math::power(0.999, 1), 0.999);
  EXPECT_EQ(math::power(0.5, 40), 0x1p-40);
  EXPECT_EQ(math::power(0.75, 3), 0.421875);
  EXPECT_EQ(math::power(1.0 - 0x1p-53, INT64_MAX), 0.0);
}

// --- one element.

template <typename real_t>
class AdamWTest : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(AdamWTest, Reals);

TYPED_TEST(AdamWTest, EachLineOfTheFormulaIsWithinItsRoundingsOfLongDouble) {
  using real_t = TypeParam;
  if (!long_double_is_finer<real_t>()) GTEST_SKIP() << "NOT TESTED here: long double is no finer than double";
  const long double ulp = std::numeric_limits<real_t>::epsilon();
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  for (const double beta1 : {0.9, 0.6, 0.5, 0.1, 0.0}) {
    for (const int64_t step : {1, 2, 1000, 100000}) {
      for (const bool amsgrad : {false, true}) {
        const AdamW rule{0.01, beta1, 0.999, 1e-8, 0.1, amsgrad, step == 2};
        const auto p = AdamW::params<real_t>(rule, step);
        for (int i = 0; i < 500; ++i) {
          const auto w = static_cast<real_t>(normal(random)), grad = static_cast<real_t>(normal(random));
          const auto m = static_cast<real_t>(normal(random));
          const auto v = static_cast<real_t>(std::fabs(normal(random)));
          const auto most = static_cast<real_t>(std::fabs(normal(random)));
          real_t buffers[] = {m, v, most};
          const real_t updated = amsgrad ? AdamW::update_element<Kind::amsgrad>(w, grad, buffers, p)
                                         : AdamW::update_element<Kind::plain>(w, grad, buffers, p);
          const long double g = rule.maximize ? -grad : grad;
          // From the numbers of the call; those that elements share are rounded once. beta^t is a double, as in torch.
          const long double b1 = rule.beta1, b2 = rule.beta2;
          ASSERT_LE(std::fabs(buffers[0] - (b1 * m + (1 - b1) * g)),
                    2 * ulp * (b1 * std::fabs(m) + (1 - b1) * std::fabs(g) + std::fabs(g - m) * std::min(b1, 1 - b1)));
          ASSERT_LE(std::fabs(buffers[1] - (b2 * v + (1 - b2) * g * g)), 2 * ulp * (v + g * g));
          ASSERT_EQ(buffers[2], amsgrad ? std::max(most, buffers[1]) : most);
          const long double x = amsgrad ? buffers[2] : buffers[1];
          const long double rate = rule.lr / (1.0L - math::power(beta1, step));
          const long double root = std::sqrt(x) / std::sqrt(1.0L - math::power(rule.beta2, step));
          const long double moved = rate * buffers[0] / (root + rule.eps);
          const long double decayed = (1 - static_cast<long double>(rule.lr) * rule.weight_decay) * w;
          ASSERT_LE(std::fabs(updated - (decayed - moved)), 2 * ulp * (std::fabs(decayed) + 2 * std::fabs(moved)));
          ASSERT_NE(updated, w);
        }
      }
    }
  }
}

TYPED_TEST(AdamWTest, IsExactOnSmallDyadicNumbers) {
  // g = -(-4) = 4; m = 0.5 * 0 + 0.5 * 4 = 2; v = 0.75 * 0 + 0.25 * 16 = 4; 1 - beta2 = 0.25, so sqrt(4) / 0.5 + 4 = 8;
  // w = (1 - 0.5 * 0.5) 8 - 0.5 / 0.5 * 2 / 8 = 5.75.
  TypeParam buffers[] = {0, 0, 0};
  const auto p = AdamW::params<TypeParam>({0.5, 0.5, 0.75, 4.0, 0.5, false, true}, 1);
  EXPECT_EQ(AdamW::update_element<Kind::plain>(TypeParam(8), TypeParam(-4), buffers, p), TypeParam(5.75));
  EXPECT_EQ(buffers[0], TypeParam(2));
  EXPECT_EQ(buffers[1], TypeParam(4));
  // The largest so far is 64: sqrt(64) / 0.5 + 4 = 20; m = 0.75 * 8 + 0.25 * 16 = 10; w = 8 - 2 * 10 / 20.
  TypeParam with_most[] = {8, 0, 64};
  const auto q = AdamW::params<TypeParam>({0.5, 0.75, 0.75, 4.0, 0.0, true, false}, 1);
  EXPECT_EQ(AdamW::update_element<Kind::amsgrad>(TypeParam(8), TypeParam(16), with_most, q), TypeParam(7));
  EXPECT_EQ(with_most[0], TypeParam(10));
  EXPECT_EQ(with_most[1], TypeParam(64));
  EXPECT_EQ(with_most[2], TypeParam(64));
}

TYPED_TEST(AdamWTest, AmsgradKeepsNotANumberAsTorchMaximumDoes) {
  const auto nan = std::numeric_limits<TypeParam>::quiet_NaN();
  const auto p = AdamW::params<TypeParam>({0.1, 0.9, 0.999, 1e-8, 0.0, true, false}, 3);
  TypeParam new_one[] = {0, nan, 1}, old_one[] = {0, 1, nan};
  EXPECT_TRUE(std::isnan(AdamW::update_element<Kind::amsgrad>(TypeParam(1), TypeParam(1), new_one, p)));
  EXPECT_TRUE(std::isnan(new_one[2]));
  EXPECT_TRUE(std::isnan(AdamW::update_element<Kind::amsgrad>(TypeParam(1), TypeParam(1), old_one, p)));
  EXPECT_TRUE(std::isnan(old_one[2]));
}

TYPED_TEST(AdamWTest, ALearningRateSetAfterwardsIsThatOfTheCall) {
  const auto whole = AdamW::params<TypeParam>({0.003, 0.9, 0.999, 1e-8, 0.3, false, false}, 17);
  auto later = AdamW::params<TypeParam>({0.0, 0.9, 0.999, 1e-8, 0.3, false, false}, 17);
  EXPECT_NE(later.step_size, whole.step_size);
  EXPECT_NE(later.decay, whole.decay);
  AdamW::set_lr(later, 0.003);
  EXPECT_EQ(later.step_size, whole.step_size);
  EXPECT_EQ(later.decay, whole.decay);
}

// --- loops and kernels.

constexpr AdamW kRules[] = {{0.01, 0.9, 0.999, 1e-8, 0.1, false, false},
                            {0.01, 0.25, 0.5, 1e-3, 0.0, false, true},
                            {0.01, 0.9, 0.999, 1e-8, 0.1, true, false},
                            {0.01, 0.0, 0.95, 0.0, 0.0, true, true}};

template <typename Types>
struct Tensors {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  cuda::Memory<master_t> clean, m, v, most;
  cuda::Memory<model_t> grad, params;

  explicit Tensors(int64_t n, int shift = 0, int params_shift = 0)
      : clean(n, 1, shift),
        m(n, 2, shift),
        v(n, 3, shift),
        most(n, 4, shift),
        grad(n, 5, shift),
        params(n, 6, shift + params_shift) {
    for (auto* squares : {&v, &most}) {
      for (int64_t i = 0; i < n; ++i) {
        squares->data()[i] = math::Store<master_t>::from(std::fabs(math::load_scalar(squares->data()[i])));
      }
    }
  }

  // Elements [begin, end) by the loops; the noise is that of elements begin + offset, ...
  void update(const cpu::Kernels& k, const AdamW& rule, int64_t step, int64_t begin, int64_t end,
              const cpu::NoiseArgs* noise, int64_t offset = 0) {
    void* const buffers[] = {m.data() + begin, v.data() + begin, most.data() + begin};
    const cpu::Span span{offset + begin, end - begin};
    const auto& loops = k.rules.of<AdamW>();
    if (noise == nullptr) {
      loops.update[Types::pair](rule, step, span, clean.data() + begin, grad.data() + begin, buffers);
    } else {
      loops.update_and_perturb[Types::pair](rule, step, *noise, span, clean.data() + begin, grad.data() + begin,
                                            buffers, params.data() + begin);
    }
  }
};

template <typename Types>
testing::AssertionResult same(const Tensors<Types>& a, const Tensors<Types>& b) {
  for (const auto& result : {same_bits(a.clean, b.clean), same_bits(a.m, b.m), same_bits(a.v, b.v),
                             same_bits(a.most, b.most), same_bits(a.grad, b.grad), same_bits(a.params, b.params)}) {
    if (!result) return result;
  }
  return testing::AssertionSuccess();
}

template <typename Types>
class AdamWLoops : public testing::Test {};
TYPED_TEST_SUITE(AdamWLoops, cuda::Pairs);

TYPED_TEST(AdamWLoops, ThePlainOneIsTheBodyOfEachElement) {
  using master_t = typename TypeParam::master_t;
  using math_t = typename TypeParam::math_t;
  for (const AdamW& rule : kRules) {
    Tensors<TypeParam> got(200), start(200);
    got.update(*cpu::kernels_plain(), rule, 3, 0, 200, nullptr);
    const auto p = AdamW::params<math_t>(rule, 3);
    for (int64_t i = 0; i < 200; ++i) {
      math_t buffers[] = {math::load_scalar(start.m.data()[i]), math::load_scalar(start.v.data()[i]),
                          math::load_scalar(start.most.data()[i])};
      const math_t w = math::load_scalar(start.clean.data()[i]);
      const auto g = static_cast<math_t>(math::load_scalar(start.grad.data()[i]));
      const math_t updated = rule.amsgrad ? AdamW::update_element<Kind::amsgrad>(w, g, buffers, p)
                                          : AdamW::update_element<Kind::plain>(w, g, buffers, p);
      start.clean.data()[i] = math::Store<master_t>::from(updated);
      start.m.data()[i] = math::Store<master_t>::from(buffers[0]);
      start.v.data()[i] = math::Store<master_t>::from(buffers[1]);
      start.most.data()[i] = math::Store<master_t>::from(buffers[2]);
    }
    ASSERT_TRUE(same(got, start));
  }
}

TYPED_TEST(AdamWLoops, EveryVariantHasTheBitsOfThePlainOneInOnePassOrTwo) {
  int tested = 0;
  for (const char* name : {"plain", "avx2", "avx512"}) {
    if (!cpu::select_kernels(name)) continue;
    ++tested;
    const cpu::Kernels& table = cpu::kernels();
    for (const int64_t n : cuda::kSizes) {
      if (n > 4200) continue;
      for (const AdamW& rule : kRules) {
        for (const Distribution d : cuda::kDistributions) {
          const cpu::NoiseArgs noise = cuda::noise_args(d);
          const int64_t offset = n % 2 == 0 ? 0 : 100;
          Tensors<TypeParam> two(n), one(n), cut(n);
          two.update(*cpu::kernels_plain(), rule, 5, 0, n, nullptr);
          cpu::kernels_plain()->perturb[TypeParam::pair](noise, {offset, n}, two.clean.data(), nullptr,
                                                         two.params.data());
          one.update(table, rule, 5, 0, n, &noise, offset);
          ASSERT_TRUE(same(one, two)) << name << " n " << n << " amsgrad " << rule.amsgrad;
          const int64_t at = n * 2 / 3;
          cut.update(table, rule, 5, 0, at, &noise, offset);
          cut.update(table, rule, 5, at, n, &noise, offset);
          ASSERT_TRUE(same(cut, two)) << name << " n " << n << " cut at " << at;
        }
        Tensors<TypeParam> plain(n), alone(n);
        plain.update(*cpu::kernels_plain(), rule, 1, 0, n, nullptr);
        alone.update(table, rule, 1, 0, n, nullptr);
        ASSERT_TRUE(same(alone, plain)) << name << " n " << n << " amsgrad " << rule.amsgrad;
      }
    }
  }
  if (tested < 3) GTEST_SKIP() << "NOT TESTED: this processor or build has " << tested << " of 3 variants";
}

TYPED_TEST(AdamWLoops, StreamedStoresAndScaledNoiseGiveTheBitsOfTwoPasses) {
  for (const AdamW& rule : kRules) {
    for (const int params_shift : {0, 1}) {
      cpu::NoiseArgs noise = cuda::noise_args(Distribution::gaussian);
      noise.streams = true;
      Tensors<TypeParam> streamed(2049, 0, params_shift), expected(2049, 0, params_shift);
      streamed.update(cpu::kernels(), rule, 2, 0, 2049, &noise);
      noise.streams = false;
      expected.update(cpu::kernels(), rule, 2, 0, 2049, &noise);
      ASSERT_TRUE(same(streamed, expected));
    }
    cpu::NoiseArgs noise = cuda::noise_args(Distribution::rademacher);
    noise.scale = math::Scale::element;
    Tensors<TypeParam> one(2049), two(2049);
    one.update(cpu::kernels(), rule, 2, 0, 2049, &noise);
    two.update(cpu::kernels(), rule, 2, 0, 2049, nullptr);
    cpu::kernels().perturb[TypeParam::pair](noise, {0, 2049}, two.clean.data(), nullptr, two.params.data());
    ASSERT_TRUE(same(one, two));
    noise.noise_std = 0.0;
    one.update(cpu::kernels(), rule, 3, 0, 2049, &noise);
    two.update(cpu::kernels(), rule, 3, 0, 2049, nullptr);
    cpu::kernels().round[TypeParam::pair](two.clean.data(), two.params.data(), 2049);
    ASSERT_TRUE(same(one, two));
  }
}

template <typename Types, Kind kKind, bool kPerturb>
void check_kernel(const AdamW& rule, int64_t n, int shift, Distribution d) {
  using master_t = typename Types::master_t;
  using model_t = typename Types::model_t;
  using math_t = typename Types::math_t;
  Tensors<Types> got(n, shift), expected(n);
  const cpu::NoiseArgs noise = cuda::noise_args(d);
  expected.update(cpu::kernels(), rule, 4, 0, n, kPerturb ? &noise : nullptr);
  // lr comes from memory.
  AdamW without_lr = rule;
  without_lr.lr = 0.0;
  const cuda::UpdateSettings<AdamW, math_t> settings{AdamW::params<math_t>(without_lr, 4), kKind,
                                                     cuda::Number{&rule.lr, true, 0.0}};
  void* const most = kKind == Kind::amsgrad ? got.most.data() : nullptr;
  if constexpr (kPerturb) {
    cuda::walk_list<cuda::UpdateBody<AdamW, kKind, master_t, model_t, true>::template With,
                    cuda::kUpdateLanes<model_t, true>>(
        std::vector{cuda::contiguous<6>(
            n, {got.clean.data(), got.grad.data(), got.m.data(), got.v.data(), most, got.params.data()})},
        cuda::UpdateAndPerturbSettings<AdamW, math_t>{settings, cuda::noise_settings(d)});
  } else {
    cuda::walk_list<cuda::UpdateBody<AdamW, kKind, master_t, model_t, false>::template With,
                    cuda::kUpdateLanes<model_t, false>>(
        std::vector{cuda::contiguous<5>(n, {got.clean.data(), got.grad.data(), got.m.data(), got.v.data(), most})},
        settings);
  }
  ASSERT_TRUE(same(got, expected)) << "n " << n << " shift " << shift << " amsgrad " << rule.amsgrad;
}

TYPED_TEST(AdamWLoops, TheCudaBodiesHaveTheBitsOfTheLoops) {
  for (const int64_t n : cuda::kSizes) {
    for (const int shift : {0, 1}) {
      const Distribution d = cuda::kDistributions[n % 3 == 0];
      for (const AdamW& rule : {kRules[0], kRules[1]}) {
        check_kernel<TypeParam, Kind::plain, false>(rule, n, shift, d);
        check_kernel<TypeParam, Kind::plain, true>(rule, n, shift, d);
      }
      for (const AdamW& rule : {kRules[2], kRules[3]}) {
        check_kernel<TypeParam, Kind::amsgrad, false>(rule, n, shift, d);
        check_kernel<TypeParam, Kind::amsgrad, true>(rule, n, shift, d);
      }
    }
  }
}

}  // namespace
}  // namespace torch_ssam
