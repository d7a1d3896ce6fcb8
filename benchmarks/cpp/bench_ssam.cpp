// One training step without the model: torch_ssam::SSAM and SSAMAdamW against torch::optim::SGD and AdamW, with a
// hand-written perturbation (clone, randn_like, add, and copy back) and without noise, gradients given. Sizes: 300
// elements in 4 tensors, 300 tensors of 1000 elements, and 32M elements in 16 tensors. Build with
// TORCH_SSAM_BUILD_BENCHMARKS=ON; run with
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

// What a program writes by hand around one of LibTorch's optimizers.
void by_hand(benchmark::State& state, const std::vector<Tensor>& params, torch::optim::Optimizer& opt) {
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

void in_passes(benchmark::State& state, const std::vector<Tensor>& params, torch_ssam::NoiseDriver& opt) {
  measure(state, [&] {
    {
      const auto perturbed = opt.perturb();
      params[0]
          .grad()
          .unsafeGetTensorImpl()
          ->bump_version();  // as backward would: a pass without a gradient is refused
    }
    opt.step();
  });
}

void kept(benchmark::State& state, torch_ssam::NoiseDriver& opt) {
  opt.train();
  measure(state, [&] { opt.step(); });
}

torch::optim::SGDOptions sgd() { return torch::optim::SGDOptions(kLr).momentum(kMomentum); }
torch_ssam::SSAMOptions ssam_options() {
  return torch_ssam::SSAMOptions(kLr).momentum(kMomentum).noise_std(kNoiseStd).seed(0);
}
torch_ssam::SSAMAdamWOptions adamw_options() { return torch_ssam::SSAMAdamWOptions(kLr).noise_std(kNoiseStd).seed(0); }

void hand_written(benchmark::State& state) {
  const auto params = make_params(state);
  torch::optim::SGD opt(params, sgd());
  by_hand(state, params, opt);
}

void ssam(benchmark::State& state) {
  const auto params = make_params(state);
  torch_ssam::SSAM opt(params, ssam_options());
  in_passes(state, params, opt);
}

void ssam_keep_perturbed(benchmark::State& state) {
  torch_ssam::SSAM opt(make_params(state), ssam_options().keep_perturbed(true));
  kept(state, opt);
}

// Below any way to perturb: the update alone.
void sgd_without_noise(benchmark::State& state) {
  torch::optim::SGD opt(make_params(state), sgd());
  measure(state, [&] { opt.step(); });
}

void ssam_without_noise(benchmark::State& state) {
  torch_ssam::SSAM opt(make_params(state), ssam_options().noise_std(0));
  measure(state, [&] { opt.step(); });
}

void adamw_hand_written(benchmark::State& state) {
  const auto params = make_params(state);
  torch::optim::AdamW opt(params, torch::optim::AdamWOptions(kLr));
  by_hand(state, params, opt);
}

void ssam_adamw(benchmark::State& state) {
  const auto params = make_params(state);
  torch_ssam::SSAMAdamW opt(params, adamw_options());
  in_passes(state, params, opt);
}

void ssam_adamw_keep_perturbed(benchmark::State& state) {
  torch_ssam::SSAMAdamW opt(make_params(state), adamw_options().keep_perturbed(true));
  kept(state, opt);
}

void adamw_without_noise(benchmark::State& state) {
  torch::optim::AdamW opt(make_params(state), torch::optim::AdamWOptions(kLr));
  measure(state, [&] { opt.step(); });
}

void ssam_adamw_without_noise(benchmark::State& state) {
  torch_ssam::SSAMAdamW opt(make_params(state), adamw_options().noise_std(0));
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
BENCHMARK(ssam_without_noise)->Apply(sizes);
BENCHMARK(adamw_hand_written)->Apply(sizes);
BENCHMARK(ssam_adamw)->Apply(sizes);
BENCHMARK(ssam_adamw_keep_perturbed)->Apply(sizes);
BENCHMARK(adamw_without_noise)->Apply(sizes);
BENCHMARK(ssam_adamw_without_noise)->Apply(sizes);

}  // namespace

BENCHMARK_MAIN();
