// One training step without the model: torch_ssam::SSAM against torch::optim::SGD with a hand-written perturbation
// (clone, randn_like, add, and copy back), gradients given. Sizes: 300 elements in 4 tensors, 300 tensors of 1000
// elements, and 32M elements in 16 tensors. Build with TORCH_SSAM_BUILD_BENCHMARKS=ON; run with
// --benchmark_enable_random_interleaving=true --benchmark_repetitions=5.
#include <benchmark/benchmark.h>
#include <torch/torch.h>
#include <torch_ssam/torch_ssam.h>

#include <vector>

namespace {

using torch::Tensor;

constexpr double kLr = 1e-3, kMomentum = 0.9, kNoiseStd = 0.01;

std::vector<Tensor> make_params(const benchmark::State& state) {
  torch::manual_seed(0);
  std::vector<Tensor> params;
  for (std::int64_t i = 0; i < state.range(0); ++i) {
    params.push_back(torch::randn({state.range(1)}).requires_grad_(true));
    params.back().mutable_grad() = torch::randn({state.range(1)});
  }
  return params;
}

// The first step allocates momentum and clean copies: it is not measured.
template <typename Step>
void measure(benchmark::State& state, const Step& step) {
  step();
  for (auto _ : state) step();
  state.SetItemsProcessed(state.iterations() * state.range(0) * state.range(1));
}

void hand_written(benchmark::State& state) {
  const auto params = make_params(state);
  torch::optim::SGD opt(params, torch::optim::SGDOptions(kLr).momentum(kMomentum));
  measure(state, [&] {
    std::vector<Tensor> clean;
    {
      const torch::NoGradGuard no_grad;
      for (const Tensor& p : params) {
        clean.push_back(p.clone());
        p.add_(torch::randn_like(p), kNoiseStd);
      }
    }
    benchmark::ClobberMemory();  // forward and backward would run here
    {
      const torch::NoGradGuard no_grad;
      for (std::size_t i = 0; i < params.size(); ++i) params[i].copy_(clean[i]);
    }
    opt.step();
  });
}

void ssam(benchmark::State& state) {
  const auto params = make_params(state);
  torch_ssam::SSAM opt(params, torch_ssam::SSAMOptions(kLr).momentum(kMomentum).noise_std(kNoiseStd).seed(0));
  measure(state, [&] {
    {
      const auto perturbed = opt.perturb();
      benchmark::ClobberMemory();
    }
    opt.step();
  });
}

void ssam_keep_perturbed(benchmark::State& state) {
  const auto params = make_params(state);
  torch_ssam::SSAM opt(
      params, torch_ssam::SSAMOptions(kLr).momentum(kMomentum).noise_std(kNoiseStd).keep_perturbed(true).seed(0));
  opt.train();
  measure(state, [&] { opt.step(); });
}

// Below any way to perturb: the update alone.
void sgd_without_noise(benchmark::State& state) {
  const auto params = make_params(state);
  torch::optim::SGD opt(params, torch::optim::SGDOptions(kLr).momentum(kMomentum));
  measure(state, [&] { opt.step(); });
}

void sizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"tensors", "elements"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  benchmark->Args({4, 75})->Args({300, 1000})->Args({16, 2'000'000});
}

BENCHMARK(hand_written)->Apply(sizes);
BENCHMARK(ssam)->Apply(sizes);
BENCHMARK(ssam_keep_perturbed)->Apply(sizes);
BENCHMARK(sgd_without_noise)->Apply(sizes);

}  // namespace

BENCHMARK_MAIN();
